"""Judges behind a chat endpoint: profile overlap (H.1), the five criteria or one verdict (section 3.3), the
evaluation score (C.3), and what a user has revealed (section 5.3).

They see what policy and user wrote as quoted data only. A case without a readable answer is None, not 0 or 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field, create_model
from scipy.optimize import linear_sum_assignment

from rlpa_lib.agents.asking import MAX_RESPONSE, MAX_UTTERANCE, Questions, RunFolder, make_questions
from rlpa_lib.dialogue import quoting
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.judging import DIMENSIONS, JudgeFailed, Verdict
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.reveal import words
from rlpa_lib.settings.config import Config
from rlpa_lib.settings.kinds import EVALUATION_CRITERIA, REWARD_CRITERIA, Criterion
from rlpa_lib.settings.roles import find_section

Pairs = tuple[tuple[int, int], ...]
_WORDS = {"0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1}


def _read_mark(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return _WORDS.get(value.strip().lower(), value) if isinstance(value, str) else value


_cut = BeforeValidator(lambda value: value[:400] if isinstance(value, str) else value)
# The limit is a hint for servers that decode by the schema; a longer reason is cut, not refused.
Reason = Annotated[str, _cut, Field(json_schema_extra={"maxLength": 120})]
Mark = Annotated[Literal[0, 1], BeforeValidator(_read_mark)]


class Marked(BaseModel):
    """One criterion: a reason first, then the mark that follows from it."""

    reason: Reason
    mark: Mark


class HolisticAnswer(Marked):
    """One verdict on the whole reply (released code)."""


def make_schema(criteria: Mapping[str, Criterion]) -> type[BaseModel]:
    """The answer of a judge that marks each of the criteria and the four dimensions of section 3.3."""
    fields = {c.field: (Marked, ...) for c in criteria.values()} | dict.fromkeys(DIMENSIONS, (Mark, ...))
    told = "The five criteria of eq. 4 and the four dimensions of section 3.3; the product is not asked for."
    return create_model("CriteriaAnswer", __doc__=told, **fields)


CriteriaAnswer = make_schema(REWARD_CRITERIA)
EvaluationAnswer = make_schema(EVALUATION_CRITERIA)


def read_verdict(answer: BaseModel | None, criteria: Mapping[str, Criterion]) -> Verdict | None:
    """A judge's marks as this project keeps them; a holistic verdict is written into all criteria."""
    if answer is None:
        return None
    if isinstance(answer, HolisticAnswer):
        reason = f"as a whole: {answer.reason}"
        return Verdict(dict.fromkeys(criteria, bool(answer.mark)), dict.fromkeys(criteria, reason))
    given: dict[str, Marked] = {name: getattr(answer, c.field) for name, c in criteria.items()}
    marks, reasons = {c: bool(m.mark) for c, m in given.items()}, {c: m.reason for c, m in given.items()}
    return Verdict(marks, reasons, {name: bool(getattr(answer, name)) for name in DIMENSIONS})


def _number_to(n: int) -> Any:
    """1..n, as a number or in digits, so that only items that exist can be named."""
    read = BeforeValidator(lambda v: int(v) if isinstance(v, str) and v.strip().isdecimal() else v)
    return Annotated[Literal[tuple(range(1, n + 1))], read]


@cache
def pairs_schema(n_inferred: int, n_true: int) -> type[BaseModel]:
    """The answer {"pairs": [{"inferred": 1..n_inferred, "true": 1..n_true}]}."""
    pair = create_model("Pair", inferred=(_number_to(n_inferred), ...), true=(_number_to(n_true), ...))
    hint = Field(json_schema_extra={"maxItems": min(n_inferred, n_true)})
    return create_model(f"Pairs_{n_inferred}_{n_true}", pairs=(Annotated[list[pair], hint], ...))


@cache
def numbers_schema(n: int) -> type[BaseModel]:
    """The answer {"revealed": [1..n]}."""
    numbers = Annotated[list[_number_to(n)], Field(json_schema_extra={"maxItems": n})]
    return create_model(f"Revealed_{n}", revealed=(numbers, ...))


def one_to_one(pairs: Sequence[tuple[int, int]], n_inferred: int, n_true: int) -> Pairs:
    """As many pairs (indices from 0) as can stand with no item used twice, in order: at most min(n_inferred,
    n_true). ValueError: a pair names an item that does not exist."""
    named = np.zeros((n_inferred, n_true), dtype=int)
    for i, j in pairs:
        if not (0 <= i < n_inferred and 0 <= j < n_true):
            raise ValueError(f"pair {(i, j)} of {n_inferred} inferred and {n_true} true items")
        named[i, j] = 1
    chosen = np.transpose(linear_sum_assignment(-named))
    return tuple((int(i), int(j)) for i, j in chosen if named[i, j])


