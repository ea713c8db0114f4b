"""The paper's tables 1 (summary), 4 and 5 (turn by turn), and paired comparisons, all with intervals.

A row's key is its method, or "method@model" for a model of evaluation.comparators (`rows.Row.name`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from rlpa_lib.evaluation import intervals, metrics
from rlpa_lib.evaluation.curve_intervals import improvement_interval
from rlpa_lib.evaluation.intervals import Interval
from rlpa_lib.settings.kinds import METHODS

# (row key, benchmark) -> scores (E, K) in 0..1.
Scores = Mapping[tuple[str, str], np.ndarray]
TABLE_OF = {"vanilla": "table4", "extended": "table5"}


def arrange_rows(names: Iterable[str]) -> list[str]:
    """Row keys as the tables list them: other models first, as in the paper, then the order of METHODS."""
    order = list(METHODS)
    return sorted(names, key=lambda name: -1 if "@" in name else order.index(name))


def label_row(name: str, model: str) -> tuple[str, str]:
    """(model, method) as the tables print them; a hub name loses its owner."""
    method, _, other = name.partition("@")
    return other or model.rstrip("/").rpartition("/")[2], METHODS[method].label


def name_row(name: str) -> str:
    """A row of any model in one text: its method, after the name of its model where that is another one."""
    return ", ".join(part for part in label_row(name, "") if part)


def summary(scores_EK: np.ndarray, seed: int = 0) -> dict[str, float]:
    """avg (percent), N-IR and N-R² as in `improvement`, each with its interval over users."""
    average = intervals.bootstrap_interval(scores_EK, seed=seed)
    return average.columns("avg", 100) | improvement(scores_EK, seed)


def improvement(scores: np.ndarray, seed: int = 0) -> dict[str, float]:
    """N-IR and N-R² in both normalisations (n_ir, n_ir_running, ...), from (E, K) or (S, E, K)."""
    # table 1 and the turn-by-turn tables ask for the same rows
    return dict(_improvement(np.ascontiguousarray(scores, dtype=float).tobytes(), scores.shape, seed))


@lru_cache(maxsize=512)
def _improvement(data: bytes, shape: tuple[int, ...], seed: int) -> dict[str, float]:
    scores, row = np.frombuffer(data).reshape(shape), {}
    for norm, suffix in (("global", ""), ("running", "_running")):
        for name in ("n_ir", "n_r2"):
            row |= improvement_interval(scores, name, norm, seed=seed).columns(name + suffix)
    return row


def turnwise_table(scores: Scores, benchmark: str, model: str) -> pd.DataFrame:
    """Table 4 or 5: AL(k) in percent with exact 95 % intervals, then `summary`."""
    names = arrange_rows(name for name, bench in scores if bench == benchmark)
    return pd.DataFrame([_label_cells(name, model) | turnwise_row(scores[name, benchmark]) for name in names])


def turnwise_row(scores_EK: np.ndarray) -> dict[str, float]:
    """k1 ... kK (AL(k) in percent) with exact intervals, then `summary`."""
    levels_K = metrics.alignment_level(scores_EK), *intervals.alignment_interval(scores_EK)
    row = {}
    for turn, level in enumerate(zip(*levels_K, strict=True), start=1):
        row |= Interval(*level).columns(f"k{turn}", 100)
    return row | summary(scores_EK)


def main_table(scores: Scores, model: str) -> pd.DataFrame:
    """Table 1: one row a method, benchmarks side by side; a benchmark that was not run leaves no column."""
    rows = []
    for name in arrange_rows(dict.fromkeys(name for name, _ in scores)):
        row = _label_cells(name, model)
        for benchmark in TABLE_OF:
            if (name, benchmark) in scores:
                found = summary(scores[name, benchmark])
                row |= {f"{benchmark}_{key}": value for key, value in found.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def paired_table(scores: Scores, treated: str = "rlpa") -> pd.DataFrame:
    """RLPA against each other row on the same users: percent points with interval, p, and p by Holm.

    The correction is over all comparisons of the table, both benchmarks and the controls included.
    """
    rows = []
    for benchmark in (b for b in TABLE_OF if (treated, b) in scores):
        for name in arrange_rows(name for name, bench in scores if bench == benchmark and name != treated):
            c = intervals.paired_difference(scores[treated, benchmark], scores[name, benchmark])
            percent = {"difference": 100 * c.difference, "low": 100 * c.low, "high": 100 * c.high}
            rows.append({"benchmark": benchmark, "method": name_row(name), **percent, "p": c.p_value})
    frame = pd.DataFrame(rows)
    return frame.assign(p_holm=intervals.adjust_holm(frame["p"])) if rows else frame


def without_first_turn(scores: Scores, treated: str = "rlpa") -> pd.DataFrame:
    """The paired table again without k = 1, where the user has said nothing but "Hello"."""
    return paired_table({key: table[:, 1:] for key, table in scores.items() if table.shape[1] > 1}, treated)


def seeds_table(by_seed: Sequence[Scores], model: str, treated: str = "rlpa") -> pd.DataFrame:
    """Over S seeds and their users: avg, N-IR and N-R² of each row that all have, and RLPA's avg minus it.

    With 95 % intervals. ValueError: fewer than three seeds.
    """
    rows = []
    scores = stack_seeds(by_seed)
    for benchmark in TABLE_OF:
        for name in arrange_rows(name for name, bench in scores if bench == benchmark):
            own = scores[name, benchmark]
            row = {"benchmark": benchmark, **_label_cells(name, model)}
            row |= {"seeds": own.shape[0], "users": own.shape[1], **average_over_seeds("avg", own)}
            if name != treated and (treated, benchmark) in scores:
                row |= average_over_seeds("rlpa_minus", scores[treated, benchmark] - own)
            rows.append(row | improvement(own))
    return pd.DataFrame(rows)


def stack_seeds(by_seed: Sequence[Scores]) -> dict[tuple[str, str], np.ndarray]:
    """Scores (S, E, K) of the rows that all seeds have."""
    common = set.intersection(*map(set, by_seed))
    return {key: np.stack([scores[key] for scores in by_seed]) for key in by_seed[0] if key in common}


def average_over_seeds(name: str, scores_SEK: np.ndarray) -> dict[str, float]:
    """`name` and its 95 % interval over seeds and users, in percent; differences are named ..._minus."""
    floor = -1.0 if name.endswith("_minus") else 0.0  # a t interval does not know where the scale ends
    found = intervals.seed_interval(scores_SEK, limits=(floor, 1.0))
    return Interval(found.estimate, max(floor, found.low), min(1.0, found.high)).columns(name, 100)


def _label_cells(name: str, model: str) -> dict[str, float | str]:
    return dict(zip(("model", "method"), label_row(name, model), strict=True))
