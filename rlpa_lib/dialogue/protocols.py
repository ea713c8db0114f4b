"""What a policy and a simulated user are (section 3.1); judges are in `judging`, methods in
`rlpa_lib.methods`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.persona import Persona

Message = dict[str, str]


@dataclass(frozen=True)
class Completion:
    """One sampled reply: the very ids that training uses, the end token included when `finished`.

    `logprobs` are natural logarithms at the temperature of sampling, fp32, one a token id. `version` counts
    the updates of the adapter that sampled it, where a server holds one (0: none yet, or sampled in process).
    `dropped` counts the oldest turns that its prompt had no room for (see `agents.prompt_tokens.window`).
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finished: bool
    version: int = field(default=0, kw_only=True)
    dropped: int = field(default=0, kw_only=True)

    @property
    def n_generated(self) -> int:
        """How many tokens were generated; a policy behind an endpoint has a count but no ids."""
        return len(self.token_ids)


class Policy(Protocol):
    """Anything that can answer: n completions for each message list, in order."""

    def generate(
        self, messages: Sequence[list[Message]], n: int, *, seed: int, temperature: float, max_new_tokens: int
    ) -> list[list[Completion]]: ...


class SimulatedUser(Protocol):
    """Stateless: what it says next depends on its seed, the persona and the transcript alone, so runs can be
    resumed."""

    def reply(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue]) -> list[Utterance]:
        """The next utterance of each user, in order; the first of every dialogue is "Hello" (appendix
        C.2)."""


@dataclass(frozen=True)
class News:
    """A slot that a user tells now, whatever its agenda says; with `was` its value has changed from that,
    which is said in passing."""

    slot: str
    was: str | None = None


class InformedUser(SimulatedUser, Protocol):
    """A simulated user that can be told what to say."""

    def reply(
        self, personas: Sequence[Persona], dialogues: Sequence[Dialogue],
        news: Sequence[News | None] | None = None,
    ) -> list[Utterance]:
        """The next utterance of each user, in order; `news` (None: nothing) is worked into it."""
