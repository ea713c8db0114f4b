"""Questions to a model behind a server: its endpoint, its prompt, and the quoted data it is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from rlpa_lib.client import chat
from rlpa_lib.client.chat import Answer, EndpointError, Request
from rlpa_lib.dialogue import prompt_files, quoting
from rlpa_lib.dialogue.dialogue import Dialogue, judge_view
from rlpa_lib.dialogue.judging import FailureTally
from rlpa_lib.dialogue.profile import Profile
from rlpa_lib.runs import storage
from rlpa_lib.runs.run import Run
from rlpa_lib.settings.base import Role
from rlpa_lib.settings.config import Config, InputError

if TYPE_CHECKING:
    from rlpa_lib.client.endpoint import ChatEndpoint

RunFolder = Run | Path | None  # where caches, budgets and usage records are kept; None: no server is asked
# After retries these leave a case unjudged; wrong settings, a spent budget or a lost server stop the run.
UNJUDGED = (chat.BadAnswer, chat.Refused, chat.RateLimitError, chat.ServerError, chat.TimeoutError_)
MAX_RESPONSE, MAX_UTTERANCE, MAX_VALUE = 4000, 1500, 300  # characters of a text that a judge is shown
MAX_ITEMS = 40  # of a profile; those behind them match nothing, so a policy gains nothing by writing hundreds


@dataclass(frozen=True)
class JudgePrompt:
    """The instructions that come before the data, and those that come after."""

    system: str
    closing: str

    @staticmethod
    def read(text: str) -> JudgePrompt:
        """Split a prompt file's text at its line of three dashes; without that line, `closing` is empty."""
        system, _, closing = text.partition("\n---\n")
        return JudgePrompt(system.strip(), closing.strip())

    def messages(self, values: dict[str, Any], defended: bool = True) -> tuple[dict[str, str], ...]:
        """The two messages; `defended=False` leaves texts unquoted, to measure what quoting is worth."""
        bare = "\n\n".join(f"{name}:\n{_paste(value)}" for name, value in values.items())
        content = f"{quoting.quote(values) if defended else bare}\n\n{self.closing}".strip()
        return {"role": "system", "content": self.system}, {"role": "user", "content": content}


def _paste(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(map(_paste, value))
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_paste(item)}" for name, item in value.items())
    return str(value)


@dataclass
class Questions:
    """Puts cases to an endpoint, counts unanswered ones and appends every judgement to `file` (JSONL)."""

    endpoint: ChatEndpoint
    prompt: JudgePrompt
    tally: FailureTally
    limits: Role
    file: Path
    defended: bool

    def ask(self, cases: Sequence[tuple[str, dict[str, Any], type[BaseModel]]], desc: str) -> list[Any]:
        """The parsed answer to each case (label, quoted values, schema), in order; None where there is none.

        JudgeFailed: more failures than `tally` allows. EndpointError: the server cannot be used at all.
        """
        options = {"temperature": self.limits.temperature, "max_tokens": self.limits.max_tokens}
        requests = [Request(self.prompt.messages(v, self.defended), kind, **options) for _, v, kind in cases]
        answers = self.endpoint.complete(requests, desc=desc, on_error="return") if requests else []
        failures = [answer for answer in answers if isinstance(answer, EndpointError)]
        # A refused request is a matter of settings, unless the server takes others of the same kind.
        passable = UNJUDGED if len(failures) == len(answers) else (*UNJUDGED, chat.RequestError)
        for failure in failures:
            if not isinstance(failure, passable):
                raise failure
        why = ""
        for (label, _, _), answer in zip(cases, answers, strict=True):
            if isinstance(answer, Answer):
                outcome = {"answer": answer.parsed.model_dump(mode="json")}
            else:
                why = f"{type(answer).__name__}: {answer}"
                outcome = {"error": why[:1000]}
            storage.append_jsonl(self.file, {"kind": desc, "case": label, **outcome})
        self.tally.add(len(cases), len(failures), why)
        return [answer.parsed if isinstance(answer, Answer) else None for answer in answers]

    def text(self, text: str, limit: int) -> dict[str, Any]:
        """A text as quoted data, or bare when `defended` is off."""
        return quoting.entry(text, limit) if self.defended else {"text": text}

    def items(self, profile: Profile, numbered: bool = False) -> list[dict[str, Any]]:
        """The first MAX_ITEMS items as quoted data, numbered from 1 if the answer refers to them so."""
        rows = [
            {"slot": self.text(slot, 80)["text"], "value": self.text(value, MAX_VALUE)["text"]}
            for slot, value in profile.items[:MAX_ITEMS]
        ]
        return [{"number": i, **row} for i, row in enumerate(rows, start=1)] if numbered else rows

    def conversation(self, dialogue: Dialogue, *beside: Any) -> dict[str, Any]:
        """The latest messages that fit beside these values (always the pending one), and how many do not."""
        said, room = judge_view(dialogue), self.room(*beside)
        lines = [{"speaker": speaker, **self.text(text, MAX_UTTERANCE)} for speaker, text in said]
        first = quoting.find_first([quoting.estimated_tokens(quoting.dumps(line)) for line in lines], room)
        left_out = {"earlier_messages_left_out": first} if first else {}
        return {**left_out, "conversation": lines[first:]}

    def room(self, *values: Any) -> int:
        """Tokens left after the instructions, `values` and the tags around the data."""
        fixed = (self.prompt.system, self.prompt.closing, *map(quoting.dumps, values))
        return self.limits.max_prompt_tokens - quoting.estimated_tokens(*fixed) - 50


def open_endpoint(cfg: Config, role: str, run: RunFolder) -> ChatEndpoint:
    """The endpoint of a role. InputError: there is no run, or as in `endpoint_for`."""
    from rlpa_lib.client.endpoint import endpoint_for  # here, because most runs need no server

    if run is None:
        kept = "its cache, budget and usage record are kept there"
        raise InputError(f"{role}: a model behind a server needs the run: {kept}")
    return endpoint_for(cfg, role, run)


def load_prompt(cfg: Config, name: str) -> str:
    """A prompt of a party behind a server; the miniature's own prompts suit only its tiny model."""
    prompt_set = "en" if cfg.run.prompt_set == "mini" else cfg.run.prompt_set
    return prompt_files.load_prompt(name, prompt_set, cfg.run.prompt_dir)


def make_questions(
    cfg: Config, limits: Role, role: str, prompt: str, run: RunFolder, *, defended: bool = True,
    failure_limit: float | None = None,
) -> Questions:  # fmt: skip
    """A role's questions; answers, cached ones too, go to judgements/llm_<role>.jsonl. `defended=False`
    pastes texts in unquoted; `failure_limit` replaces `run.max_judge_failure_rate`."""
    endpoint = open_endpoint(cfg, role, run)  # first: it says what is missing
    tally = FailureTally(cfg.run.max_judge_failure_rate if failure_limit is None else failure_limit)
    name = role if defended else f"{role}_undefended"
    file = Path(getattr(run, "dir", run)) / "judgements" / f"llm_{name}.jsonl"
    return Questions(endpoint, JudgePrompt.read(load_prompt(cfg, prompt)), tally, limits, file, defended)
