"""Judges behind a chat endpoint: profile overlap (H.1), the five criteria or one verdict (section 3.3), the evaluation score (C.3).

What policy and user wrote reaches a judge as quoted data only. A case without a readable answer is None, neither 0 nor 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, create_model
from scipy.optimize import linear_sum_assignment

from rlpa_lib.client.chat import Answer, BadAnswer, EndpointError, RateLimitError, Refused, Request, RequestError, ServerError, TimeoutError_
from rlpa_lib.dialogue import quoting
from rlpa_lib.dialogue.dialogue import Dialogue, judge_view
from rlpa_lib.dialogue.judging import DIMENSIONS, FailureTally, JudgeFailed, Verdict
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply

if TYPE_CHECKING:
    from rlpa_lib.client.endpoint import ChatEndpoint

# What leaves a case unjudged after the endpoint's own retries. Wrong settings, a spent budget and a server that is gone stop the run
# instead: a resumed run can ask again.
UNJUDGED = (BadAnswer, Refused, RateLimitError, ServerError, TimeoutError_)
MAX_RESPONSE, MAX_UTTERANCE, MAX_VALUE = 4000, 1500, 300  # characters of a text that a judge is shown
MAX_ITEMS = 40  # of a profile; those behind them match nothing, so a policy gains nothing by writing hundreds
_FIELD = {"N": "naturalness", "R": "relevance", "L": "logic", "G": "engagement", "F": "informativeness"}
_WORDS = {"0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1}

Pairs = tuple[tuple[int, int], ...]


def _binary(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return _WORDS.get(value.strip().lower(), value) if isinstance(value, str) else value


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


# The limit is a hint for servers that decode by the schema; a longer reason is cut, not refused.
Reason = Annotated[str, BeforeValidator(lambda v: v[:400] if isinstance(v, str) else v), Field(json_schema_extra={"maxLength": 120})]
Mark = Annotated[Literal[0, 1], BeforeValidator(_binary)]


class Marked(BaseModel):
    """One criterion: a reason first, then the mark that follows from it."""

    reason: Reason
    mark: Mark


class CriteriaAnswer(BaseModel):
    """The five criteria of eq. 4 and the four dimensions of section 3.3; the product is not asked for."""

    naturalness: Marked
    relevance: Marked
    logic: Marked
    engagement: Marked
    informativeness: Marked
    preference_expression: Mark
    style_consistency: Mark
    goal_alignment: Mark
    persona_coherence: Mark

    def verdict(self) -> Verdict:
        """The marks as this project keeps them."""
        given: dict[str, Marked] = {c: getattr(self, name) for c, name in _FIELD.items()}
        dimensions = {name: bool(getattr(self, name)) for name in DIMENSIONS}
        return Verdict({c: bool(m.mark) for c, m in given.items()}, {c: m.reason for c, m in given.items()}, dimensions)


class HolisticAnswer(Marked):
    """One verdict on the whole reply (released code)."""

    def verdict(self) -> Verdict:
        """All five marks carry the one verdict."""
        return Verdict(dict.fromkeys(_FIELD, bool(self.mark)), dict.fromkeys(_FIELD, f"as a whole: {self.reason}"))


@cache
def pairs_schema(n_inferred: int, n_true: int) -> type[BaseModel]:
    """The answer {"pairs": [{"inferred": 1..n_inferred, "true": 1..n_true}]}: no item that does not exist can be named."""
    inferred, true = (Annotated[Literal[tuple(range(1, n + 1))], BeforeValidator(_number)] for n in (n_inferred, n_true))
    pair = create_model("Pair", inferred=(inferred, ...), true=(true, ...))
    hint = Field(json_schema_extra={"maxItems": min(n_inferred, n_true)})
    return create_model(f"Pairs_{n_inferred}_{n_true}", pairs=(Annotated[list[pair], hint], ...))


def one_to_one(pairs: Sequence[tuple[int, int]], n_inferred: int, n_true: int) -> Pairs:
    """As many of the named pairs (indices from 0) as can stand together with no item used twice, in order: at most min(n_inferred,
    n_true) of them. ValueError: a pair names an item that does not exist."""
    named = np.zeros((n_inferred, n_true), dtype=int)
    for i, j in pairs:
        if not (0 <= i < n_inferred and 0 <= j < n_true):
            raise ValueError(f"pair {(i, j)} of {n_inferred} inferred and {n_true} true items")
        named[i, j] = 1
    rows, columns = linear_sum_assignment(-named)
    return tuple((int(i), int(j)) for i, j in zip(rows, columns, strict=True) if named[i, j])


@dataclass(frozen=True)
class JudgePrompt:
    """Instructions before the data, and what stands behind them."""

    system: str
    closing: str

    @staticmethod
    def read(text: str) -> JudgePrompt:
        """A prompt file's text, in two parts at a line of three dashes; without that line there is no closing part."""
        system, _, closing = text.partition("\n---\n")
        return JudgePrompt(system.strip(), closing.strip())

    def messages(self, values: dict[str, Any], defended: bool = True) -> tuple[dict[str, str], ...]:
        """System and user message. `defended=False` pastes the texts in bare; it exists to measure what the quotation is worth."""
        data = quoting.quote(values) if defended else "\n\n".join(f"{name}:\n{_bare(value)}" for name, value in values.items())
        return {"role": "system", "content": self.system}, {"role": "user", "content": f"{data}\n\n{self.closing}".strip()}


