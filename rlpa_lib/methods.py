"""Methods: how a dialogue becomes an answer. Every row of table 1 is one of these (appendix D.2 and section 3)."""
from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rlpa_lib import prompts
from rlpa_lib.dialogue import Dialogue, policy_view
from rlpa_lib.personas import Persona
from rlpa_lib.policies import Policy, derive_seed
from rlpa_lib.profile import Profile, Reply, parse_reply, render_reply


@dataclass(frozen=True)
class Answer:
    """What a method did at one turn: the raw text, the reply read in it, and how many tokens it generated."""

    completion: str
    reply: Reply
    n_tokens: int


class Method(Protocol):
    """Answers the pending utterance of each dialogue. Only a control may look at the personas."""

    name: str
    writes_profile: bool

    def respond(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> list[Answer]: ...


@dataclass(frozen=True)
class Prompted:
    """A policy behind one system prompt. With `writes_profile` the answer is a profile block and a response (RLPA, and
    RLPA prompting: the same without training); without, the whole text is the response (Base)."""

    name: str
    policy: Policy
    system_prompt: str
    writes_profile: bool
    history_profiles: str = "latest"
    temperature: float = 1.0
    max_new_tokens: int = 128

    def respond(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> list[Answer]:
        """One sampled answer a dialogue; the same seed gives the same answers."""
        history = self.history_profiles if self.writes_profile else "none"
        completions = self.policy.generate(
            [policy_view(d, self.system_prompt, history) for d in dialogues], 1, seed=seed,
            temperature=self.temperature, max_new_tokens=self.max_new_tokens)
        return [self._answer(c[0].text, len(c[0].token_ids)) for c in completions]

    def _answer(self, text: str, n_tokens: int) -> Answer:
        reply = parse_reply(text) if self.writes_profile else Reply(Profile(()), text.strip(), bool(text.strip()))
        return Answer(text, reply, n_tokens)


@dataclass(frozen=True)
class OracleControl:
    """The ceiling: a scripted assistant that sees the true profile."""

    name: str = "oracle"
    writes_profile: bool = True

    def respond(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> list[Answer]:
        """Profile and response from mini.teacher, drawn by seed and dialogue."""
        from rlpa_lib.mini.teacher import oracle_reply

        answers = []
        for persona, dialogue in zip(personas, dialogues, strict=True):
            profile, response = oracle_reply(persona, dialogue, random.Random(derive_seed(seed, dialogue.id)))
            answers.append(Answer(render_reply(profile, response), Reply(profile, response, True), 0))
        return answers


@dataclass(frozen=True)
class RandomControl:
    """The floor: a well-formed response that was once given to somebody else, and an empty profile."""

    pool: tuple[str, ...]
    name: str = "random"
    writes_profile: bool = True

    def respond(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue], seed: int) -> list[Answer]:
        """One response of the pool each, drawn by seed and dialogue."""
        drawn = [random.Random(derive_seed(seed, d.id)).choice(self.pool) for d in dialogues]
        return [Answer(r, Reply(Profile(()), r, True), 0) for r in drawn]


def build(name: str, policy: Policy | None, cfg) -> Method:
    """The method of a row, by its name in `evaluation.methods`; `policy` is the model that it runs on (None for controls)."""
    common = {"temperature": cfg.evaluation.temperature, "max_new_tokens": cfg.rollout.max_new_tokens}
    if name == "oracle":
        return OracleControl()
    if name == "random":
        from rlpa_lib.mini.teacher import response_pool

        return RandomControl(response_pool())
    system = prompts.load("base" if name == "base" else "policy", cfg.run.prompt_set, cfg.run.prompt_dir)
    return Prompted(name, policy, system, name != "base", cfg.ppo.history_profiles, **common)
