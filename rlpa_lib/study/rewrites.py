"""The test set of the profile judge (appendix H.1): per reference profile a items paraphrased and b altered, disjoint, with the truth kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import pandas as pd

from rlpa_lib.agents import parties
from rlpa_lib.dialogue.judging import Judge
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile
from rlpa_lib.evaluation import intervals
from rlpa_lib.evaluation.agreement_metrics import overlap_metrics
from rlpa_lib.mini import language
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.study.annotation import Item

LARGEST_ERROR = 10.0  # a profile has ten slots
# Of a slot and its value: another value in other words, or None where there is none.
Rewriter = Callable[[str, str, random.Random], str | None]
Counter = Callable[[Sequence[tuple[Profile, Profile]]], list[int | None]]  # overlap of (rewritten, reference) profiles; None: no readable answer


@dataclass(frozen=True)
class ItemPair:
    """An item of a reference profile and what became of it; `label` is "same" or "different"."""

    slot: str
    original: str
    rewritten: str
    label: str


@dataclass(frozen=True)
class Rewrite:
    """A reference profile and its rewriting, which holds the a + b rewritten items alone, in the order of the reference."""

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


def lexicon_paraphrase(slot: str, value: str, rng: random.Random) -> str | None:
    """Another phrasing that the miniature's lexicon lists. The rule judge reads the same lexicon, so this is its home ground."""
    others = [form for form in language.spoken_forms(slot, value) if form.casefold() != value.casefold()]
    return rng.choice(others) if others else None


def free_paraphrase(slot: str, value: str, rng: random.Random) -> str | None:
    """A phrasing that no lexicon lists, from mini/paraphrases.tsv (written by a language model for this test alone)."""
    found = _free().get((slot, value))
    return rng.choice(found) if found else None


def lexicon_alteration(slot: str, value: str, rng: random.Random) -> str | None:
    """Another value of the slot, in any of its phrasings: an age at least two years off, else a value of the same split."""
    if slot == "Age":
        years = lex.parse_age(value)
        return None if years is None else str(rng.choice([n for n in range(18, 90) if abs(n - years) >= 2]))
    if slot == "Gender":
        return rng.choice([name for name in lex.GENDERS if name != lex.gender_of(value)])
    own = lex.lexicon().find(value, slot)
    others = [other for other in lex.lexicon().values(slot, own.split if own else None) if other is not own]
    return rng.choice(rng.choice(others).forms) if others else None


def rewrite_set(
    personas: Sequence[Persona], seed: int, paraphrase: Rewriter = lexicon_paraphrase, alter: Rewriter = lexicon_alteration
) -> list[Rewrite]:
    """One rewriting a persona. a and b are drawn evenly, with 1 <= a + b <= items; the paper does not say how it drew them.

    InputError: an item can be neither paraphrased nor altered (its words are not the miniature's).
    """
    made = []
    for persona in personas:
        rng = random.Random(derive_seed(seed, "rewrite", persona.id))
        items = persona.profile.items
        same = {slot: new for slot, value in items if (new := paraphrase(slot, value, rng)) is not None}
        changed = {slot: new for slot, value in items if (new := alter(slot, value, rng)) is not None}
        a, b = rng.choice([(a, b) for a in range(len(same) + 1) for b in range(len(items) + 1 - a) if a + b])
        kept = rng.sample(sorted(same), a)
        rest = sorted(set(changed) - set(kept))
        if len(rest) < len(items) - a:
            missing = next(slot for slot, _ in items if slot not in (*kept, *rest))
            raise InputError(f"{persona.id}: {missing}: cannot be rewritten by the miniature's lexicon; use its built-in personas")
        turned = rng.sample(rest, b)
        pairs = [ItemPair(s, v, same[s], "same") if s in kept else ItemPair(s, v, changed[s], "different") for s, v in items if s in (*kept, *turned)]
        made.append(Rewrite(persona.id, persona.profile, tuple(pairs)))
    return made