def _bare(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(_bare(item) for item in value)
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_bare(item)}" for name, item in value.items())
    return str(value)


@dataclass
class Questions:
    """Puts cases to one endpoint, counts what stays unanswered, and hands every judgement to `keep` (rows for a JSONL file)."""

    endpoint: ChatEndpoint
    prompt: JudgePrompt
    tally: FailureTally
    max_tokens: int = 512
    temperature: float = 0.0
    max_prompt_tokens: int = 8000
    defended: bool = True
    keep: Callable[[list[dict]], None] = field(default=lambda rows: None)

    def ask(self, cases: Sequence[tuple[str, dict[str, Any], type[BaseModel]]], desc: str) -> list[BaseModel | None]:
        """The parsed answer to each case (label, quoted values, schema), in order; None where there is none.
        JudgeFailed: more failures than `tally` allows. EndpointError: the server cannot be used at all."""
        requests = [
            Request(self.prompt.messages(values, self.defended), schema, self.temperature, max_tokens=self.max_tokens)
            for _, values, schema in cases
        ]
        answers = self.endpoint.complete(requests, desc=desc, on_error="return") if requests else []
        # A request that the server does not take is a matter of settings, unless it takes others of the same kind.
        passable = (*UNJUDGED, RequestError) if any(isinstance(a, Answer) for a in answers) else UNJUDGED
        for answer in answers:
            if isinstance(answer, EndpointError) and not isinstance(answer, passable):
                raise answer
        parsed = [a.parsed if isinstance(a, Answer) else None for a in answers]
        failures = [a for a in answers if isinstance(a, EndpointError)]
        self.keep([self._row(case[0], desc, answer, got) for case, answer, got in zip(cases, answers, parsed, strict=True)])
        self.tally.add(len(cases), len(failures), f"{type(failures[-1]).__name__}: {failures[-1]}" if failures else "")
        return parsed

    @staticmethod
    def _row(label: str, desc: str, answer: Answer | EndpointError, got: BaseModel | None) -> dict:
        told = {"answer": got.model_dump(mode="json")} if got is not None else {"error": f"{type(answer).__name__}: {answer}"[:1000]}
        return {"kind": desc, "case": label, **told}

    def text(self, text: str, limit: int) -> dict[str, Any]:
        """A text as quoted, or bare where there is no defence."""
        return quoting.entry(text, limit) if self.defended else {"text": text}

    def items(self, profile: Profile, numbered: bool = False) -> list[dict[str, Any]]:
        """A profile's first MAX_ITEMS items as quoted, numbered from 1 where pairs are asked for."""
        shown = profile.items[:MAX_ITEMS]
        rows = [{"slot": self.text(slot, 80)["text"], "value": self.text(value, MAX_VALUE)["text"]} for slot, value in shown]
        return [{"number": i, **row} for i, row in enumerate(rows, start=1)] if numbered else rows

    def conversation(self, dialogue: Dialogue, room: int) -> dict[str, Any]:
        """The latest messages that fit into about `room` tokens, the pending one always; how many are left out stands beside them."""
        lines = [{"speaker": speaker, **self.text(text, MAX_UTTERANCE)} for speaker, text in judge_view(dialogue)]
        first = len(lines) - 1
        room -= quoting.estimated_tokens(quoting.dumps(lines[first]))
        while first > 0 and (cost := quoting.estimated_tokens(quoting.dumps(lines[first - 1]))) <= room:
            first, room = first - 1, room - cost
        left_out = {"earlier_messages_left_out": first} if first else {}
        return {**left_out, "conversation": lines[first:]}

    def room(self, *values: Any) -> int:
        """Tokens left for the conversation beside the instructions, these values and the answer's own data tags."""
        return self.max_prompt_tokens - quoting.estimated_tokens(self.prompt.system, self.prompt.closing, *map(quoting.dumps, values)) - 50


