"""Lockstep rollouts: a cohort of dialogues advances one turn at a time, with N scored samples per prompt."""

import itertools
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from pydantic import TypeAdapter

from rlpa_lib.dialogue.dialogue import Dialogue, policy_view
from rlpa_lib.dialogue.judging import DIMENSIONS, Judge
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Reply, Strictness, parse_released_reply, parse_reply
from rlpa_lib.dialogue.protocols import Completion, Policy, SimulatedUser
from rlpa_lib.dialogue.turns import play_turn
from rlpa_lib.rlpa.rewards import Reward, score_replies
from rlpa_lib.runs import storage
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import REWARD_CRITERIA

CONTINUATIONS = ("best", "random", "independent")


@dataclass(frozen=True)
class Sample:
    """One completion of a prompt; `reward` is None where the judge gave no readable answer (no training)."""

    completion: Completion
    reply: Reply
    reward: Reward | None


@dataclass(frozen=True)
class TurnGroup:
    """The N samples of a prompt at turn `turn` (from 1) of a dialogue, which sample `chosen` continued."""

    dialogue_id: str
    turn: int
    prompt_ids: tuple[int, ...]
    samples: tuple[Sample, ...]
    chosen: int

    @property
    def completion(self) -> str:
        """Text of the chosen sample."""
        return self.samples[self.chosen].completion.text

    @property
    def reply(self) -> Reply:
        """Reply of the chosen sample."""
        return self.samples[self.chosen].reply


@dataclass(frozen=True)
class Cohort:
    """Dialogues that advance together, each with its persona."""

    personas: tuple[Persona, ...]
    dialogues: tuple[Dialogue, ...]

    @property
    def turn(self) -> int:
        """How many turns the dialogues have."""
        return len(self.dialogues[0].turns)


@dataclass(frozen=True)
class Sampling:
    """How a rollout samples: N per prompt, which of them continues, what the policy sees, what is rewarded.

    `max_new_tokens` is the longest completion; `fallback` stands for a reply of broken format
    (`Dialogue.answer`); `strictness` is how replies are read. InputError: an unknown continuation, or no
    sample at all.
    """

    samples: int
    continuation: str
    system_prompt: str
    history_profiles: str = "latest"
    parts: str = "PRR"
    temperature: float = 1.0
    max_new_tokens: int = 128
    fallback: str | None = None
    strictness: Strictness = "strict"

    def __post_init__(self) -> None:
        if self.continuation not in CONTINUATIONS:
            raise InputError(
                f"rollout.continuation: {self.continuation!r} is not one of {', '.join(CONTINUATIONS)}"
            )
        if self.samples < 1:
            raise InputError(f"rollout.samples: {self.samples} is less than 1")

    @property
    def per_dialogue(self) -> int:
        """Samples of a prompt: N, or with "independent" the one that each dialogue takes."""
        return 1 if self.continuation == "independent" else self.samples


def draw_cohort(pool: Sequence[Persona], users: int, cohort: int, seed: int) -> list[Persona]:
    """Users of the cohort-th cohort: the pool in seeded order, shuffled anew after each pass over all."""
    chosen = []
    for position in range(cohort * users, (cohort + 1) * users):
        rounds, place = divmod(position, len(pool))
        order = list(range(len(pool)))
        random.Random(derive_seed(seed, "personas", rounds)).shuffle(order)
        chosen.append(pool[order[place]])
    return chosen


def start(personas: Sequence[Persona], sampling: Sampling) -> Cohort:
    """Empty dialogues, one a persona; "independent" starts `samples` of them, which go their own ways."""
    copies = sampling.samples // sampling.per_dialogue
    ends = [f"-{copy}" for copy in range(copies)] if copies > 1 else [""]
    dialogues = [
        Dialogue(f"{index:04d}-{persona.id}{end}", persona.id)
        for index, persona in enumerate(personas)
        for end in ends
    ]
    return Cohort(tuple(persona for persona in personas for _ in ends), tuple(dialogues))


