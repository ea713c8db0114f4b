"""Uncertainty of a study: intervals over users and seeds, exact binomial intervals, paired tests, Holm's correction.

Axes: S seeds, E users, K turns, B resamples. Scores are in [0, 1]; NaN is a judge failure and is left out.
A statistic maps AL of shape (..., K) to (...).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
NAN = float("nan")


@dataclass(frozen=True)
class Interval:
    """A point estimate with its confidence interval, in the unit of the statistic."""

    estimate: float
    low: float
    high: float
    level: float


@dataclass(frozen=True)
class Comparison:
    """Paired difference a - b of AVG over the users that both saw, with interval and two-sided permutation p-value."""

    difference: float
    low: float
    high: float
    p_value: float
    n_users: int


def average_alignment(al_K: ArrayLike) -> Floats:
    """AVG of table 1: mean of AL(k) over the last axis, in the unit of its input; NaN if a turn is NaN."""
    return np.asarray(al_K, dtype=float).mean(axis=-1)


def binomial_interval(successes: ArrayLike, n: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Exact (Clopper-Pearson) interval of a share, as fractions, elementwise; never covers less than `level`.

    ValueError: counts outside 0..n, or n < 1.
    """
    x, total = np.broadcast_arrays(np.asarray(successes, dtype=float), np.asarray(n, dtype=float))
    if np.any((x < 0) | (x > total) | (total < 1)):
        raise ValueError("successes must lie in 0..n and n must be at least 1")
    tail = (1 - level) / 2
    # The beta law is undefined at 0 and n successes, where the bound is the end of the scale itself.
    low = np.where(x == 0, 0.0, stats.beta.ppf(tail, np.maximum(x, 1), total - x + 1))
    high = np.where(x == total, 1.0, stats.beta.ppf(1 - tail, x + 1, np.maximum(total - x, 1)))
    return low, high


