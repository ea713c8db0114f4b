"""Intervals of N-IR and N-R² on simulated studies whose true curve is known. The whole table:
tests/benchmarks/bench_coverage.py."""

import numpy as np
import pytest
from benchmarks.bench_coverage import CURVES, coverage, study
from scipy import stats

from rlpa_lib.evaluation import metrics
from rlpa_lib.evaluation.curve_intervals import improvement_interval

STUDIES = 80
# What a method that covers 93 % gets below once in a thousand tests.
LEAST = stats.binom.ppf(0.001, STUDIES, 0.93) / STUDIES
RISE = CURVES["rise and fall"]


@pytest.mark.parametrize(("curve", "name", "norm", "longest"), [
    ("rise and fall", "n_ir", "global", 0.05), ("rise and fall", "n_r2", "global", 0.35),
    ("slow rise", "n_ir", "global", 0.16), ("slow rise", "n_ir", "running", 0.2),
    ("flat", "n_ir", "global", 0.3), ("flat", "n_r2", "global", 1.0),
])  # fmt: skip
def test_intervals_cover_without_saying_everything(curve, name, norm, longest):
    found = coverage(CURVES[curve], name, norm, STUDIES)
    assert found["covered"] >= LEAST, found
    assert found["length"] <= longest, found


def test_a_bootstrap_would_not_do():
    # That these studies can tell a bad interval from a good one: a bootstrap of the same numbers falls far
    # below LEAST.
    truth, inside = metrics.normalized_improvement(CURVES["slow rise"])[0], []
    for number in range(STUDIES):
        scores = study(CURVES["slow rise"], 74, 0.3, np.random.default_rng(number))
        users = np.random.default_rng(0).integers(len(scores), size=(200, len(scores)))
        low, high = np.quantile(metrics.normalized_improvement(scores[users].mean(axis=1))[0], [0.025, 0.975])
        inside.append(low <= truth <= high)
    assert np.mean(inside) < LEAST - 0.1


def test_seeds_make_an_interval_longer_when_they_differ():
    rng = np.random.default_rng(0)
    alike = np.stack([study(RISE, 74, 0.3, rng) for _ in range(3)])
    curves = [np.clip(RISE * scale, 0, 1) for scale in np.linspace([1] * 10, np.linspace(1.6, 0.4, 10), 3)]
    apart = np.stack([study(curve, 74, 0.3, rng) for curve in curves])
    short, long = improvement_interval(alike, "n_ir"), improvement_interval(apart, "n_ir")
    assert 0 < short.high - short.low < 0.5 * (long.high - long.low)
    assert short.low <= short.estimate <= short.high
    with pytest.raises(ValueError, match="3 seeds"):
        improvement_interval(alike[:2], "n_ir")


@pytest.mark.parametrize("norm", ["global", "running"])
def test_where_nothing_is_known_the_interval_says_so(norm):
    # Nobody ever passed: the true curve may rise, fall or stay.
    n_ir, n_r2 = (improvement_interval(np.zeros((20, 10)), name, norm) for name in ("n_ir", "n_r2"))
    assert n_ir.low < -0.05 and n_ir.high > 0.05 and (n_r2.low, n_r2.estimate) == (0, 0) and n_r2.high > 0.5


def test_intervals_hold_the_estimate_stay_on_the_scale_and_repeat():
    scores = study(np.linspace(0.0, 1.0, 10), 74, 0.3, np.random.default_rng(1))
    scores[3, 2] = np.nan
    for norm in ("global", "running"):
        estimates = metrics.normalized_improvement(metrics.alignment_level(scores), norm)
        for name, value in zip(("n_ir", "n_r2"), estimates, strict=True):
            found = improvement_interval(scores, name, norm, seed=4)
            assert (
                found.estimate == pytest.approx(value)
                and found.low <= value + 1e-9
                and found.high >= value - 1e-9
            )
            assert name == "n_ir" or 0 <= found.low <= found.high <= 1
            assert found == improvement_interval(scores, name, norm, seed=4)


@pytest.mark.parametrize("bad", [np.zeros((1, 10)), np.full((5, 3), np.nan), np.zeros(10)])
def test_refuses_what_has_no_interval(bad):
    with pytest.raises(ValueError):
        improvement_interval(bad, "n_ir")
