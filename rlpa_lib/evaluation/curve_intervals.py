"""Intervals of N-IR and N-R² (eq. 8): they span the curves under which a study like ours would not be rare.

Both statistics divide by a noisy minimum-to-maximum range, which is biased upwards and has corners;
resampling and the delta method are far too short for them. Axes: S seeds, E users, K turns, C candidate
curves, B simulated studies. Curves are handled as angles arcsin(sqrt(AL)), whose noise does not depend on AL.

Coverage of the 95 % intervals with 74 users and ten turns: "global" 94 to 100 % (200 studies a curve;
tests/benchmarks/bench_coverage.py measures it), "running" 98 to 100 % (a prototype, 1,000 studies a curve;
lowest of all 92 %): often longer than need be, seldom shorter. Where turns may all be equal, N-IR reaches far
to both sides of 0 and N-R² from 0 to nearly 1."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from rlpa_lib.evaluation.intervals import LEVEL, Floats, Interval, Limits
from rlpa_lib.evaluation.metrics import Norm, normalized_improvement

Statistic = Callable[[Floats], Floats]  # of AL (..., K) to (...)
_STUDIES = 256
# Where the candidates of a path lie, in first-order standard errors from the observed statistic.
_PATH = np.linspace(-3.2, 3.2, 33)
# Squared standard errors spent on levelling the top and the bottom of a candidate. The range is biased most
# where extremes tie, and noise hides ties of the true curve. By simulation: more makes intervals longer.
_LEVELLING = (0.0, 1.0)
# Candidates farther from the observed curve than chance allows are not asked.
_PLAUSIBLE = 0.99
# Error allowed to a path on each side, in multiples of (1 - level) / 2. The true curve lies near a path, not
# on it, and is rarely farther than the path's end: with 1 instead most coverages were 97 to 99 %.
_PATH_TAIL = 1.5


@dataclass(frozen=True)
class _Study:
    """What was observed, and how it may vary."""

    al_K: Floats
    angle_K: Floats
    root_KK: Floats  # root of the covariance of the angles
    error_BK: Floats  # simulated errors of the angles
    marks_K: Floats  # number of scores behind each AL(k)
    whole: bool  # scores are 0 or 1, so a simulated AL(k) is a whole number of marks

    def curves(self, z_CK: Floats) -> Floats:
        """Angles of the curves that lie z standard errors from the observed one."""
        return _inside(self.angle_K + z_CK @ self.root_KK.T)

    def steps(self, angle_CK: Floats) -> Floats:
        """The z of given angles."""
        return np.linalg.solve(self.root_KK, (angle_CK - self.angle_K).T).T

    def repeats(self, angle_CK: Floats) -> Floats:
        """AL (C, B, K) of simulated studies of given true curves."""
        al = _al(_inside(angle_CK[:, None] + self.error_BK))
        # Noise of an angle pulls sin² towards one half on average.
        al -= (1 - 2 * al) * np.minimum((self.root_KK**2).sum(axis=1), 0.25)
        if self.whole:
            al = np.round(al * self.marks_K) / self.marks_K
        return np.clip(al, 0.0, 1.0)


def improvement_interval(
    scores: ArrayLike, name: Literal["n_ir", "n_r2"], norm: Norm = "global", *, seed: int = 0
) -> Interval:
    """95 % interval of N-IR or N-R² (eq. 8) at the true AL curve. Scores (E, K), or (S, E, K) with 3 seeds or
    more. ValueError: fewer users or seeds, a turn without scores."""
    study, tie_start = _observe(scores, seed), norm == "running"
    if name == "n_ir":
        no_limits = (-np.inf, np.inf)
        return _curve_interval(study, lambda al: normalized_improvement(al, norm)[0], no_limits, tie_start)

    def correlate(al: Floats) -> Floats:
        n_ir, n_r2 = normalized_improvement(al, norm)
        return np.sign(n_ir) * np.sqrt(n_r2)

    # N-R² ends at 0, where a test has only one side; its signed root, the correlation, goes on through.
    root = _curve_interval(study, correlate, (-1.0, 1.0), tie_start)
    low, high = sorted((root.low**2, root.high**2))
    return Interval(root.estimate**2, 0.0 if root.low <= 0 <= root.high else low, high)


def _curve_interval(study: _Study, statistic: Statistic, limits: Limits, tie_start: bool) -> Interval:
    """Interval of a statistic of the true AL curve on a scale of these `limits`. A curve is kept when in at
    least 2.5 % of its simulated studies the statistic is as far off as in ours, on our side; the interval
    spans the kept curves and the estimate. `tie_start` also tries curves whose first two turns tie."""
    estimate = float(statistic(study.al_K))
    paths, simple = _path_families(study, statistic, limits, tie_start), _simple_families(study)
    families = [*paths, *simple]
    family_C = np.repeat(np.arange(len(families)), [len(f) for f in families])
    angle_CK = np.concatenate(families)
    near = (study.steps(angle_CK) ** 2).sum(axis=1) <= stats.chi2.ppf(_PLAUSIBLE, angle_CK.shape[1])
    away_C = np.asarray(statistic(_al(angle_CK))) - estimate

    def share(side: int, angle_K: Floats) -> float:  # of a curve's studies that are as far off as ours
        repeat_B = statistic(study.repeats(angle_K[None]))[0]
        return max(np.mean(side * (repeat_B - estimate) <= 1e-9), 0.5 / len(repeat_B))

    ends = [estimate]
    for family, side in itertools.product(range(len(families)), (-1, 1)):
        members = np.flatnonzero(near & (family_C == family) & (side * away_C > 0))
        outward = members[np.argsort(side * away_C[members])]
        tail = (1 - LEVEL) / 2 * (_PATH_TAIL if family < len(paths) else 1.0)
        value_C = estimate + away_C[outward]
        ends.append(_find_end(partial(share, side), angle_CK[outward], value_C, tail, limits, estimate))
    return Interval(estimate, min(ends), max(ends))


def _find_end(
    share: Callable[[Floats], float], angle_CK: Floats, value_C: Floats, tail: float, limits: Limits,
    estimate: float,
) -> float:
    """The value at which the observed study becomes rare among candidates, nearest first; by bisection."""
    shares: dict[int, float] = {}
    kept, lost = -1, len(value_C)
    while lost - kept > 1:
        middle = (kept + lost) // 2
        shares[middle] = share(angle_CK[middle])
        # At the end of the scale nothing lies beyond, so one tail takes the whole error.
        at_end = min(abs(value_C[middle] - limit) for limit in limits) < 1e-6
        if shares[middle] > tail * (1 + at_end):
            kept = middle
        else:
            lost = middle
    if kept < 0:
        return estimate
    end = value_C[kept]
    if shares[kept] > tail >= shares.get(lost, np.nan):
        z_inner, z_outer, z = special.ndtri((shares[kept], shares[lost], tail))
        end += (value_C[lost] - end) * (z_inner - z) / (z_inner - z_outer)
    return float(end)


def _path_families(study: _Study, statistic: Statistic, limits: Limits, tie_start: bool) -> list[Floats]:
    """Curves along the path from the observed one, as they are and with levelled ends."""
    starts = [np.zeros_like(study.angle_K)]
    if tie_start:  # "running" jumps where the second turn equals the first
        tied = np.r_[np.full(2, study.angle_K[:2].mean()), study.angle_K[2:]]
        starts.append(study.steps(tied[None])[0])
    scale_K = np.sqrt((study.root_KK**2).sum(axis=1))
    paths = [study.curves(_path(study, statistic, limits, start)) for start in starts]
    levelled = [-_cut_top(path, scale_K, top) for path in paths for top in _LEVELLING]
    return [-_cut_top(path, scale_K, bottom) for path in levelled for bottom in _LEVELLING]


def _path(study: _Study, statistic: Statistic, limits: Limits, start_K: Floats) -> Floats:
    """Steps (C, K) from the observed curve to those nearest to `start_K` with given statistics."""
    n_turns = len(start_K)
    # Slopes are taken over one standard error either way: over less, an extreme shows one of its turns only.
    offsets = np.concatenate([np.eye(n_turns), -np.eye(n_turns)])

    def look(z_CK: Floats) -> tuple[Floats, Floats]:
        around = np.asarray(statistic(_al(study.curves(z_CK[:, None] + offsets))))
        return np.asarray(statistic(_al(study.curves(z_CK)))), (around[:, :n_turns] - around[:, n_turns:]) / 2

    value, slope = look(start_K[None])
    target = np.clip(value + np.linalg.norm(slope) * _PATH, *limits)
    step = np.zeros((len(_PATH), n_turns))
    for _ in range(8):
        value, slope = look(start_K + step)
        missing = target - value + (slope * step).sum(axis=1)
        full = slope * (missing / ((slope**2).sum(axis=1) + 1e-8))[:, None]
        full *= np.minimum(1.0, 5.0 / np.maximum(np.linalg.norm(full, axis=1), 1e-9))[:, None]
        step += 0.7 * (full - step)
    return start_K + step


def _cut_top(angle_CK: Floats, scale_K: Floats, cost: float) -> Floats:
    """Each curve cut off at the height where the squared standard errors cut off add up to `cost`."""
    low, high = angle_CK.min(axis=1), angle_CK.max(axis=1)
    for _ in range(25 if cost else 0):
        middle = (low + high) / 2
        spent = (np.maximum(angle_CK - middle[:, None], 0.0) ** 2 / scale_K**2).sum(axis=1)
        low, high = np.where(spent > cost, middle, low), np.where(spent > cost, high, middle)
    return np.minimum(angle_CK, high[:, None])


def _simple_families(study: _Study) -> list[Floats]:
    """Towards the nearest flat, straight, never falling, never rising and one-step curves, where the
    statistics take their extreme and conventional values and no path along slopes arrives."""
    al_K, n_turns = study.al_K, len(study.al_K)
    one, angle = np.linalg.solve(study.root_KK, np.stack([np.ones(n_turns), study.angle_K], axis=1)).T
    turns = np.arange(n_turns) - (n_turns - 1) / 2
    ends = np.clip(al_K.mean() + turns[[0, -1]] * (turns @ al_K) / (turns @ turns), 0.0, 1.0)
    monotone = [optimize.isotonic_regression(al_K, increasing=rising).x for rising in (True, False)]
    flat, straight = np.full(n_turns, one @ angle / (one @ one)), np.linspace(*ends, n_turns)
    steps = [
        np.repeat([study.angle_K[:turn].mean(), study.angle_K[turn:].mean()], [turn, n_turns - turn])
        for turn in range(1, n_turns)
    ]
    targets = [flat, *np.arcsin(np.sqrt([straight, *monotone])), *steps]
    parts = np.array([[0.33], [0.67], [1.0]])
    return [_inside(study.angle_K + parts * (target - study.angle_K)) for target in targets]


def _observe(scores: ArrayLike, seed: int) -> _Study:
    scores = np.asarray(scores, dtype=float)
    if scores.ndim == 2:
        scores = scores[None]
    elif scores.ndim != 3 or len(scores) < 3:
        raise ValueError("scores must be (users, turns), or (seeds, users, turns) with at least 3 seeds")
    n_seeds, n_users, n_turns = scores.shape
    valid = ~np.isnan(scores)
    if n_users < 2 or not valid.any(axis=1).all():
        raise ValueError("an interval needs two users and, in every seed, a valid score at every turn")
    marks_K = valid.sum(axis=(0, 1)).astype(float)
    al_K = np.where(valid, scores, 0.0).sum(axis=(0, 1)) / marks_K
    root_KK = _user_root(np.where(valid, scores - al_K, 0.0).sum(axis=0) * n_users / marks_K, al_K)
    # Scrambled Sobol points are a fairer sample than as many independent ones.
    uniform = stats.qmc.Sobol(n_turns + n_seeds + 1, rng=seed).random(_STUDIES)
    normal = special.ndtri(uniform)
    error_BK = normal[:, :n_turns] @ root_KK.T
    if n_seeds > 1:
        angle_SK = np.arcsin(np.sqrt(np.nanmean(scores, axis=1)))
        apart_SK = (angle_SK - angle_SK.mean(axis=0)) / np.sqrt(n_seeds * (n_seeds - 1))
        # So few seeds need the t law: their spread is itself drawn.
        spread_B = np.sqrt(stats.chi2.ppf(uniform[:, -1], n_seeds - 1) / (n_seeds - 1))
        error_BK += normal[:, n_turns:-1] @ apart_SK / spread_B[:, None]
        between_KK = _t_to_normal(n_seeds) ** 2 * apart_SK.T @ apart_SK
        root_KK = np.linalg.cholesky(root_KK @ root_KK.T + between_KK)
    angle_K = np.arcsin(np.sqrt((al_K * marks_K + 0.375) / (marks_K + 0.75)))
    whole = bool(np.isin(scores[valid], (0.0, 1.0)).all())
    return _Study(al_K, angle_K, root_KK, error_BK, marks_K, whole)


def _user_root(away_EK: Floats, al_K: Floats) -> Floats:
    """Root (K, K) of the covariance over users of the angles of AL, from each user's deviations (E, K)."""
    n_users, n_turns = away_EK.shape
    covariance = away_EK.T @ away_EK / (n_users * (n_users - 1))
    spread_K = np.sqrt(np.diag(covariance))
    varies = spread_K > 0
    # d arcsin(sqrt(p)) = dp / (2 sqrt(p (1 - p))). Where all users agree, the spread of 0/1 marks stands in.
    scale_K = np.full(n_turns, 0.5 / np.sqrt(n_users - 1))
    scale_K[varies] = spread_K[varies] / (2 * np.sqrt(al_K * (1 - al_K))[varies])
    apart_K = np.where(varies, spread_K, 1.0)
    # A little shrinkage keeps the correlations of few users invertible.
    correlation = 0.97 * covariance / np.outer(apart_K, apart_K)
    np.fill_diagonal(correlation, 1.0)
    return np.linalg.cholesky(correlation) * (_t_to_normal(n_users) * scale_K)[:, None]


def _t_to_normal(n: int) -> float:
    return float(special.stdtrit(n - 1, (1 + LEVEL) / 2) / special.ndtri((1 + LEVEL) / 2))


def _inside(angle: Floats) -> Floats:
    return np.clip(angle, 0.0, np.pi / 2)


def _al(angle: Floats) -> Floats:
    return np.sin(angle) ** 2