def advance(
    cohort: Cohort, policy: Policy, user: SimulatedUser, judge: Judge, sampling: Sampling, *, seed: int
) -> tuple[list[TurnGroup], Cohort]:
    """One turn of every dialogue: the user speaks, the policy samples, the judge scores, one sample stays."""
    turn = cohort.turn

    def sample(_, dialogues: Sequence[Dialogue]) -> list[list[Completion]]:
        shown = sampling.system_prompt, sampling.history_profiles, sampling.strictness
        views = [policy_view(d, *shown) for d in dialogues]
        return policy.generate(
            views, sampling.per_dialogue, seed=derive_seed(seed, "turn", turn),
            temperature=sampling.temperature, max_new_tokens=sampling.max_new_tokens,
        )

    def score_and_choose(personas, dialogues, completions) -> list[TurnGroup]:
        flat = [(i, completion) for i, group in enumerate(completions) for completion in group]
        read = parse_reply if sampling.strictness == "strict" else parse_released_reply
        replies = [read(completion.text) for _, completion in flat]
        rewards = score_replies(
            judge, [personas[i] for i, _ in flat], [dialogues[i] for i, _ in flat], replies, sampling.parts
        )
        scored = zip(flat, replies, rewards, strict=True)
        samples = (Sample(completion, reply, reward) for (_, completion), reply, reward in scored)
        groups = []
        for dialogue, group in zip(dialogues, completions, strict=True):
            own = tuple(itertools.islice(samples, len(group)))
            chosen = choose(own, sampling.continuation, derive_seed(seed, "continue", dialogue.id, turn))
            groups.append(TurnGroup(dialogue.id, turn + 1, group[0].prompt_ids, own, chosen))
        return groups

    played = play_turn(
        cohort.personas, cohort.dialogues, user, sample, score_and_choose, judge_chooses=True,
        fallback=sampling.fallback,
    )
    return list(played.judgements), replace(cohort, dialogues=tuple(played.dialogues))


def choose(samples: Sequence[Sample], continuation: str, seed: int) -> int:
    """Index of the sample that goes on: "best" has the highest total (first of equals), "random" is seeded.

    A sample without reward goes on only when no sample has one.
    """
    judged = [i for i, s in enumerate(samples) if s.reward is not None] or [0]
    if continuation == "random":
        return random.Random(seed).choice(judged)
    return max(judged, key=lambda i: samples[i].reward.total if samples[i].reward else 0.0)


@dataclass(frozen=True)
class KeptTurn:
    """One turn of a cohort that waits for its update: groups, dialogues after it, number of prompts cut."""

    groups: list[TurnGroup]
    dialogues: tuple[Dialogue, ...]
    prompts_cut: int


def load_turns(folder: Path, update: int) -> list[KeptTurn]:
    """The turns kept for this update, in order. Those of another are deleted: their weights are no more."""
    rows = [storage.read_jsonl(file)[0] for file in sorted(folder.glob("turn-*.jsonl"))]
    if any(row.pop("update", None) != update for row in rows):
        shutil.rmtree(folder)
        return []
    return TypeAdapter(list[KeptTurn]).validate_python(rows)


def reward_metrics(groups: Sequence[TurnGroup]) -> dict[str, float]:
    """Means over samples of every reward part, and what samples look like; shares 0..1, lengths in tokens."""
    samples = [s for g in groups for s in g.samples]
    rewards = [s.reward for s in samples if s.reward is not None]
    chosen = [r for g in groups if (r := g.samples[g.chosen].reward) is not None]
    guesses, inferred = sum(r.n_unrevealed_guesses for r in rewards), sum(r.n_inferred for r in rewards)
    matched, marked = sum(r.n_unrevealed_matched for r in rewards), [r for r in rewards if r.dimensions]
    return {
        "reward_total": fmean(r.total for r in rewards), "reward_profile": fmean(r.profile for r in rewards),
        "reward_response": fmean(r.response for r in rewards),
        "precision": fmean(r.precision for r in rewards), "recall": fmean(r.recall for r in rewards),
        "reward_total_chosen": fmean(r.total for r in chosen) if chosen else float("nan"),
        **{name: fmean(r.criteria[name] for r in rewards) for name in REWARD_CRITERIA},
        **{name: fmean(r.dimensions[name] for r in marked) for name in DIMENSIONS if marked},
        "format_rate": fmean(r.format_ok for r in rewards), "unjudged_share": 1 - len(rewards) / len(samples),
        "unrevealed_share": guesses / inferred if inferred else 0.0,
        "unrevealed_precision": matched / guesses if guesses else float("nan"),
        "profile_items": inferred / len(rewards),
        "distinct_responses": len({s.reply.response for s in samples}) / len(samples),
        "finished_share": fmean(s.completion.finished for s in samples),
        "completions_cut": sum(not s.completion.finished for s in samples),
        "prompt_tokens": fmean(len(g.prompt_ids) for g in groups),
        "completion_tokens": fmean(len(s.completion.token_ids) for s in samples),
    }


def sample_rows(groups: Sequence[TurnGroup]) -> list[dict]:
    """One row a sample for dialogues/: where it belongs, its text (and thought, if any) and its reward."""
    rows = []
    for g in groups:
        for i, s in enumerate(g.samples):
            thought = {"reasoning": s.completion.reasoning} if s.completion.reasoning else {}
            place = {"dialogue": g.dialogue_id, "turn": g.turn, "sample": i, "chosen": i == g.chosen}
            reward = None if s.reward is None else vars(s.reward)
            rows.append({**place, "completion": s.completion.text, **thought, "reward": reward})
    return rows
