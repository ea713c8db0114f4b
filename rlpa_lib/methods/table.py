"""How a row of the tables becomes a method: `settings.kinds.METHODS` says what each is, and here it is
made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.protocols import Policy
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import EVALUATORS, METHODS, resolve
from rlpa_lib.settings.schema import Config

if TYPE_CHECKING:
    from rlpa_lib.methods.retrieval import SentenceEncoder


@dataclass(frozen=True)
class Step:
    """Something on the way to an answer that the user does not see; `n_tokens` were generated for it
    alone."""

    kind: str
    text: str
    n_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """What a method did at one turn: the raw text, the reply read in it, all tokens generated for it, the
    hidden steps, and how many of the oldest turns its prompt had no room for (`prompt_tokens.window`)."""

    completion: str
    reply: Reply
    n_tokens: int
    hidden: tuple[Step, ...] = ()
    n_dropped: int = 0


class Method(Protocol):
    """Answers the pending utterance of each dialogue. Only a control may look at the personas."""

    name: str
    writes_profile: bool

    def respond(
        self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int
    ) -> list[Answer]: ...


Donor = Callable[[Persona, Dialogue], Profile]  # whose profile stands before the answer of a borrower


@dataclass(frozen=True)
class Parts:
    """What a method may be made of. `policy` is None for a row that is scripted."""

    name: str
    cfg: Config
    policy: Policy | None = None
    encoder: SentenceEncoder | None = None
    donor: Donor | None = None

    def prompt(self, name: str) -> str:
        """A prompt of the run's set. InputError: there is none."""
        return prompt_files.load_prompt(name, self.cfg.run.prompt_set, self.cfg.run.prompt_dir)


def is_scripted(name: str, cfg: Config) -> bool:
    """Whether a row needs no model: the floor and the ceiling of a world that scripted judges read."""
    return bool(METHODS[name].scripted) and EVALUATORS[cfg.evaluator.kind].scripted


def build_method(parts: Parts) -> Method:
    """The method of a row, by its name in `evaluation.methods`. InputError: a prompt that it needs is not
    there."""
    entry = METHODS[parts.name]
    return resolve(entry.scripted if parts.policy is None else entry.make)(parts)


def check_prompts(name: str, cfg: Config) -> None:
    """Build the method without a model and fill its templates, so that a prompt of the user's own fails
    before any work. InputError names the prompt and what can be filled in."""
    if is_scripted(name, cfg):
        return
    parts = Parts(name, cfg, policy=object())  # it is not asked
    build_method(parts)
    for prompt, holes in METHODS[name].holes:
        try:
            parts.prompt(prompt).format(**{hole: 1 if hole == "number" else "" for hole in holes})
        except (KeyError, IndexError, ValueError) as error:
            allowed = ", ".join(f"{{{hole}}}" for hole in holes)
            raise InputError(f"prompt {prompt!r}: only {allowed} can be filled in ({error})") from None
