"""Lockstep rollouts: a cohort of dialogues advances one turn at a time, with N scored samples per prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rlpa_lib.dialogue.dialogue import Dialogue, policy_view
from rlpa_lib.dialogue.judging import Judge
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Reply, parse_reply
from rlpa_lib.dialogue.protocols import Completion, Policy, SimulatedUser
from rlpa_lib.rlpa.rewards import Reward, score_replies
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import InputError

Continuation = Literal["best", "random", "independent"]
CONTINUATIONS = ("best", "random", "independent")


@dataclass(frozen=True)
class Sample:
    """One completion of a prompt; `reward` is None when the judge gave no readable answer (then it does not train)."""

    completion: Completion
    reply: Reply
    reward: Reward | None


@dataclass(frozen=True)
class TurnGroup:
    """The N samples of one prompt: turn `turn` (from 1) of a dialogue; `chosen` is the sample that continued it."""

    dialogue_id: str
    turn: int
    prompt_ids: tuple[int, ...]
    samples: tuple[Sample, ...]
    chosen: int


@dataclass(frozen=True)
class Cohort:
    """Dialogues that advance together, each with its persona; `turn` counts the turns already taken."""

    personas: tuple[Persona, ...]
    dialogues: tuple[Dialogue, ...]
    turn: int = 0


@dataclass(frozen=True)
class Sampling:
    """How a rollout samples: N per prompt, which of them continues, temperature, longest completion, what the policy sees, also of a
    reply whose format is broken (`Dialogue.answer`)."""

    samples: int
    continuation: Continuation
    system_prompt: str
    history_profiles: str = "latest"
    parts: str = "PRR"
    temperature: float = 1.0
    max_new_tokens: int = 128
    fallback: str | None = None

    def __post_init__(self) -> None:
        if self.continuation not in CONTINUATIONS:
            raise InputError(f"rollout.continuation: {self.continuation!r} is not one of {', '.join(CONTINUATIONS)}")
        if self.samples < 1:
            raise InputError(f"rollout.samples: {self.samples} is less than 1")


def start(personas: Sequence[Persona], sampling: Sampling) -> Cohort:
    """Empty dialogues, one a persona; "independent" starts `samples` of them, which go their own ways from turn 1 on."""
    copies = sampling.samples if sampling.continuation == "independent" else 1
    pairs = [
        (persona, Dialogue(f"{index:04d}-{persona.id}" + (f"-{copy}" if copies > 1 else ""), persona.id))
        for index, persona in enumerate(personas)
        for copy in range(copies)
    ]
    return Cohort(tuple(p for p, _ in pairs), tuple(d for _, d in pairs))


def advance(
    cohort: Cohort, policy: Policy, user: SimulatedUser, judge: Judge, sampling: Sampling, *, seed: int
) -> tuple[list[TurnGroup], Cohort]:
    """One turn of every dialogue: the user speaks, the policy is sampled, the judge scores, one sample continues.

    With "independent" each group holds the one sample that its dialogue took.
    """
    dialogues = _heard(cohort, user)
    n = 1 if sampling.continuation == "independent" else sampling.samples
    views = [policy_view(d, sampling.system_prompt, sampling.history_profiles) for d in dialogues]
    completions = policy.generate(
        views,
        n,
        seed=derive_seed(seed, "turn", cohort.turn),
        temperature=sampling.temperature,
        max_new_tokens=sampling.max_new_tokens,
    )
    flat = [c for group in completions for c in group]
    replies = [parse_reply(c.text) for c in flat]
    repeated = [i for i, group in enumerate(completions) for _ in group]
    rewards = score_replies(
        judge, [cohort.personas[i] for i in repeated], [dialogues[i] for i in repeated], replies, sampling.parts
    )
    scored = [Sample(*parts) for parts in zip(flat, replies, rewards, strict=True)]
    groups, answered = [], []
    for i, dialogue in enumerate(dialogues):
        samples = tuple(scored[i * n : (i + 1) * n])
        chosen = choose(samples, sampling.continuation, derive_seed(seed, "continue", dialogue.id, cohort.turn))
        groups.append(TurnGroup(dialogue.id, cohort.turn + 1, samples[0].completion.prompt_ids, samples, chosen))
        answered.append(dialogue.answer(samples[chosen].completion.text, samples[chosen].reply, sampling.fallback))
    return groups, replace(cohort, dialogues=tuple(answered), turn=cohort.turn + 1)


def _heard(cohort: Cohort, user: SimulatedUser) -> list[Dialogue]:
    utterances = user.reply(cohort.personas, cohort.dialogues)
    return [d.hear(u) for d, u in zip(cohort.dialogues, utterances, strict=True)]


def choose(samples: Sequence[Sample], continuation: str, seed: int) -> int:
    """Index of the sample that goes on: "best" takes the highest total (the first of equals), "random" a seeded one.

    A sample without reward goes on only when no sample has one.
    """
    judged = [i for i, s in enumerate(samples) if s.reward is not None] or [0]
    if continuation == "random":
        return random.Random(seed).choice(judged)
    return max(judged, key=lambda i: samples[i].reward.total if samples[i].reward else 0.0)


def rollout(
    policy: Policy,
    user: SimulatedUser,
    judge: Judge,
    personas: Sequence[Persona],
    *,
    turns: int,
    samples: int,
    continuation: Continuation = "best",
    system_prompt: str,
    history_profiles: str = "latest",
    parts: str = "PRR",
    seed: int,
    temperature: float = 1.0,
    max_new_tokens: int = 128,
) -> list[TurnGroup]:
    """Groups of whole dialogues under fixed weights: E dialogues x K turns, ordered by turn, then dialogue."""
    sampling = Sampling(samples, continuation, system_prompt, history_profiles, parts, temperature, max_new_tokens)
    cohort, groups = start(personas, sampling), []
    for _ in range(turns):
        done, cohort = advance(cohort, policy, user, judge, sampling, seed=seed)
        groups += done
    return groups
