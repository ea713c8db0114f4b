"""Uncertainty of a study: intervals over users and seeds, exact ones, paired tests, Holm's correction.

Axes: S seeds, E users, K turns, B resamples. Scores are in [0, 1]; NaN is a judge failure and is left out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from rlpa_lib.evaluation.metrics import alignment_level

Floats = NDArray[np.float64]
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

    def scale(self, factor: float) -> tuple[float, float, float]:
        """Estimate, low and high, each times `factor` (100 for percent)."""
        return factor * self.estimate, factor * self.low, factor * self.high

    def columns(self, name: str, factor: float = 1.0) -> dict[str, float]:
        """The cells `name`, `name`_low and `name`_high of a table, each times `factor`."""
        return dict(zip((name, f"{name}_low", f"{name}_high"), self.scale(factor), strict=True))


UNKNOWN = Interval(NAN, NAN, NAN)


@dataclass(frozen=True)
class Comparison(Interval):
    """Difference of two AVG over the users that both saw, with its two-sided permutation p-value."""

    p_value: float
    n_users: int

    def percent_points(self) -> dict[str, float]:
        """The cells difference, low, high and p of a table."""
        return dict(zip(("difference", "low", "high", "p"), (*self.scale(100), self.p_value), strict=True))


def binomial_interval(successes: ArrayLike, n: ArrayLike) -> tuple[Floats, Floats]:
    """Exact (Clopper-Pearson) interval of a share, elementwise. ValueError: counts outside 0..n, or n < 1."""
    x, total = np.asarray(successes, dtype=float), np.asarray(n, dtype=float)
    if np.any((x < 0) | (x > total) | (total < 1)):
        raise ValueError("successes must lie in 0..n and n must be at least 1")
    return proportion_confint(x, total, alpha=1 - LEVEL, method="beta")


def alignment_interval(scores_EK: ArrayLike) -> list[Interval]:
    """AL(k) of each turn with its exact interval, from 0/1 scores (E, K). ValueError: graded scores, or no
    valid score at a turn."""
    scores = np.asarray(scores_EK, dtype=float)
    valid = ~np.isnan(scores)
    if not np.isin(scores[valid], (0.0, 1.0)).all():
        raise ValueError("exact intervals need 0/1 scores; use bootstrap_interval for graded ones")
    ends_K = binomial_interval(np.where(valid, scores, 0.0).sum(axis=0), valid.sum(axis=0))
    return [Interval(*map(float, turn)) for turn in zip(alignment_level(scores), *ends_K, strict=True)]


def bootstrap_interval(
    scores_EK: ArrayLike, *, limits: Limits = SHARE, n_resamples: int = 2000, seed: int = 0
) -> Interval:
    """BCa bootstrap over users of AVG, the mean of AL(k) over turns (table 1), on a scale of `limits`. The
    tails are widened for small samples: a bootstrap of E users is too narrow by sqrt((E-1)/E) and uses the
    normal, not the t, law. Where no two users differ: `constant_interval`. ValueError: fewer than two users,
    or a turn without a valid score."""
    scores = _read_scores(scores_EK)
    n_users = len(scores)
    estimate = float(_average_resamples(scores, np.ones((1, n_users)))[0])
    # One row of bins per resample makes a single count of all draws; multinomial draws are ten times slower.
    draws = np.random.default_rng(seed).integers(n_users, size=(n_resamples, n_users))
    bins = draws + n_users * np.arange(n_resamples)[:, None]
    drawn_BE = np.bincount(bins.ravel(), minlength=bins.size).reshape(bins.shape).astype(float)
    average_B = _average_resamples(scores, drawn_BE)
    if np.ptp(average_B) < 1e-12:
        return constant_interval(estimate, n_users, limits)
    n = len(average_B)
    below = np.mean(average_B < estimate) + 0.5 * np.mean(average_B == estimate)
    bias = stats.norm.ppf(np.clip(below, 1 / n, 1 - 1 / n))
    jackknife_E = _average_resamples(scores, 1.0 - np.eye(n_users))
    pull = jackknife_E.mean() - jackknife_E
    scale = (pull**2).sum() ** 1.5
    acceleration = (pull**3).sum() / (6 * scale) if scale > 0 else 0.0
    tail = stats.norm.cdf(-np.sqrt(n_users / (n_users - 1)) * _t_quantile(n_users - 1))
    # By symmetry from the lower tail: with two users the upper one is 1 in floating point.
    z = bias + stats.norm.ppf(tail) * np.array([1.0, -1.0])
    low, high = np.quantile(average_B, stats.norm.cdf(bias + z / (1 - acceleration * z)))
    return Interval(estimate, float(low), float(high))


def constant_interval(estimate: float, n_users: int, limits: Limits = SHARE) -> Interval:
    """Interval of a mean over users of which no two differ: the share of users who may be otherwise (exact
    binomial, none of n seen) could lie anywhere on the scale."""
    share = float(binomial_interval(0, n_users)[1])
    return Interval(estimate, *(estimate + share * (limit - estimate) for limit in limits))


def ratio_interval(parts_E: ArrayLike, wholes_E: ArrayLike, limits: Limits = SHARE) -> Interval:
    """Interval over users of sum(parts) / sum(wholes), such as marks passed over marks given. What one user
    did stays together. Linearised with the t law, ends kept inside `limits`. A share of users, each counted
    once, gets the exact binomial interval; a ratio in which no two users differ `constant_interval`, or NaN
    for ends if the scale is open. NaN for ends of one user; no wholes: all NaN."""
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
    return Interval(ratio, float(max(limits[0], ratio - half)), float(min(limits[1], ratio + half)))


def seed_interval(scores_SEK: ArrayLike, *, limits: Limits = SHARE) -> Interval:
    """Interval over seeds and users (crossed: the same users in every seed) of AVG over both, kept inside
    `limits`. Three seeds resampled give intervals far too short, so the variances of the seed means and of
    the user means are added, with Satterthwaite's degrees of freedom. Slightly wide when seeds agree. Without
    any variation as `constant_interval`. ValueError: fewer than 3 seeds or 2 users."""
    scores = np.asarray(scores_SEK, dtype=float)
    if scores.ndim != 3 or scores.shape[0] < 3 or scores.shape[1] < 2:
        raise ValueError("scores must have shape (seeds, users, turns) with at least 3 seeds and 2 users")
    n_seeds, n_users, n_turns = scores.shape
    al_K = np.nanmean(scores, axis=(0, 1))
    estimate = float(al_K.mean())
    # 1/K but for rounding: a central difference, as in the tables that are published.
    step = 1e-4 * np.eye(n_turns)
    weight_K = ((al_K + step).mean(axis=-1) - (al_K - step).mean(axis=-1)) / 2e-4
    influence_SE = np.nansum(weight_K * (scores - al_K) / np.mean(~np.isnan(scores), axis=(0, 1)), axis=-1)
    seed_means_S, user_means_E = influence_SE.mean(axis=1), influence_SE.mean(axis=0)
    parts = np.array([seed_means_S.var(ddof=1) / n_seeds, user_means_E.var(ddof=1) / n_users])
    variance = parts.sum()
    if variance == 0:
        return constant_interval(estimate, n_users, limits)
    freedom = variance**2 / (parts**2 / np.array([n_seeds - 1, n_users - 1])).sum()
    half = float(_t_quantile(freedom) * np.sqrt(variance))
    return Interval(estimate, max(limits[0], estimate - half), min(limits[1], estimate + half))


def paired_difference(
    a_EK: ArrayLike, b_EK: ArrayLike, *, n_resamples: int = 2000, seed: int = 0
) -> Comparison:
    """AVG(a) - AVG(b) on the same users and turns: BCa interval and sign-flip test, both over users. A cell
    missing on either side is left out on both. ValueError: shapes differ, a turn has no common score."""
    a, b = _read_scores(a_EK), _read_scores(b_EK)
    if a.shape != b.shape:
        raise ValueError(f"paired scores must have one shape, not {a.shape} and {b.shape}")
    delta = a - b
    found = bootstrap_interval(delta, limits=(-1.0, 1.0), n_resamples=n_resamples, seed=seed)
    signs_BE = np.random.default_rng(seed + 1).choice([-1.0, 1.0], size=(n_resamples, len(delta)))
    valid = ~np.isnan(delta)
    flipped_B = (signs_BE @ np.nan_to_num(delta) / valid.sum(axis=0)).mean(axis=1)
    # The tolerance counts ties that differ by rounding; the added one is the observed labelling itself.
    extreme = (np.abs(flipped_B) >= abs(found.estimate) - 1e-12).sum()
    p_value = float((extreme + 1) / (n_resamples + 1))
    return Comparison(found.estimate, found.low, found.high, p_value, int(valid.any(axis=1).sum()))


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


def _average_resamples(scores_EK: Floats, weights_BE: Floats) -> Floats:
    """AVG under each weighting of the users that leaves no turn without a valid score."""
    valid = ~np.isnan(scores_EK)
    count_BK = weights_BE @ valid
    total_BK = weights_BE @ np.where(valid, scores_EK, 0.0)
    full = (count_BK > 0).all(axis=1)
    return (total_BK[full] / count_BK[full]).mean(axis=-1)
