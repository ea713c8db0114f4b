"""Alignment level, normalised improvement (appendix C.3, eq. 8) and agreement metrics (appendices G, H); intervals beside them.

Axes: E users (dialogues), K turns, B stacked curves. Alignment levels are fractions in [0, 1]; the paper prints them in percent.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlpa_lib.evaluation.agreement_metrics import kappa_interval
from rlpa_lib.evaluation.intervals import (
    Comparison,
    Interval,
    alignment_interval,
    average_alignment,
    binomial_interval,
    bootstrap_interval,
    paired_difference,
    ratio_interval,
    seed_interval,
)

__all__ = [
    "Comparison",
    "Interval",
    "alignment_interval",
    "alignment_level",
    "average_alignment",
    "binomial_interval",
    "bootstrap_interval",
    "classification_metrics",
    "cohen_kappa",
    "improvement_rate",
    "normalize_levels",
    "normalized_improvement",
    "overlap_metrics",
    "paired_difference",
    "ratio_interval",
    "seed_interval",
]

Norm = Literal["global", "running"]
# Scores are averages of a few hundred marks at most: a spread below this is rounding noise of a flat curve.
_FLAT = 1e-12


def alignment_level(scores_EK: ArrayLike) -> NDArray[np.float64]:
    """AL(k), shape (K,): mean over users of scores (E, K) in [0, 1] (appendix C.3).

    NaN marks a judge failure and is left out; a turn without any valid score is NaN. ValueError: not two axes, or a score outside [0, 1].
    """
    scores = np.asarray(scores_EK, dtype=float)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores must have shape (users, turns), not {scores.shape}")
    valid = ~np.isnan(scores)
    if np.any((scores < 0) | (scores > 1)):
        raise ValueError("scores must lie in [0, 1]; divide percentages by 100")
    n_K = valid.sum(axis=0)
    sums_K = np.where(valid, scores, 0.0).sum(axis=0)
    return np.divide(sums_K, n_K, out=np.full(n_K.shape, np.nan), where=n_K > 0)


def improvement_rate(al_K: ArrayLike) -> NDArray[np.float64]:
    """Least-squares slope of AL(k) itself over k = 1..K (..., K), in units of AL per turn.

    Not in the paper's tables. Without eq. 8's division by a noisy range it has honest intervals and no small-sample bias.
    """
    return _slope(np.asarray(al_K, dtype=float))[0]


def normalize_levels(al_K: ArrayLike, norm: Norm = "global") -> NDArray[np.float64]:
    """N-AL(k) of eq. 8, shape of the input (..., K), values in [0, 1].

    "running" is eq. 8 as printed: minimum and maximum over turns 1..k. The first turn, where both coincide, is set to 0, which is
    what reproduces table 5. "global" takes them over all turns, which is what reproduces tables 2 and 4. A flat curve is all 0.
    ValueError: fewer than two turns, values that are not finite, an unknown norm.
    """
    al = np.asarray(al_K, dtype=float)
    if al.ndim == 0 or al.shape[-1] < 2:
        raise ValueError("a trend needs at least two turns")
    if not np.all(np.isfinite(al)):
        raise ValueError("every turn needs a finite alignment level")
    if norm == "global":
        low, high = al.min(axis=-1, keepdims=True), al.max(axis=-1, keepdims=True)
    elif norm == "running":
        low, high = np.minimum.accumulate(al, axis=-1), np.maximum.accumulate(al, axis=-1)
    else:
        raise ValueError(f"norm must be 'global' or 'running', not {norm!r}")
    spread = high - low
    return np.divide(al - low, spread, out=np.zeros_like(al), where=spread > _FLAT)


def normalized_improvement(al_K: ArrayLike, norm: Norm = "global") -> tuple[float, float]:
    """(N-IR, N-R²) of appendix C.3: slope and determination of the least-squares line through N-AL(k), k = 1..K.

    Input (K,) in any unit, or (B, K), which gives two arrays (B,). A flat curve gives (0.0, 0.0). Default "global": all turns of a
    curve are then measured on one scale, so curves can be compared. Under "running" every turn that sets a new maximum scores 1
    however small the gain, so all curves that never fall after a first rise share one value and an early dip raises N-IR.
    Intervals: curve_intervals.improvement_interval.
    ValueError as in normalize_levels.
    """
    levels = normalize_levels(al_K, norm)
    slope, turn_spread = _slope(levels)
    total = ((levels - levels.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    explained = slope**2 * turn_spread
    r2 = np.minimum(np.divide(explained, total, out=np.zeros_like(explained), where=total > _FLAT), 1.0)
    return (float(slope), float(r2)) if levels.ndim == 1 else (slope, r2)


def cohen_kappa(confusion: ArrayLike, weights: Literal["quadratic"] | None = None) -> float:
    """Cohen's kappa of a square table of counts (rows one rater, columns the other), plain or with quadratic weights (`kappa_interval`)."""
    return kappa_interval(confusion, weights).estimate


def classification_metrics(tp: float, fp: float, fn: float, tn: float) -> dict[str, float]:
    """The columns of table 10 from the counts of table 9; a ratio with an empty denominator is NaN. ValueError as cohen_kappa."""
    kappa = cohen_kappa([[tp, fp], [fn, tn]])
    return {
        "accuracy": _ratio(tp + tn, tp + fp + fn + tn),
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "specificity": _ratio(tn, tn + fp),
        "cohens_kappa": kappa,
    }


def overlap_metrics(predicted_E: ArrayLike, true_E: ArrayLike) -> dict[str, float]:
    """The columns of table 8 for overlap counts (E,): exact and fuzzy (off by at most 1) accuracy in percent, MSE, RMSE.

    ValueError: shapes differ or no case.
    """
    predicted, true = np.asarray(predicted_E, dtype=float), np.asarray(true_E, dtype=float)
    if predicted.shape != true.shape or predicted.size == 0:
        raise ValueError("predicted and true counts must be equally long and not empty")
    error = np.abs(predicted - true)
    mse = float((error**2).mean())
    return {
        "exact_acc": 100 * float((error == 0).mean()),
        "fuzzy_acc": 100 * float((error <= 1).mean()),
        "mse": mse,
        "rmse": mse**0.5,
    }


def _slope(levels: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    turns_K = np.arange(1.0, levels.shape[-1] + 1)
    turns_K -= turns_K.mean()
    turn_spread = float(turns_K @ turns_K)
    return np.asarray(levels @ turns_K / turn_spread), turn_spread


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
