"""How a row of the tables becomes a method: `settings.kinds.METHODS` says what each is, and here it is
made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.protocols import Completion, Message, Policy
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


@dataclass(frozen=True)
class Question:
    """Prompts that a method puts to its policy together, one completion each; `options` of `generate`."""

    policy: Policy
    messages: Sequence[list[Message]]
    seed: int
    options: Mapping[str, Any]


# Questions out, completions in, answers at the end: so several methods' questions can be asked at once.
Asking = Generator[Question, list[Completion], list[Answer]]


class Asks(ABC):
    """A method that asks a policy, in `questions`."""

    @abstractmethod
    def questions(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> Asking:
        """What it asks about these dialogues, one question after the other."""

    def respond(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> list[Answer]:
        """One sampled answer a dialogue; the same seed gives the same answers."""
        return respond_together([(self, personas, dialogues, seed)])[0]


class Method(Protocol):
    """Answers the pending utterance of each dialogue. Only a control may look at the personas."""

    name: str
    writes_profile: bool

    def respond(
        self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int
    ) -> list[Answer]: ...


Case = tuple[Method, Sequence[Persona], Sequence[Dialogue], int]  # what `respond` takes, method first


def respond_together(cases: Sequence[Case]) -> list[list[Answer]]:
    """The answers of each case, as its own `respond` gives them. Questions that share a policy which takes a
    seed a prompt are put to it in one batch."""
    answers: list[list[Answer]] = [[] for _ in cases]
    asking, said = {}, dict[int, list[Completion] | None]()
    for i, (method, *case) in enumerate(cases):
        if isinstance(method, Asks):
            asking[i], said[i] = method.questions(*case), None
        else:
            answers[i] = method.respond(*case)
    while asking:
        asked = dict[int, Question]()
        for i, talk in list(asking.items()):
            try:
                asked[i] = talk.send(said[i])
            except StopIteration as end:
                answers[i] = end.value
                del asking[i]
        said = _put(asked)
    return answers


def _put(asked: Mapping[int, Question]) -> dict[int, list[Completion]]:
    """The completions of each question, in as few batches as the policies allow."""
    batches, said = list[list[int]](), dict[int, list[Completion]]()
    for i, question in asked.items():
        for batch in batches:
            first = asked[batch[0]]
            same = question.policy is first.policy and question.options == first.options
            if same and getattr(question.policy, "seed_each", False):
                batch.append(i)
                break
        else:
            batches.append([i])
    for batch in batches:
        policy, options = asked[batch[0]].policy, asked[batch[0]].options
        messages = [talk for i in batch for talk in asked[i].messages]
        seeds = [asked[i].seed for i in batch for _ in asked[i].messages]
        seed = seeds if len(batch) > 1 else asked[batch[0]].seed
        groups = iter(policy.generate(messages, 1, seed=seed, **options))
        said |= {i: [next(groups)[0] for _ in asked[i].messages] for i in batch}
    return said


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