class LLMJudge:
    """The source of training rewards (sections 3.2 and 3.3): one model counts profile overlap, one judges responses."""

    def __init__(self, profiles: Questions, replies: Questions, *, holistic: bool = False):
        self.profiles, self.replies, self.holistic = profiles, replies, holistic

    def match(self, inferred: Profile, true: Profile) -> Pairs:
        """One-to-one pairs of items that mean the same (eq. 2). JudgeFailed: no readable answer."""
        [pairs] = self.matches([(inferred, true)])
        if pairs is None:
            raise JudgeFailed("the profile judge gave no readable answer")
        return pairs

    def matches(self, pairs: Sequence[tuple[Profile, Profile]]) -> list[Pairs | None]:
        """`match` for a batch, in order. With an empty side there is nothing to match and nobody is asked."""
        asked = [i for i, (inferred, true) in enumerate(pairs) if len(inferred) and len(true)]
        cases = []
        for i in asked:
            inferred, true = pairs[i]
            values = {"inferred": self.profiles.items(inferred, True), "true": self.profiles.items(true, True)}
            cases.append((f"{len(inferred)} x {len(true)} items", values, pairs_schema(*map(len, values.values()))))
        results: list[Pairs | None] = [() for _ in pairs]
        for i, answer in zip(asked, self.profiles.ask(cases, "profile judge"), strict=True):
            named = None if answer is None else [(pair.inferred - 1, pair.true - 1) for pair in answer.pairs]
            results[i] = None if named is None else one_to_one(named, len(pairs[i][0]), len(pairs[i][1]))
        return results

    def responses(self, cases: Sequence[tuple[Dialogue, Reply]]) -> list[Verdict | None]:
        """A verdict per (dialogue with a pending utterance, candidate reply), against the INFERRED profile (section 3.3)."""
        schema = HolisticAnswer if self.holistic else CriteriaAnswer
        asked, ask = [], self.replies
        for dialogue, reply in cases:
            known, response = ask.items(reply.profile), ask.text(reply.response, MAX_RESPONSE)
            talk = ask.conversation(dialogue, ask.room(known, response))
            asked.append((_label(dialogue), {**talk, "inferred_profile": known, "response": response}, schema))
        return [None if a is None else a.verdict() for a in ask.ask(asked, "response judge")]


class LLMEvaluationJudge:
    """The source of evaluation scores (C.3): it sees the true persona and the pending message, or with `whole_dialogue` all of the talk."""

    def __init__(self, questions: Questions, *, whole_dialogue: bool = False):
        self.questions, self.whole_dialogue = questions, whole_dialogue

    def evaluate(self, cases: Sequence[tuple[Persona, Dialogue, str]]) -> list[Verdict | None]:
        """A verdict per (true persona, dialogue with a pending utterance, response text)."""
        asked, ask = [], self.questions
        for persona, dialogue, text in cases:
            words = {"description": persona.description, "personality": persona.personality}
            who = {**{name: ask.text(value, MAX_RESPONSE)["text"] for name, value in words.items()}, "profile": ask.items(persona.profile)}
            response = ask.text(text, MAX_RESPONSE)
            talk = ask.conversation(dialogue, ask.room(who, response) if self.whole_dialogue else 0)
            if not self.whole_dialogue:
                talk = {"conversation": talk["conversation"]}
            asked.append((_label(dialogue), {"persona": who, **talk, "response": response}, CriteriaAnswer))
        return [None if a is None else a.verdict() for a in ask.ask(asked, "evaluator")]


def _label(dialogue: Dialogue) -> str:
    return f"{dialogue.id}, turn {len(dialogue.turns) + 1}"