def alignment_interval(scores_EK: ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Exact interval of AL(k) from 0/1 scores (E, K): (low (K,), high (K,)); ValueError for graded scores or an empty turn."""
    scores = np.asarray(scores_EK, dtype=float)
    valid = ~np.isnan(scores)
    if not np.isin(scores[valid], (0.0, 1.0)).all():
        raise ValueError("exact intervals need 0/1 scores; use bootstrap_interval for graded ones")
    return binomial_interval(np.where(valid, scores, 0.0).sum(axis=0), valid.sum(axis=0), level)


def bootstrap_interval(
    scores_EK: ArrayLike,
    statistic: Statistic = average_alignment,
    *,
    strata_E: ArrayLike | None = None,
    method: Literal["bca", "percentile"] = "bca",
    limits: tuple[float, float] = (0.0, 1.0),
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Bootstrap over users of statistic(AL); users are drawn within their stratum (benchmark) when strata are given.

    The tails are widened for small samples (a bootstrap of E users is too narrow by sqrt((E-1)/E) and uses the normal, not the t, law).
    An average in which no two users differ gets what `is_constant` says about a scale with these `limits`. ValueError: fewer than two users.
    """
    scores = _two_axes(scores_EK)
    n_users = len(scores)
    weights_BE = _resample(n_users, strata_E, n_resamples, np.random.default_rng(seed))
    estimate = float(statistic(_levels(scores, np.ones((1, n_users))))[0])
    levels_BK = _levels(scores, weights_BE)
    # A turn with few valid scores can be empty in a resample: such a resample has no statistic.
    draws_B = np.asarray(statistic(levels_BK[np.isfinite(levels_BK).all(axis=1)]))
    if statistic is average_alignment and np.ptp(draws_B) < 1e-12:
        return is_constant(estimate, n_users, limits, level)
    tail = stats.norm.cdf(-np.sqrt(n_users / (n_users - 1)) * stats.t.ppf((1 + level) / 2, n_users - 1))
    tails = np.array([tail, 1 - tail])
    if method == "bca":
        tails = _bca_tails(tails, estimate, draws_B, _leave_one_out(scores, statistic))
    elif method != "percentile":
        raise ValueError(f"method must be 'bca' or 'percentile', not {method!r}")
    low, high = np.quantile(draws_B, tails)
    return Interval(estimate, float(low), float(high), level)


def is_constant(estimate: float, n_users: int, limits: tuple[float, float] = (0.0, 1.0), level: float = 0.95) -> Interval:
    """Interval of a mean over users of which no two differ: the share of users that may be otherwise (exact binomial, none of n seen) could
    lie anywhere on the scale. For a share of 0 or 1 this is the exact binomial interval."""
    share = float(binomial_interval(0, n_users, level)[1])
    return Interval(estimate, estimate + share * (limits[0] - estimate), estimate + share * (limits[1] - estimate), level)


def ratio_interval(parts_E: ArrayLike, wholes_E: ArrayLike, limits: tuple[float, float] = (0.0, 1.0), *, level: float = 0.95) -> Interval:
    """Interval over users of sum(parts) / sum(wholes), such as marks passed over marks given; what one user did stays together.

    Linearised with the t law, ends kept inside `limits`. A share of users, each counted once, gets the exact binomial interval; a ratio in
    which no two users differ the one of `is_constant`, or NaN for ends if the scale is open. NaN for ends of one user alone. No wholes: all NaN.
    """
    parts, wholes = np.asarray(parts_E, dtype=float), np.asarray(wholes_E, dtype=float)
    parts, wholes = parts[wholes > 0], wholes[wholes > 0]
    n, ratio = len(wholes), float(parts.sum() / wholes.sum()) if len(wholes) else NAN
    if n < 2:
        return Interval(ratio, NAN, NAN, level)
    spread = float(np.sqrt(n / (n - 1) * ((parts - ratio * wholes) ** 2).sum()) / wholes.sum())
    counted = (wholes == 1).all() and np.isin(parts, (0.0, 1.0)).all()
    if limits == (0.0, 1.0) and counted:
        low, high = binomial_interval(parts.sum(), n, level)
        return Interval(ratio, float(low), float(high), level)
    if spread < 1e-12:
        return is_constant(ratio, n, limits, level) if np.isfinite(limits).all() else Interval(ratio, NAN, NAN, level)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * spread
    return Interval(ratio, float(np.maximum(limits[0], ratio - half)), float(np.minimum(limits[1], ratio + half)), level)


def seed_interval(
    scores_SEK: ArrayLike, statistic: Statistic = average_alignment, *, limits: tuple[float, float] = (0.0, 1.0), level: float = 0.95
) -> Interval:
    """Interval over seeds and users (crossed: the same users in every seed) of statistic(AL over both); needs at least 3 seeds.

    Three seeds resampled give intervals far too short, so the statistic is linearised and the variances of its seed means and of its user means
    are added, with Satterthwaite's degrees of freedom. Slightly wide when seeds agree. Too short for N-IR and N-R² (see curve_intervals).
    Without any variation as `is_constant`. ValueError: fewer than 3 seeds.
    """
    scores = np.asarray(scores_SEK, dtype=float)
    if scores.ndim != 3 or scores.shape[0] < 3 or scores.shape[1] < 2:
        raise ValueError("scores must have shape (seeds, users, turns) with at least 3 seeds and 2 users")
    n_seeds, n_users, _ = scores.shape
    estimate, influence_SE = _influence(scores, statistic)
    parts = np.array([influence_SE.mean(axis=1).var(ddof=1) / n_seeds, influence_SE.mean(axis=0).var(ddof=1) / n_users])
    variance = parts.sum()
    if variance == 0:
        return is_constant(estimate, n_users, limits, level)
    freedom = variance**2 / (parts**2 / np.array([n_seeds - 1, n_users - 1])).sum()
    half = float(stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance))
    return Interval(estimate, estimate - half, estimate + half, level)


