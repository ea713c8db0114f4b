"""A preference that changes in mid-dialogue (section 5.2): what changes, and how fast the profile follows.

Axes: E users, K turns; the persona changes at turn `at` (from 1). Recovery time and stale values are ours."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np
import pandas as pd

from rlpa_lib.agents import world
from rlpa_lib.agents.users import Shift
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.judging import Judge
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import SLOTS, Profile
from rlpa_lib.evaluation import intervals
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import InputError

# What can change within a talk and leaves nothing of the old value, unlike age, childhood or a degree.
CHANGEABLE = ("Interests", "Occupation", "Marital Status", "Location")
NAME = "conflict"  # in file names, where a benchmark's name stands otherwise


def draw_shifts(personas: Sequence[Persona], seed: int) -> dict[str, Shift]:
    """Persona id -> what changes: a slot, and another person's value of it that means something else. Drawn
    by seed and person alone. InputError: a persona has no slot that could change."""
    values, shifts = defaultdict(set), {}
    for slot, value in (item for person in personas for item in person.profile.items):
        values[slot].add(value)
    for person in personas:
        own, rng = dict(person.profile.items), random.Random(derive_seed("shift", seed, person.id))
        slots = [slot for slot in own if slot in CHANGEABLE or slot not in SLOTS]
        for slot in rng.sample(slots, len(slots)):
            old = own[slot]
            others = [
                new for new in sorted(values[slot])
                if not (world.same_value(slot, new, old) or world.same_value(slot, old, new))
            ]  # fmt: skip
            if others:
                shifts[person.id] = Shift(slot, old, rng.choice(others))
                break
        else:
            needed = f"it needs one of {', '.join(CHANGEABLE)} and another value for it"
            raise InputError(f"conflict: nothing of persona {person.id} can change: {needed}")
    return shifts


def shift_table(personas: Sequence[Persona], shifts: Mapping[str, Shift], at: int) -> pd.DataFrame:
    """What was drawn: columns user, turn, slot, old, new."""
    changed = [person.id for person in personas if person.id in shifts]
    return pd.DataFrame([{"user": user, "turn": at, **vars(shifts[user])} for user in changed])


def check_profiles(dialogues: Sequence[Dialogue], shifts: Mapping[str, Shift], judge: Judge) -> pd.DataFrame:
    """Whether inferred profiles hold the new and the old value: columns user, turn, holds_new, holds_old. 1,
    0, or NaN where the judge failed. A value counts under its slot, as `judge` matches."""
    keys, pairs = [], []
    for dialogue in dialogues:
        shift = shifts[dialogue.persona_id]
        for turn, played in enumerate(dialogue.turns, start=1):
            keys.append((dialogue.persona_id, turn))
            values = [Profile(((shift.slot, value),)) for value in (shift.new, shift.old)]
            pairs += [(played.reply.profile, value) for value in values]
    found = [np.nan if match is None else float(bool(match)) for match in judge.matches(pairs)]
    rows = [(*key, new, old) for key, new, old in zip(keys, found[::2], found[1::2], strict=True)]
    return pd.DataFrame(rows, columns=["user", "turn", "holds_new", "holds_old"])


def measure_recovery(table: pd.DataFrame, at: int) -> pd.Series:
    """Turns after the change until the profile holds the new value and not the old one, by user. 0 when it
    does at the very turn of the change, inf when it never does. What it does later does not count."""
    after = table[table["turn"] >= at]
    good = after[(after["holds_new"] == 1) & (after["holds_old"] == 0)]
    first = (good.groupby("user")["turn"].min() - at).astype(float)
    return first.reindex(list(dict.fromkeys(table["user"])), fill_value=np.inf)


def summarize_recovery(table: pd.DataFrame, at: int) -> dict[str, float]:
    """Recovery in one row, 95 % intervals over users. knew_old: share of profiles that held the old value one
    turn before; recovered: share that came to hold the new value and not the old one; median_turns: median
    recovery time, inf when most never recover; at_once: share with recovery time 0; stale: share of (user,
    turn from `at` on) at which the profile holds the old value; holds_new: the same for the new one."""
    times = measure_recovery(table, at)
    n, recovered = len(times), int(np.isfinite(times).sum())
    share = intervals.Interval(recovered / n, *map(float, intervals.binomial_interval(recovered, n)))
    row = {"users": n, "knew_old": float(table.loc[table["turn"] == at - 1, "holds_old"].mean())}
    row |= share.columns("recovered")
    row |= {"median_turns": float(median(times)), "at_once": float((times == 0).mean())}
    after = table[table["turn"] >= at]
    for name, column in (("stale", "holds_old"), ("holds_new", "holds_new")):
        table_EK = after.pivot(index="user", columns="turn", values=column).to_numpy()
        row |= intervals.bootstrap_interval(table_EK).columns(name)
    return row


def profile_curves(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Share of profiles that hold the old and the new value, by method and turn, with exact 95 % intervals.
    Columns method, value (old or new), turn, share, low, high, in [0, 1]."""
    rows = []
    for method, table in tables.items():
        for value in ("old", "new"):
            column = f"holds_{value}"
            for turn, part in table.dropna(subset=column).groupby("turn")[column]:
                ends = map(float, intervals.binomial_interval(part.sum(), len(part)))
                rows.append((method, value, int(turn), float(part.mean()), *ends))
    return pd.DataFrame(rows, columns=["method", "value", "turn", "share", "low", "high"])


def alignment_curves(scores: Mapping[str, np.ndarray], calm: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """AL(k) in percent with exact 95 % intervals, from scores (E, K) by row. Columns method, users (change or
    no change), turn, al, low, high. `calm` are the same users without a change, as far as they were
    played."""
    rows = []
    for kind, tables in (("change", scores), ("no change", calm)):
        for method, table in tables.items():
            levels = intervals.alignment_interval(table)
            rows += [(method, kind, k, *level.scale(100)) for k, level in enumerate(levels, start=1)]
    return pd.DataFrame(rows, columns=["method", "users", "turn", "al", "low", "high"])


def compare_before_after(scores_EK: np.ndarray, at: int) -> dict[str, float]:
    """Alignment in percent around the change. Mean before (from turn 2 on: at turn 1 only "Hello" was said)
    and after, their paired difference over users, and the drop from turn at-1 to turn at, both with 95 %
    intervals and permutation p-values."""
    before, after = (np.nanmean(part, axis=1) for part in (scores_EK[:, 1 : at - 1], scores_EK[:, at - 1 :]))
    row = {"before": 100 * float(np.nanmean(before)), "after": 100 * float(np.nanmean(after))}
    pairs = {"change": (after, before), "drop": (scores_EK[:, at - 1], scores_EK[:, at - 2])}
    for name, (a, b) in pairs.items():
        found = intervals.paired_difference(a, b)
        row |= found.columns(name, 100) | {f"{name}_p": found.p_value}
    return row
