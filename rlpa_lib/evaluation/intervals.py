"""Uncertainty of a study: intervals over users and seeds, exact ones, paired tests, Holm's correction.

Axes: S seeds, E users, K turns, B resamples. Scores are in [0, 1]; NaN is a judge failure and is left out.
A statistic maps AL of shape (..., K) to (...).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
Limits = tuple[float, float]  # ends of the scale of a statistic
SHARE: Limits = (0.0, 1.0)
LEVEL = 0.95
NAN = float("nan")


@dataclass(frozen=True)
class Interval:
    """A point estimate with its 95 % confidence interval, in the unit of the statistic."""

    estimate: float
    low: float
    high: float

    def columns(self, name: str, factor: float = 1.0) -> dict[str, float]:
        """The cells `name`, `name`_low and `name`_high of a table, each times `factor` (100 for percent)."""
        low, high = factor * self.low, factor * self.high
        return {name: factor * self.estimate, f"{name}_low": low, f"{name}_high": high}


UNKNOWN = Interval(NAN, NAN, NAN)


@dataclass(frozen=True)
class Comparison:
    """Difference a - b of AVG over users that both saw, with interval and two-sided permutation p-value."""

    difference: float
    low: float
    high: float
    p_value: float
    n_users: int


def average_alignment(al_K: ArrayLike) -> Floats:
    """AVG of table 1: mean of AL(k) over the last axis, in the unit of its input; NaN if a turn is NaN."""
    return np.asarray(al_K, dtype=float).mean(axis=-1)


def binomial_interval(successes: ArrayLike, n: ArrayLike) -> tuple[Floats, Floats]:
    """Exact (Clopper-Pearson) interval of a share, elementwise. ValueError: counts outside 0..n, or n < 1."""
    x, total = np.asarray(successes, dtype=float), np.asarray(n, dtype=float)
    if np.any((x < 0) | (x > total) | (total < 1)):
        raise ValueError("successes must lie in 0..n and n must be at least 1")
    return proportion_confint(x, total, alpha=1 - LEVEL, method="beta")


def alignment_interval(scores_EK: ArrayLike) -> tuple[Floats, Floats]:
    """Exact interval of AL(k) from 0/1 scores (E, K): (low (K,), high (K,)).

    ValueError: graded scores, or a turn without a valid score.
    """
    scores = np.asarray(scores_EK, dtype=float)
    valid = ~np.isnan(scores)
    if not np.isin(scores[valid], (0.0, 1.0)).all():
        raise ValueError("exact intervals need 0/1 scores; use bootstrap_interval for graded ones")
    return binomial_interval(np.where(valid, scores, 0.0).sum(axis=0), valid.sum(axis=0))


def bootstrap_interval(
    scores_EK: ArrayLike, statistic: Statistic = average_alignment, *, limits: Limits = SHARE,
    n_resamples: int = 2000, seed: int = 0,
) -> Interval:  # fmt: skip
    """BCa bootstrap over users of statistic(AL).

    The tails are widened for small samples: a bootstrap of E users is too narrow by sqrt((E-1)/E) and uses
    the normal, not the t, law. An average in which no two users differ gets what `constant_interval` says
    about a scale with these `limits`. ValueError: fewer than two users, or a turn without a valid score.
    """
    scores = _read_scores(scores_EK)
    n_users = len(scores)
    estimate = float(_evaluate_resamples(scores, np.ones((1, n_users)), statistic)[0])
    draws_B = _evaluate_resamples(scores, _draw_users(n_users, n_resamples, seed), statistic)
    if statistic is average_alignment and np.ptp(draws_B) < 1e-12:
        return constant_interval(estimate, n_users, limits)
    tail = stats.norm.cdf(-np.sqrt(n_users / (n_users - 1)) * _t_quantile(n_users - 1))
    jackknife_E = _evaluate_resamples(scores, 1.0 - np.eye(n_users), statistic)
    low, high = np.quantile(draws_B, _bca_tails(tail, estimate, draws_B, jackknife_E))
    return Interval(estimate, float(low), float(high))


def constant_interval(estimate: float, n_users: int, limits: Limits = SHARE) -> Interval:
    """Interval of a mean over users of which no two differ: the share of users who may be otherwise (exact
    binomial, none of n seen) could lie anywhere on the scale."""
    share = float(binomial_interval(0, n_users)[1])
    return Interval(estimate, *(estimate + share * (limit - estimate) for limit in limits))


def ratio_interval(parts_E: ArrayLike, wholes_E: ArrayLike, limits: Limits = SHARE) -> Interval:
    """Interval over users of sum(parts) / sum(wholes), such as marks passed over marks given.

    What one user did stays together. Linearised with the t law, ends kept inside `limits`. A share of users,
    each counted once, gets the exact binomial interval; a ratio in which no two users differ
    `constant_interval`, or NaN for ends if the scale is open. NaN for ends of one user; no wholes: all NaN.
    """
    parts, wholes = np.asarray(parts_E, dtype=float), np.asarray(wholes_E, dtype=float)
    parts, wholes = parts[wholes > 0], wholes[wholes > 0]
    n, ratio = len(wholes), float(parts.sum() / wholes.sum()) if len(wholes) else NAN
    if n < 2:
        return Interval(ratio, NAN, NAN)
    if limits == SHARE and (wholes == 1).all() and np.isin(parts, (0.0, 1.0)).all():
        return Interval(ratio, *map(float, binomial_interval(parts.sum(), n)))
    spread = float(np.sqrt(n / (n - 1) * ((parts - ratio * wholes) ** 2).sum()) / wholes.sum())
    if spread < 1e-12:
        return constant_interval(ratio, n, limits) if np.isfinite(limits).all() else Interval(ratio, NAN, NAN)
    half = _t_quantile(n - 1) * spread
    low, high = np.maximum(limits[0], ratio - half), np.minimum(limits[1], ratio + half)
    return Interval(ratio, float(low), float(high))


def seed_interval(
    scores_SEK: ArrayLike, statistic: Statistic = average_alignment, *, limits: Limits = SHARE
) -> Interval:
    """Interval over seeds and users (crossed: the same users in every seed) of statistic(AL over both).

    Three seeds resampled give intervals far too short, so the statistic is linearised and the variances of
    its seed means and of its user means are added, with Satterthwaite's degrees of freedom. Slightly wide
    when seeds agree. Too short for N-IR and N-R² (see curve_intervals). Without any variation as
    `constant_interval`. ValueError: fewer than 3 seeds or 2 users.
    """
    scores = np.asarray(scores_SEK, dtype=float)
    if scores.ndim != 3 or scores.shape[0] < 3 or scores.shape[1] < 2:
        raise ValueError("scores must have shape (seeds, users, turns) with at least 3 seeds and 2 users")
    n_seeds, n_users, _ = scores.shape
    estimate, influence_SE = _linearize(scores, statistic)
    seed_means_S, user_means_E = influence_SE.mean(axis=1), influence_SE.mean(axis=0)
    parts = np.array([seed_means_S.var(ddof=1) / n_seeds, user_means_E.var(ddof=1) / n_users])
    variance = parts.sum()
    if variance == 0:
        return constant_interval(estimate, n_users, limits)
    freedom = variance**2 / (parts**2 / np.array([n_seeds - 1, n_users - 1])).sum()
    half = float(_t_quantile(freedom) * np.sqrt(variance))
    return Interval(estimate, estimate - half, estimate + half)


def paired_difference(
    a_EK: ArrayLike, b_EK: ArrayLike, *, n_resamples: int = 2000, seed: int = 0
) -> Comparison:
    """AVG(a) - AVG(b) on the same users and turns: BCa interval and sign-flip test, both over users.

    A cell missing on either side is left out on both. ValueError: shapes differ, a turn has no common score.
    """
    a, b = _read_scores(a_EK), _read_scores(b_EK)
    if a.shape != b.shape:
        raise ValueError(f"paired scores must have one shape, not {a.shape} and {b.shape}")
    delta = a - b
    interval = bootstrap_interval(delta, limits=(-1.0, 1.0), n_resamples=n_resamples, seed=seed)
    signs_BE = np.random.default_rng(seed + 1).choice([-1.0, 1.0], size=(n_resamples, len(delta)))
    valid = ~np.isnan(delta)
    flipped_B = (signs_BE @ np.nan_to_num(delta) / valid.sum(axis=0)).mean(axis=1)
    # The tolerance counts ties that differ by rounding; the added one is the observed labelling itself.
    extreme = (np.abs(flipped_B) >= abs(interval.estimate) - 1e-12).sum()
    p_value = float((extreme + 1) / (n_resamples + 1))
    return Comparison(interval.estimate, interval.low, interval.high, p_value, int(valid.any(axis=1).sum()))


def adjust_holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjustment of p-values (P,), in the order given; bounds the family-wise error."""
    return multipletests(np.asarray(p_values, dtype=float), method="holm")[1]


