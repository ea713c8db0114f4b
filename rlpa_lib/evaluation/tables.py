"""From judgements to the paper's tables: 1 (summary), 4 and 5 (turn by turn), and paired comparisons, all with intervals.

A row's key is its method, or "method@model" for a model of evaluation.comparators (`rows.Row.name`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from rlpa_lib.evaluation import curve_intervals, intervals, metrics

# (row key, benchmark) -> scores (E, K) in 0..1.
Scores = Mapping[tuple[str, str], np.ndarray]
TABLE_OF = {"vanilla": "table4", "extended": "table5"}
# The paper's rows in the paper's order, then ours.
LABELS = {"base": "Base", "reminder": "Reminder", "self_critic": "Self-Critic", "cot": "CoT", "rag": "RAG(Top-5)", "sft": "SFT",
          "dpo": "DPO", "rlpa": "RLPA", "rlpa_prompting": "RLPA prompting (untrained)", "grpo": "GRPO",
          "sft_aloe": "SFT (ALOE's scripts)", "dpo_aloe": "DPO (ALOE's scripts)", "style_only_empty": "RLPA, profile emptied",
          "style_only_other": "RLPA, another user's profile", "random": "random control", "oracle": "oracle control"}  # fmt: skip


def arranged(names: Iterable[str]) -> list[str]:
    """Row keys as the tables list them: other models first, as in the paper, then the order of LABELS."""
    order = list(LABELS)
    return sorted(names, key=lambda name: ("@" not in name, order.index(name.partition("@")[0]) if "@" not in name else 0))


def label(name: str, model: str) -> tuple[str, str]:
    """(model, method) as the tables print them; a hub name loses its owner."""
    method, _, other = name.partition("@")
    return other or model.rstrip("/").rpartition("/")[2], LABELS[method]


def summary(scores_EK: np.ndarray, seed: int = 0) -> dict[str, float]:
    """avg (percent), n_ir and n_r2 (eq. 8; with _running the other normalisation), each with its 95 % interval over users (_low, _high)."""
    average = intervals.bootstrap_interval(scores_EK, seed=seed)
    row = {"avg": 100 * average.estimate, "avg_low": 100 * average.low, "avg_high": 100 * average.high}
    return row | improvement(scores_EK, seed)


def improvement(scores: np.ndarray, seed: int = 0) -> dict[str, float]:
    """N-IR and N-R² under both normalisations with 95 % intervals, from scores (E, K), or (S, E, K) of 3 or more seeds."""
    # table 1 and the turn-by-turn tables ask for the same rows
    return dict(_improvement(np.ascontiguousarray(scores, dtype=float).tobytes(), scores.shape, seed))


@lru_cache(maxsize=512)
def _improvement(data: bytes, shape: tuple[int, ...], seed: int) -> tuple[tuple[str, float], ...]:
    scores, row = np.frombuffer(data).reshape(shape), {}
    for norm, suffix in (("global", ""), ("running", "_running")):
        for name in ("n_ir", "n_r2"):
            found = curve_intervals.improvement_interval(scores, name, norm, seed=seed)
            row |= {f"{name}{suffix}": found.estimate, f"{name}{suffix}_low": found.low, f"{name}{suffix}_high": found.high}
    return tuple(row.items())


def turnwise_table(scores: Scores, benchmark: str, model: str) -> pd.DataFrame:
    """Table 4 or 5: AL(k) in percent with exact 95 % intervals, then avg, N-IR and N-R2 in both normalisations."""
    rows = []
    for name in arranged(name for name, bench in scores if bench == benchmark):
        rows.append({**_labelled(name, model), **turnwise_row(scores[name, benchmark])})
    return pd.DataFrame(rows)


def turnwise_row(scores_EK: np.ndarray) -> dict[str, float]:
    """k1 ... kK (AL(k) in percent) with exact intervals, then `summary`."""
    al, (low, high) = metrics.alignment_level(scores_EK), intervals.alignment_interval(scores_EK)
    turns = {f"k{k + 1}{part}": 100 * values[k] for k in range(len(al)) for part, values in (("", al), ("_low", low), ("_high", high))}
    return {**turns, **summary(scores_EK)}


def main_table(scores: Scores, model: str) -> pd.DataFrame:
    """Table 1: one row a method, vanilla and extended side by side; a benchmark that was not run leaves no column."""
    rows = []
    for name in arranged(dict.fromkeys(name for name, _ in scores)):
        benchmarks = [b for b in TABLE_OF if (name, b) in scores]
        values = {f"{b}_{key}": value for b in benchmarks for key, value in summary(scores[name, b]).items()}
        rows.append({**_labelled(name, model), **values})
    return pd.DataFrame(rows)


def _labelled(name: str, model: str) -> dict[str, str]:
    return dict(zip(("model", "method"), label(name, model), strict=True))


def paired_table(scores: Scores, treated: str = "rlpa") -> pd.DataFrame:
    """RLPA against each other row on the same users: difference in percent points, interval, p and Holm-corrected p.

    The correction is over all comparisons of the table, both benchmarks and the controls included.
    """
    rows = []
    for benchmark in TABLE_OF:
        for name in arranged(name for name, bench in scores if bench == benchmark and name != treated):
            if (treated, benchmark) in scores:
                c = intervals.paired_difference(scores[treated, benchmark], scores[name, benchmark])
                model, method = label(name, "")
                rows.append({"benchmark": benchmark, "method": f"{model}, {method}" if model else method, "difference": 100 * c.difference,
                             "low": 100 * c.low, "high": 100 * c.high, "p": c.p_value})  # fmt: skip
    frame = pd.DataFrame(rows)
    if len(frame):
        frame["p_holm"] = intervals.adjust_holm(frame["p"])
    return frame


def without_first_turn(scores: Scores, treated: str = "rlpa") -> pd.DataFrame:
    """The paired table again without k = 1, where the user has said nothing but "Hello"."""
    return paired_table({key: table[:, 1:] for key, table in scores.items() if table.shape[1] > 1}, treated)


def seeds_table(by_seed: Sequence[Scores], model: str, treated: str = "rlpa") -> pd.DataFrame:
    """Over S seeds and their users: avg (percent), N-IR and N-R² of each row, and RLPA minus the row's avg, with 95 % intervals.

    A row that not every seed has is left out. ValueError: fewer than three seeds.
    """
    rows = []
    common = set.intersection(*(set(scores) for scores in by_seed))
    for benchmark in TABLE_OF:
        for name in arranged(name for name, bench in common if bench == benchmark):
            own = np.stack([scores[name, benchmark] for scores in by_seed])
            row = {"benchmark": benchmark, **_labelled(name, model), "seeds": own.shape[0], "users": own.shape[1], **percent("avg", own)}
            if name != treated and (treated, benchmark) in common:
                row |= percent("rlpa_minus", np.stack([scores[treated, benchmark] for scores in by_seed]) - own)
            rows.append(row | improvement(own))
    return pd.DataFrame(rows)


def percent(name: str, scores_SEK: np.ndarray) -> dict[str, float]:
    """`name` and its 95 % interval over seeds and users, in percent; differences are named ..._minus."""
    floor = -1.0 if name.endswith("_minus") else 0.0  # a t interval does not know where the scale ends
    interval = intervals.seed_interval(scores_SEK, limits=(floor, 1.0))
    return {name: 100 * interval.estimate, f"{name}_low": 100 * max(floor, interval.low), f"{name}_high": 100 * min(1.0, interval.high)}