def annotation_items(rewrites: Sequence[Rewrite], n: int, seed: int) -> list[Item]:
    """n item pairs for people, half of each system label as in table 7 (as far as there are so many)."""
    rng = random.Random(derive_seed(seed, "pairs"))
    chosen = []
    for label in ("same", "different"):
        of_label = [(r.id, pair) for r in rewrites for pair in r.pairs if pair.label == label]
        chosen += rng.sample(of_label, min(n // 2, len(of_label)))
    return [
        Item(f"{who}-{pair.slot}", ((pair.slot, (("first", pair.original), ("second", pair.rewritten))),), {"system": pair.label})
        for who, pair in chosen
    ]


def own_world(cfg: Config) -> bool:
    """Whether the miniature's own personas are rewritten, by its word lists: those of a run with other personas take a language model, which
    section `user` may not name."""
    return cfg.personas.source == "builtin" or cfg.user.model is None


def references(run: Run) -> list[Persona]:
    """`study.profiles` personas whose profiles are rewritten (see `own_world`): the Vanilla users, then training users where there are not
    as many."""
    cfg = run.cfg
    if own_world(cfg):
        cfg = cfg.model_copy(update={"personas": cfg.personas.model_copy(update={"source": "builtin"})})
    held_out = cfg.study.profiles if cfg.personas.source == "builtin" else min(cfg.study.profiles, cfg.evaluation.users)
    more = cfg.study.profiles - held_out
    first = parties.load_people(cfg, "vanilla", held_out, run.seed, run)
    return [*first, *(parties.load_people(cfg, "train", more, run.seed, run) if more else [])]


def sets(run: Run, references: Sequence[Persona]) -> dict[str, list[Rewrite]]:
    """The data sets of a run: listed and free paraphrases of the miniature's personas, or one written by the user's language model."""
    if own_world(run.cfg):
        free = rewrite_set(references, run.seed, free_paraphrase)
        return {"listed": rewrite_set(references, run.seed), "free": free}
    from rlpa_lib.study import study_models  # behind a server

    return {"written": rewrite_set(references, run.seed, *study_models.rewriters(run, references))}


def judges(run: Run) -> dict[str, Counter]:
    """Name -> how it counts: the run's profile judge, those of study.profile_judges, and the two floors."""
    cfg = run.cfg
    own = "rule judge" if cfg.judge.kind == "rule" else str(cfg.judge.profile_model or cfg.judge.model)
    given = {own: cfg.judge, **cfg.study.profile_judges}
    settings = {name: cfg.model_copy(update={"judge": one}) for name, one in given.items()}
    return {**{name: counter(parties.make_reward_judge(one, run)) for name, one in settings.items()}, "same text": same_text, "shared slots": shared_slots}


def counter(judge: Judge) -> Counter:
    """A profile judge as one that counts."""
    return lambda pairs: [None if found is None else len(found) for found in judge.matches(pairs)]


def shared_slots(pairs: Sequence[tuple[Profile, Profile]]) -> list[int | None]:
    """Counts every slot that both have, whatever it says: a floor."""
    return [len(set(one.slots()) & set(other.slots())) for one, other in pairs]


def same_text(pairs: Sequence[tuple[Profile, Profile]]) -> list[int | None]:
    """Counts items that are the same word for word: blind to every paraphrase."""
    return [len({(s, lex.normalise(v)) for s, v in one.items} & {(s, lex.normalise(v)) for s, v in other.items}) for one, other in pairs]


def counts(rewrites: Sequence[Rewrite], judges: Mapping[str, Counter]) -> pd.DataFrame:
    """One row a case and judge: case, judge, true, predicted (NaN where the judge gave no readable answer)."""
    asked = [(rewrite.rewritten, rewrite.reference) for rewrite in rewrites]
    rows = [
        {"case": rewrite.id, "judge": name, "true": rewrite.overlap, "predicted": predicted}
        for name, count in judges.items()
        for rewrite, predicted in zip(rewrites, count(asked), strict=True)
    ]
    return pd.DataFrame(rows).astype({"predicted": float})


def table8(found: pd.DataFrame) -> pd.DataFrame:
    """Table 8's columns, a row a judge: accuracies in percent with exact intervals, MSE and RMSE with bootstrap intervals over cases, n,
    and the mean error (below 0: the judge counts too few). Cases without an answer are left out and counted (`unanswered`)."""
    rows = []
    for name, part in found.groupby("judge", sort=False):
        answered = part.dropna(subset="predicted")
        error = (answered["predicted"] - answered["true"]).to_numpy()
        row = {"model": name, **overlap_metrics(answered["predicted"], answered["true"])}
        for column, hits in (("exact_acc", error == 0), ("fuzzy_acc", np.abs(error) <= 1)):
            low, high = intervals.binomial_interval(hits.sum(), len(hits))
            row |= {f"{column}_low": 100 * float(low), f"{column}_high": 100 * float(high)}
        reach = intervals.bootstrap_interval(error[:, None] ** 2, limits=(0.0, LARGEST_ERROR**2))
        row |= {"mse_low": max(0.0, reach.low), "mse_high": reach.high}
        row |= {"rmse_low": row["mse_low"] ** 0.5, "rmse_high": row["mse_high"] ** 0.5, "mean_error": float(error.mean()), "n": len(error),
                "unanswered": len(part) - len(answered)}  # fmt: skip
        rows.append(row)
    columns = [f"{c}{end}" for c in ("exact_acc", "fuzzy_acc", "mse", "rmse") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows)[["model", *columns, "mean_error", "n", "unanswered"]]


@cache
def _free() -> dict[tuple[str, str], list[str]]:
    text = (resources.files("rlpa_lib.mini") / "paraphrases.tsv").read_text(encoding="utf-8")
    found: dict[tuple[str, str], list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            slot, value, other = line.split("\t")
            found.setdefault((slot, value), []).append(other)
    return found
