"""What a policy and a simulated user are (section 3.1); judges: `judging`, methods: `rlpa_lib.methods`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.persona import Persona

Message = dict[str, str]


@dataclass(frozen=True)
class Completion:
    """One sampled reply: the very ids that training uses, the end token included when `finished`.

    `logprobs`: natural logarithms at the sampling temperature, fp32, one per token id. `version`: updates of
    the server's adapter when it was sampled (0: none yet, or sampled in process). `dropped`: how many oldest
    turns did not fit into the prompt (see `agents.prompt_tokens.window`). `text` is what is said aloud,
    `reasoning` what was thought before it, in a think block ("": nothing).
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finished: bool
    version: int = field(default=0, kw_only=True)
    dropped: int = field(default=0, kw_only=True)
    reasoning: str = field(default="", kw_only=True)

    @property
    def n_generated(self) -> int:
        """How many tokens were generated; a policy behind an endpoint has a count but no ids."""
        return len(self.token_ids)

    @property
    def n_reasoning(self) -> int:
        """How many of them were thought rather than said, estimated from the lengths of both."""
        thought = len(self.reasoning)
        return round(self.n_generated * thought / (thought + len(self.text))) if thought else 0


class Policy(Protocol):
    """Anything that can answer: n completions for each message list, in order."""

    def generate(
        self, messages: Sequence[list[Message]], n: int, *, seed: int, temperature: float, max_new_tokens: int
    ) -> list[list[Completion]]: ...


class SimulatedUser(Protocol):
    """Stateless, so that runs can resume: it depends only on its seed, the persona and the transcript."""

    def reply(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue]) -> list[Utterance]:
        """The next utterance of each user, in order; a dialogue opens with "Hello" (appendix C.2)."""


@dataclass(frozen=True)
class News:
    """A slot that a user tells now, whatever its agenda; with an old value `was`, as a change in passing."""

    slot: str
    was: str | None = None


class InformedUser(SimulatedUser, Protocol):
    """A simulated user that can be told what to say."""

    def reply(
        self, personas: Sequence[Persona], dialogues: Sequence[Dialogue],
        news: Sequence[News | None] | None = None,
    ) -> list[Utterance]:
        """The next utterance of each user, in order; `news` (None: nothing) is worked into it."""