def _t_quantile(freedom: float) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def _read_scores(scores_EK: ArrayLike) -> Floats:
    scores = np.asarray(scores_EK, dtype=float)
    if scores.ndim == 1:
        scores = scores[:, None]
    if scores.ndim != 2 or len(scores) < 2:
        raise ValueError(f"scores must have shape (users, turns) with at least two users, not {scores.shape}")
    if np.isnan(scores).all(axis=0).any():
        raise ValueError("a turn has no valid score")
    return scores


def _linearize(scores_SEK: Floats, statistic: Statistic) -> tuple[float, Floats]:
    """The statistic, and what each user of each seed adds to it to first order (S, E)."""
    al_K = np.nanmean(scores_SEK, axis=(0, 1))
    # Central difference: alignment levels are averages of marks, so 1e-4 is far below the step of one user.
    step = 1e-4 * np.eye(len(al_K))
    gradient_K = (statistic(al_K + step) - statistic(al_K - step)) / 2e-4
    share_K = np.mean(~np.isnan(scores_SEK), axis=(0, 1))
    return float(statistic(al_K)), np.nansum(gradient_K * (scores_SEK - al_K) / share_K, axis=-1)


def _draw_users(n_users: int, n: int, seed: int) -> Floats:
    """How often each resample draws each user, (B, E)."""
    # One row of bins per resample makes a single count of all draws; multinomial draws are ten times slower.
    draws = np.random.default_rng(seed).integers(n_users, size=(n, n_users))
    bins = draws + n_users * np.arange(n)[:, None]
    return np.bincount(bins.ravel(), minlength=bins.size).reshape(bins.shape).astype(float)


def _evaluate_resamples(scores_EK: Floats, weights_BE: Floats, statistic: Statistic) -> Floats:
    """The statistic under each weighting of the users that leaves no turn without a valid score."""
    valid = ~np.isnan(scores_EK)
    count_BK = weights_BE @ valid
    total_BK = weights_BE @ np.where(valid, scores_EK, 0.0)
    full = (count_BK > 0).all(axis=1)
    return np.asarray(statistic(total_BK[full] / count_BK[full]))


def _bca_tails(tail: float, estimate: float, draws_B: Floats, jackknife_E: Floats) -> Floats:
    below = np.mean(draws_B < estimate) + 0.5 * np.mean(draws_B == estimate)
    bias = stats.norm.ppf(np.clip(below, 1 / len(draws_B), 1 - 1 / len(draws_B)))
    pull = jackknife_E.mean() - jackknife_E
    scale = (pull**2).sum() ** 1.5
    acceleration = (pull**3).sum() / (6 * scale) if scale > 0 else 0.0
    # By symmetry from the lower tail: with two users the upper one is 1 in floating point.
    z = bias + stats.norm.ppf(tail) * np.array([1.0, -1.0])
    return stats.norm.cdf(bias + z / (1 - acceleration * z))
