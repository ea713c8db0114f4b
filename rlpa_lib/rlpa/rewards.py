"""Turn rewards: profile reward (eq. 2-3), response reward (eq. 4) and what of them counts (eq. 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.judging import Judge, Verdict
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import REWARD_CRITERIA

PARTS = ("PRR", "PR", "RR")
# For ablations: good format alone earns 1; PRR with one criterion left out of the product (eq. 4).
ABLATED = ("format", *(f"PRR-{name}" for name in REWARD_CRITERIA))


def precision_recall(n_inferred: int, n_true: int, n_matched: int) -> tuple[float, float]:
    """Precision and recall, 0 to 1, from item counts (eq. 2); 0 of nothing. ValueError: impossible counts."""
    _check_counts(n_inferred, n_true, n_matched)
    precision = n_matched / n_inferred if n_inferred else 0.0
    recall = n_matched / n_true if n_true else 0.0
    return precision, recall


def profile_f1(n_inferred: int, n_true: int, n_matched: int) -> float:
    """2 matched / (inferred + true), 0 to 1 (eq. 3); 0 without a match. ValueError: impossible counts."""
    _check_counts(n_inferred, n_true, n_matched)
    if n_matched == 0:
        return 0.0
    return 2.0 * n_matched / (n_inferred + n_true)


def _check_counts(n_inferred: int, n_true: int, n_matched: int) -> None:
    """ValueError: a negative count, or more matches than either side has items."""
    if min(n_inferred, n_true, n_matched) < 0:
        raise ValueError(f"negative count: inferred {n_inferred}, true {n_true}, matched {n_matched}")
    if n_matched > min(n_inferred, n_true):
        raise ValueError(f"{n_matched} matches, but only {n_inferred} inferred and {n_true} true items")


def response_reward(criteria: Mapping[str, int], left_out: str = "") -> float:
    """Response reward, 0 or 1: the product N * R * L * G * F (eq. 4), for ablations without one criterion."""
    return float(all(mark for name, mark in criteria.items() if name != left_out))


def check_parts(parts: str) -> None:
    """InputError unless `parts` is one of PARTS or ABLATED."""
    if parts not in (*PARTS, *ABLATED):
        raise InputError(f"ppo.reward_parts: {parts!r} is not one of {', '.join((*PARTS, *ABLATED))}")


def total_reward(profile: float, criteria: Mapping[str, int], parts: str = "PRR") -> float:
    """Reward of a well-formed reply: profile reward plus response reward (eq. 5), or the parts that count.

    `parts`: PRR both, PR the profile's alone, RR the response's; ABLATED has the others. InputError: no such.
    """
    check_parts(parts)
    counted, _, left_out = parts.partition("-")
    response = response_reward(criteria, left_out)
    return {"PRR": profile + response, "PR": profile, "RR": response, "format": 1.0}[counted]


@dataclass(frozen=True)
class Reward:
    """One sample's reward with every component kept; `total` in 0..2 for PRR, 0..1 for PR and RR."""

    format_ok: bool
    precision: float = 0.0
    recall: float = 0.0
    profile: float = 0.0
    criteria: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REWARD_CRITERIA, 0))
    response: float = 0.0
    total: float = 0.0
    n_unrevealed_guesses: int = 0
    n_inferred: int = 0
    n_unrevealed_matched: int = 0  # unrevealed guesses that the judge matched with a true item
    dimensions: dict[str, int] = field(default_factory=dict)  # section 3.3, if marked; they earn nothing


def broken_format_reward() -> Reward:
    """The reward of a reply of broken format: zero in every part, and no judge is asked (released code)."""
    return Reward(format_ok=False)


def score(
    reply: Reply, true_profile: Profile, ledger_slots: frozenset[str], pairs: Sequence[tuple[int, int]],
    verdict: Verdict, parts: str = "PRR",
) -> Reward:  # fmt: skip
    """Reward of one well or badly formed reply (sections 3.2-3.4, eq. 2-5).

    `ledger_slots` are the slots the user has revealed so far; `pairs` the judge's one-to-one matches between
    items of `reply.profile` and of `true_profile`; `parts` as in `total_reward`. InputError: `parts` is
    unknown.
    """
    check_parts(parts)
    if not reply.format_ok:
        return broken_format_reward()
    counts = len(reply.profile), len(true_profile), len(pairs)
    precision, recall = precision_recall(*counts)
    profile = profile_f1(*counts)
    criteria = {name: int(verdict.marks[name]) for name in REWARD_CRITERIA}
    guesses = {i for i, (slot, _) in enumerate(reply.profile.items) if slot not in ledger_slots}
    return Reward(
        format_ok=True, precision=precision, recall=recall, profile=profile, criteria=criteria,
        response=response_reward(criteria), total=total_reward(profile, criteria, parts),
        n_unrevealed_guesses=len(guesses), n_inferred=len(reply.profile),
        n_unrevealed_matched=sum(inferred in guesses for inferred, _ in pairs),
        dimensions={name: int(mark) for name, mark in verdict.dimensions.items()},
    )  # fmt: skip


def score_replies(
    judge: Judge, personas: Sequence[Persona], dialogues: Sequence[Dialogue], replies: Sequence[Reply],
    parts: str = "PRR",
) -> list[Reward | None]:  # fmt: skip
    """Rewards of a batch, one persona and one pending dialogue a reply; one judge call per kind of question.

    The profile is held against the true one, the response against the inferred one (section 3.3). None stands
    where the judge gave no readable answer: such a sample is left out, it is neither 0 nor 1.
    """
    check_parts(parts)
    asked = [i for i, reply in enumerate(replies) if reply.format_ok]
    matches = judge.matches([(replies[i].profile, personas[i].profile) for i in asked])
    verdicts = judge.responses([(dialogues[i], replies[i]) for i in asked])
    rewards: list[Reward | None] = [broken_format_reward() for _ in replies]
    for i, pairs, verdict in zip(asked, matches, verdicts, strict=True):
        if pairs is None or verdict is None:
            rewards[i] = None
        else:
            revealed = frozenset(dialogues[i].ledger())
            rewards[i] = score(replies[i], personas[i].profile, revealed, pairs, verdict, parts)
    return rewards
