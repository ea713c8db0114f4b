"""Turn rewards: profile reward (eq. 2-3), response reward (eq. 4) and what of them counts (eq. 5)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.judging import Judge, Verdict
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import REWARD_CRITERIA

# For ablations: good format alone earns 1; PRR with one criterion left out of the product (eq. 4).
ABLATED = ("format", *(f"PRR-{name}" for name in REWARD_CRITERIA))
PARTS = ("PRR", "PR", "RR", *ABLATED)


def precision_recall(n_inferred: int, n_true: int, n_matched: int) -> tuple[float, float]:
    """Precision and recall, 0 to 1, from item counts (eq. 2); 0 of nothing. ValueError: impossible counts."""
    if min(n_inferred, n_true, n_matched) < 0:
        raise ValueError(f"negative count: inferred {n_inferred}, true {n_true}, matched {n_matched}")
    if n_matched > min(n_inferred, n_true):
        raise ValueError(f"{n_matched} matches, but only {n_inferred} inferred and {n_true} true items")
    return n_matched / max(n_inferred, 1), n_matched / max(n_true, 1)


def profile_f1(n_inferred: int, n_true: int, n_matched: int) -> float:
    """2 matched / (inferred + true), 0 to 1 (eq. 3); 0 without a match. ValueError: impossible counts."""
    precision_recall(n_inferred, n_true, n_matched)  # refuses counts that cannot be
    return 2.0 * n_matched / max(n_inferred + n_true, 1)


def check_parts(parts: str) -> None:
    """InputError unless `parts` is one of PARTS."""
    if parts not in PARTS:
        raise InputError(f"ppo.reward_parts: {parts!r} is not one of {', '.join(PARTS)}")


@dataclass(frozen=True)
class Reward:
    """One sample's reward with every component kept; `total` in 0..2 for PRR, 0..1 for PR and RR.

    A reply of broken format has zero in every part, and no judge is asked (released code).
    """

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


def score(
    reply: Reply, true_profile: Profile, ledger_slots: frozenset[str], pairs: Sequence[tuple[int, int]],
    verdict: Verdict, parts: str = "PRR",
) -> Reward:
    """Reward of one well or badly formed reply (sections 3.2-3.4, eq. 2-5).

    `ledger_slots` are the slots the user has revealed so far; `pairs` the judge's one-to-one matches between
    items of `reply.profile` and of `true_profile`. `parts`: PRR profile plus response reward (eq. 5), PR the
    profile's alone, RR the response's; ABLATED has the others. InputError: no such parts.
    """
    check_parts(parts)
    if not reply.format_ok:
        return Reward(format_ok=False)
    counts = len(reply.profile), len(true_profile), len(pairs)
    precision, recall = precision_recall(*counts)
    profile = profile_f1(*counts)
    criteria = {name: int(verdict.marks[name]) for name in REWARD_CRITERIA}
    counted, _, left_out = parts.partition("-")
    response = float(all(criteria.values()))  # N * R * L * G * F (eq. 4)
    earned = float(all(mark for name, mark in criteria.items() if name != left_out))
    totals = {"PRR": profile + earned, "PR": profile, "RR": earned, "format": 1.0}
    guesses = {i for i, (slot, _) in enumerate(reply.profile.items) if slot not in ledger_slots}
    return Reward(
        format_ok=True, precision=precision, recall=recall, profile=profile, criteria=criteria,
        response=response, total=totals[counted], n_unrevealed_guesses=len(guesses),
        n_inferred=len(reply.profile), n_unrevealed_matched=sum(inferred in guesses for inferred, _ in pairs),
        dimensions={name: int(mark) for name, mark in verdict.dimensions.items()},
    )


def score_replies(
    judge: Judge, personas: Sequence[Persona], dialogues: Sequence[Dialogue], replies: Sequence[Reply],
    parts: str = "PRR",
) -> list[Reward | None]:
    """Rewards of a batch, one persona and one pending dialogue a reply; one judge call per kind of question.

    The profile is held against the true one, the response against the inferred one (section 3.3). None stands
    where the judge gave no readable answer: such a sample is left out, it is neither 0 nor 1.
    """
    check_parts(parts)
    asked = [i for i, reply in enumerate(replies) if reply.format_ok]
    matches = judge.matches([(replies[i].profile, personas[i].profile) for i in asked])
    verdicts = judge.responses([(dialogues[i], replies[i]) for i in asked])
    rewards: list[Reward | None] = [Reward(format_ok=False) for _ in replies]
    for i, pairs, verdict in zip(asked, matches, verdicts, strict=True):
        if pairs is None or verdict is None:
            rewards[i] = None
        else:
            revealed = frozenset(dialogues[i].ledger())
            rewards[i] = score(replies[i], personas[i].profile, revealed, pairs, verdict, parts)
    return rewards