@dataclass(frozen=True)
class LLMJudge:
    """Training rewards (sections 3.2 and 3.3): one model counts profile overlap, one judges responses."""

    profiles: Questions
    replies: Questions
    schema: type[BaseModel] = CriteriaAnswer  # of what a reply is answered with

    def match(self, inferred: Profile, true: Profile) -> Pairs:
        """One-to-one pairs of items that mean the same (eq. 2). JudgeFailed: no readable answer."""
        [pairs] = self.matches([(inferred, true)])
        if pairs is None:
            raise JudgeFailed("the profile judge gave no readable answer")
        return pairs

    def matches(self, pairs: Sequence[tuple[Profile, Profile]]) -> list[Pairs | None]:
        """`match` for a batch, in order. If a side is empty, there are no pairs and no model is asked."""
        asked = [i for i, (inferred, true) in enumerate(pairs) if len(inferred) and len(true)]
        cases = []
        for i in asked:
            left, right = (self.profiles.items(profile, numbered=True) for profile in pairs[i])
            schema, label = pairs_schema(len(left), len(right)), "{} x {} items".format(*map(len, pairs[i]))
            cases.append((label, {"inferred": left, "true": right}, schema))
        results: list[Pairs | None] = [() for _ in pairs]
        for i, answer in zip(asked, self.profiles.ask(cases, "profile judge"), strict=True):
            if answer is None:
                results[i] = None
            else:
                named = [(pair.inferred - 1, pair.true - 1) for pair in answer.pairs]
                results[i] = one_to_one(named, *map(len, pairs[i]))
        return results

    def responses(self, cases: Sequence[tuple[Dialogue, Reply]]) -> list[Verdict | None]:
        """Verdict per (dialogue with pending utterance, candidate reply), against the INFERRED profile."""
        asked, ask = [], self.replies
        for dialogue, reply in cases:
            known, response = ask.items(reply.profile), ask.text(reply.response, MAX_RESPONSE)
            talk = ask.conversation(dialogue, known, response)
            values = {**talk, "inferred_profile": known, "response": response}
            asked.append((_label(dialogue), values, self.schema))
        return [read_verdict(answer, REWARD_CRITERIA) for answer in ask.ask(asked, "response judge")]


@dataclass(frozen=True)
class LLMEvaluationJudge:
    """Evaluation scores (C.3) from true persona and pending message, or (`whole_dialogue`) all turns."""

    questions: Questions
    whole_dialogue: bool = False

    def evaluate(self, cases: Sequence[tuple[Persona, Dialogue, str]]) -> list[Verdict | None]:
        """A verdict per (true persona, dialogue with a pending utterance, response text)."""
        asked, ask = [], self.questions
        for persona, dialogue, text in cases:
            prose = {"description": persona.description, "personality": persona.personality}
            who = {name: ask.text(value, MAX_RESPONSE)["text"] for name, value in prose.items()}
            who["profile"], response = ask.items(persona.profile), ask.text(text, MAX_RESPONSE)
            shown = dialogue if self.whole_dialogue else replace(dialogue, turns=())
            talk = ask.conversation(shown, who, response)
            asked.append((_label(dialogue), {"persona": who, **talk, "response": response}, EvaluationAnswer))
        return [read_verdict(answer, EVALUATION_CRITERIA) for answer in ask.ask(asked, "evaluator")]


def _label(dialogue: Dialogue) -> str:
    return f"{dialogue.id}, turn {len(dialogue.turns) + 1}"


@dataclass(frozen=True)
class LLMRevealJudge:
    """Judges what a user's words alone reveal, for the Theoretical Max of section 5.3: a user model may tell
    more or less than it reports. Words too long for the prompt are split into parts, so nothing is left out;
    a case is None when one of its parts has no readable answer."""

    questions: Questions

    def find_revealed(self, cases: Sequence[tuple[Persona, Dialogue]]) -> list[frozenset[str] | None]:
        """As in `RevealJudge`. JudgeFailed, EndpointError: see `Questions.ask`."""
        asked, owners = [], []
        for i, (persona, dialogue) in enumerate(cases):
            items = self.questions.items(persona.profile, numbered=True)
            for part in self._split(items, words(dialogue)) if items else ():
                label = f"{dialogue.id}, {len(dialogue.turns)} turns"
                asked.append((label, {"items": items, "messages": part}, numbers_schema(len(items))))
                owners.append(i)
        revealed: list[frozenset[str] | None] = [frozenset() for _ in cases]
        for i, answer in zip(owners, self.questions.ask(asked, "reveal judge"), strict=True):
            slots, known = cases[i][0].profile.slots(), revealed[i]
            failed = answer is None or known is None
            revealed[i] = None if failed else known | {slots[n - 1] for n in answer.revealed}
        return revealed

    def _split(self, items: list[dict[str, Any]], said: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        left = room = self.questions.room(items)
        part: list[dict[str, Any]] = []
        for entry in (self.questions.text(text, MAX_UTTERANCE) for text in said):
            cost = quoting.estimated_tokens(quoting.dumps(entry))
            if part and cost > left:
                yield part
                part, left = [], room
            part, left = [*part, entry], left - cost
        if part:
            yield part


def make_reward_judge(cfg: Config, run: RunFolder, **options: Any) -> LLMJudge:
    """The judge behind training rewards; options as in `make_questions`."""
    schema = HolisticAnswer if cfg.judge.verdict == "holistic" else CriteriaAnswer
    prompt = f"judge_{cfg.judge.verdict}"
    _, section = find_section(cfg, "profile_judge")
    overlap = make_questions(cfg, section, "profile_judge", "judge_overlap", run, **options)
    replies = make_questions(cfg, cfg.judge, "response_judge", prompt, run, **options)
    return LLMJudge(overlap, replies, schema)


def make_evaluation_judge(cfg: Config, run: RunFolder, **options: Any) -> LLMEvaluationJudge:
    """The judge behind evaluation scores (appendix C.3); options as in `make_questions`."""
    questions = make_questions(cfg, cfg.evaluator, "evaluator", "evaluator", run, **options)
    return LLMEvaluationJudge(questions, cfg.evaluator.sees == "dialogue")


def make_reveal_judge(cfg: Config, run: RunFolder) -> LLMRevealJudge:
    """The model that judges profiles, asked what a user's words have revealed."""
    _, section = find_section(cfg, "profile_judge")
    return LLMRevealJudge(make_questions(cfg, section, "profile_judge", "judge_revealed", run))
