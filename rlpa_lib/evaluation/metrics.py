"""Alignment level and normalised improvement (appendix C.3, eq. 8). Axes: E users, K turns. Levels are
fractions; the paper prints percent."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Norm = Literal["global", "running"]
# Scores are averages of a few hundred marks at most: a spread below this is rounding noise of a flat curve.
_FLAT = 1e-12


def alignment_level(scores_EK: ArrayLike) -> NDArray[np.float64]:
    """AL(k), shape (K,): mean over users of scores (E, K) in [0, 1] (appendix C.3). NaN marks a judge failure
    and is left out; a turn that has nothing else is NaN. ValueError: not two axes, or a score outside [0,
    1]."""
    scores = np.asarray(scores_EK, dtype=float)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores must have shape (users, turns), not {scores.shape}")
    if np.any((scores < 0) | (scores > 1)):
        raise ValueError("scores must lie in [0, 1]; divide percentages by 100")
    valid = ~np.isnan(scores)
    n_K = valid.sum(axis=0)
    sums_K = np.where(valid, scores, 0.0).sum(axis=0)
    return np.divide(sums_K, n_K, out=np.full(n_K.shape, np.nan), where=n_K > 0)


def normalize_levels(al_K: ArrayLike, norm: Norm = "global") -> NDArray[np.float64]:
    """N-AL(k) of eq. 8, shape of the input (..., K), values in [0, 1]. "running" is eq. 8 as printed: minimum
    and maximum over turns 1..k. The first turn, where both coincide, is set to 0, which is what reproduces
    table 5. "global" takes them over all turns, which is what reproduces tables 2 and 4. A flat curve is all
    0. ValueError: fewer than two turns, values that are not finite, an unknown norm."""
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
    """(N-IR, N-R²) of appendix C.3: slope and determination of the line fitted to N-AL(k), k = 1..K.

    Input (K,) in any unit, or (..., K), which gives two arrays (...). A flat curve gives (0.0, 0.0). Default
    "global": all turns of a curve are then measured on one scale, so curves can be compared. Under "running"
    every turn that sets a new maximum scores 1 however small the gain, so all curves that never fall after a
    first rise share one value and an early dip raises N-IR. Intervals: curve_intervals.improvement_interval.
    ValueError as in normalize_levels."""
    levels = normalize_levels(al_K, norm)
    turns_K = np.arange(1.0, levels.shape[-1] + 1)
    turns_K -= turns_K.mean()
    turn_spread = float(turns_K @ turns_K)
    slope = np.asarray(levels @ turns_K / turn_spread)
    total = ((levels - levels.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    explained = slope**2 * turn_spread
    r2 = np.minimum(np.divide(explained, total, out=np.zeros_like(explained), where=total > _FLAT), 1.0)
    return (float(slope), float(r2)) if levels.ndim == 1 else (slope, r2)
