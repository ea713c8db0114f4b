"""The test set of the profile judge (appendix H.1): of each profile a items paraphrased, b others altered."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rlpa_lib.agents import parties, world
from rlpa_lib.dialogue.judging import Judge
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile
from rlpa_lib.evaluation import intervals
from rlpa_lib.evaluation.agreement_metrics import overlap_metrics
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.base import ProfileJudgeConfig
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import JUDGES, SOURCES
from rlpa_lib.settings.roles import find_section
from rlpa_lib.study import models
from rlpa_lib.study.annotation import Item

LARGEST_ERROR = 10.0  # a profile has ten slots
# (slot, value, rng) -> the rewritten value, or None where there is none
Rewriter = Callable[[str, str, random.Random], str | None]
# Overlap of (rewritten, reference) profiles; None: no readable answer.
Counter = Callable[[Sequence[tuple[Profile, Profile]]], list[int | None]]


@dataclass(frozen=True)
class ItemPair:
    """An item of a reference profile and what became of it; `label` is "same" or "different"."""

    slot: str
    original: str
    rewritten: str
    label: str


@dataclass(frozen=True)
class Rewrite:
    """A reference profile and its rewriting, which holds the a + b rewritten items alone, in their order."""

    id: str
    reference: Profile
    pairs: tuple[ItemPair, ...]

    @property
    def rewritten(self) -> Profile:
        return Profile(tuple((pair.slot, pair.rewritten) for pair in self.pairs))

    @property
    def overlap(self) -> int:
        """The true count a (H.1)."""
        return sum(pair.label == "same" for pair in self.pairs)


def rewrite_set(
    personas: Sequence[Persona], seed: int, paraphrase: Rewriter = world.paraphrase_value,
    alter: Rewriter = world.change_value,
) -> list[Rewrite]:
    """One rewriting a persona: a and b drawn evenly, 1 <= a + b <= items (the paper does not say how).

    InputError: an item can be neither paraphrased nor altered (its words are not the miniature's).
    """
    made = []
    for persona in personas:
        rng = random.Random(derive_seed(seed, "rewrite", persona.id))
        items = persona.profile.items
        same = {slot: new for slot, value in items if (new := paraphrase(slot, value, rng)) is not None}
        changed = {slot: new for slot, value in items if (new := alter(slot, value, rng)) is not None}
        sizes = [(a, b) for a in range(len(same) + 1) for b in range(len(items) + 1 - a) if a + b]
        a, b = rng.choice(sizes)
        kept = rng.sample(sorted(same), a)
        rest = sorted(set(changed) - set(kept))
        for slot, _ in items:
            if slot not in (*kept, *rest):
                what_to_do = "cannot be rewritten by the miniature's lexicon; use its built-in personas"
                raise InputError(f"{persona.id}: {slot}: {what_to_do}")
        words = {slot: (same[slot], "same") for slot in kept}
        words |= {slot: (changed[slot], "different") for slot in rng.sample(rest, b)}
        pairs = tuple(ItemPair(slot, value, *words[slot]) for slot, value in items if slot in words)
        made.append(Rewrite(persona.id, persona.profile, pairs))
    return made


def make_items(rewrites: Sequence[Rewrite], n: int, seed: int) -> list[Item]:
    """n item pairs for people, half of each system label as in table 7 (as far as there are so many)."""
    rng = random.Random(derive_seed(seed, "pairs"))
    chosen = []
    for label in ("same", "different"):
        of_label = [(r.id, pair) for r in rewrites for pair in r.pairs if pair.label == label]
        chosen += rng.sample(of_label, min(n // 2, len(of_label)))
    return [
        Item(f"{who}-{p.slot}", ((p.slot, (("first", p.original), ("second", p.rewritten))),),
             {"system": p.label})  # fmt: skip
        for who, p in chosen
    ]


def uses_own_world(cfg: Config) -> bool:
    """Whether word lists rewrite the miniature's personas; others need a model, which `user` may not name."""
    return SOURCES[cfg.personas.source].scripted or cfg.user.model is None


def load_references(run: Run) -> list[Persona]:
    """`study.profiles` personas to rewrite: the Vanilla users, then training users if these are too few."""
    cfg, n = run.cfg, run.cfg.study.profiles
    if uses_own_world(cfg):
        cfg = cfg.model_copy(update={"personas": cfg.personas.model_copy(update={"source": "builtin"})})
    held_out = n if SOURCES[cfg.personas.source].scripted else min(n, cfg.evaluation.users)
    people = parties.load_people(cfg, "vanilla", held_out, run.seed, run)
    more = parties.load_people(cfg, "train", n - held_out, run.seed, run) if n > held_out else []
    return [*people, *more]


def make_sets(run: Run, references: Sequence[Persona]) -> dict[str, list[Rewrite]]:
    """The data sets of a run: the miniature's `listed` and `free` paraphrases, or `written` by a model."""
    if uses_own_world(run.cfg):
        free = rewrite_set(references, run.seed, world.paraphrase_freely)
        return {"listed": rewrite_set(references, run.seed), "free": free}
    return {"written": rewrite_set(references, run.seed, *models.make_rewriters(run, references))}


def make_judges(run: Run) -> dict[str, Counter]:
    """Name -> how it counts: the run's profile judge, those of study.profile_judges, and the two floors."""
    cfg = run.cfg
    own = JUDGES[cfg.judge.kind].label or str(find_section(cfg, "profile_judge")[1].model)
    others = {
        name: cfg.model_copy(update={"judge": section, "profile_judge": ProfileJudgeConfig()})
        for name, section in cfg.study.profile_judges.items()
    }
    counters: dict[str, Counter] = {
        name: count_with(parties.make_reward_judge(one, run)) for name, one in {own: cfg, **others}.items()
    }
    return {**counters, "same text": count_same_text, "shared slots": count_shared_slots}


def count_with(judge: Judge) -> Counter:
    """A counter of overlaps from a profile judge."""
    return lambda pairs: [None if found is None else len(found) for found in judge.matches(pairs)]


def count_shared_slots(pairs: Sequence[tuple[Profile, Profile]]) -> list[int | None]:
    """Count every slot that both have, whatever it says: a floor."""
    return [len({*one.slots()} & {*other.slots()}) for one, other in pairs]


def count_same_text(pairs: Sequence[tuple[Profile, Profile]]) -> list[int | None]:
    """Count items that are the same word for word: blind to every paraphrase."""
    texts = [[{(slot, world.normalise(v)) for slot, v in side.items} for side in pair] for pair in pairs]
    return [len(one & other) for one, other in texts]


def count_overlaps(rewrites: Sequence[Rewrite], judges: Mapping[str, Counter]) -> pd.DataFrame:
    """One row a case and judge: case, judge, true, predicted (NaN: no readable answer)."""
    asked = [(rewrite.rewritten, rewrite.reference) for rewrite in rewrites]
    return pd.DataFrame([
        {"case": rewrite.id, "judge": name, "true": rewrite.overlap, "predicted": predicted}
        for name, count in judges.items()
        for rewrite, predicted in zip(rewrites, count(asked), strict=True)
    ]).astype({"predicted": float})


def table8(found: pd.DataFrame) -> pd.DataFrame:
    """Table 8, a row a judge: accuracies in percent with exact, MSE and RMSE with bootstrap intervals.

    `mean_error` below 0: it counts too few. Unanswered cases are left out and counted (`unanswered`).
    """
    rows = []
    for name, part in found.groupby("judge", sort=False):
        answered = part.dropna(subset="predicted")
        error = (answered["predicted"] - answered["true"]).to_numpy()
        metrics = overlap_metrics(answered["predicted"], answered["true"])
        hits = ((error == 0).sum(), (abs(error) <= 1).sum())
        exact, fuzzy = (100 * np.array(intervals.binomial_interval(n, len(error))) for n in hits)
        reach = intervals.bootstrap_interval(error[:, None] ** 2, limits=(0.0, LARGEST_ERROR**2))
        mse = max(0.0, reach.low), reach.high
        row = {"model": name}
        for column, (low, high) in zip(metrics, (exact, fuzzy, mse, (e**0.5 for e in mse)), strict=True):
            row |= {column: metrics[column], f"{column}_low": low, f"{column}_high": high}
        missing = len(part) - len(answered)
        rows.append({**row, "mean_error": error.mean(), "n": len(error), "unanswered": missing})
    return pd.DataFrame(rows)