def paired_difference(
    a_EK: ArrayLike,
    b_EK: ArrayLike,
    *,
    strata_E: ArrayLike | None = None,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """AVG(a) - AVG(b) on the same users and turns: BCa interval over users and a sign-flip permutation test over users.

    A cell missing on either side is left out on both. ValueError: shapes differ, or a turn without a common valid score.
    """
    a, b = _two_axes(a_EK), _two_axes(b_EK)
    if a.shape != b.shape:
        raise ValueError(f"paired scores must have one shape, not {a.shape} and {b.shape}")
    delta = a - b
    interval = bootstrap_interval(delta, strata_E=strata_E, limits=(-1.0, 1.0), level=level, n_resamples=n_resamples, seed=seed)
    signs_BE = np.random.default_rng(seed + 1).choice([-1.0, 1.0], size=(n_resamples, len(delta)))
    filled, valid_K = np.nan_to_num(delta), (~np.isnan(delta)).sum(axis=0)
    flipped_B = (signs_BE @ filled / valid_K).mean(axis=1)
    # The tolerance counts ties that differ by rounding alone; the added one counts the observed labelling itself.
    extreme = (np.abs(flipped_B) >= abs(interval.estimate) - 1e-12).sum()
    n_users = int((~np.isnan(delta)).any(axis=1).sum())
    return Comparison(interval.estimate, interval.low, interval.high, float((extreme + 1) / (n_resamples + 1)), n_users)


def adjust_holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjustment of p-values (P,), in the order given; the family-wise error stays below the level used."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def _two_axes(scores_EK: ArrayLike) -> Floats:
    scores = np.asarray(scores_EK, dtype=float)
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim != 2 or len(scores) < 2:
        raise ValueError(f"scores must have shape (users, turns) with at least two users, not {scores.shape}")
    if np.isnan(scores).all(axis=0).any():
        raise ValueError("a turn has no valid score")
    return scores


def _influence(scores_SEK: Floats, statistic: Statistic) -> tuple[float, Floats]:
    al_K = np.nanmean(scores_SEK, axis=(0, 1))
    # Central difference: alignment levels are averages of marks, so 1e-4 is far below the step of one user.
    step = 1e-4 * np.eye(len(al_K))
    gradient_K = (statistic(al_K + step) - statistic(al_K - step)) / 2e-4
    share_K = np.mean(~np.isnan(scores_SEK), axis=(0, 1))
    influence_SE = np.nansum(gradient_K * (scores_SEK - al_K) / share_K, axis=-1)
    return float(statistic(al_K)), influence_SE


def _levels(scores_EK: Floats, weights_BE: Floats) -> Floats:
    valid = ~np.isnan(scores_EK)
    count_BK = weights_BE @ valid
    total_BK = weights_BE @ np.where(valid, scores_EK, 0.0)
    return np.divide(total_BK, count_BK, out=np.full(total_BK.shape, np.nan), where=count_BK > 0)


def _resample(n_users: int, strata_E: ArrayLike | None, n: int, rng: np.random.Generator) -> Floats:
    labels = np.zeros(n_users) if strata_E is None else np.asarray(strata_E)
    if labels.shape != (n_users,):
        raise ValueError(f"strata need one label for each of {n_users} users")
    weights_BE = np.zeros((n, n_users))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        # One row of bins per resample makes a single count of all draws; multinomial draws are ten times slower.
        bins = rng.integers(len(members), size=(n, len(members))) + len(members) * np.arange(n)[:, None]
        weights_BE[:, members] = np.bincount(bins.ravel(), minlength=bins.size).reshape(bins.shape)
    return weights_BE


def _leave_one_out(scores_EK: Floats, statistic: Statistic) -> Floats:
    levels = _levels(scores_EK, 1.0 - np.eye(len(scores_EK)))
    return np.asarray(statistic(levels[np.isfinite(levels).all(axis=1)]))


def _bca_tails(tails: Floats, estimate: float, draws_B: Floats, jackknife_E: Floats) -> Floats:
    below = np.mean(draws_B < estimate) + 0.5 * np.mean(draws_B == estimate)
    bias = stats.norm.ppf(np.clip(below, 1 / len(draws_B), 1 - 1 / len(draws_B)))
    pull = jackknife_E.mean() - jackknife_E
    scale = (pull**2).sum() ** 1.5
    acceleration = (pull**3).sum() / (6 * scale) if scale > 0 else 0.0
    z = bias + stats.norm.ppf(tails[0]) * np.array([1.0, -1.0])  # with two users 1 - tails[0] is 1 in floating point
    return stats.norm.cdf(bias + z / (1 - acceleration * z))
