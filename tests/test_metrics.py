"""Metrics by hand and against the paper's tables; intervals by simulated studies whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from rlpa_lib.evaluation import intervals, metrics
from rlpa_lib.evaluation.agreement_metrics import classification_metrics, overlap_metrics
from rlpa_lib.evaluation.paper_tables import PAPER_TABLES, curve, load

PAPER = load(PAPER_TABLES)
READING = {"table2": "global", "table4": "global", "table5": "running"}
ROWS = [(table, index) for table in READING for index in PAPER.rows(table).index]


def simulate(rng, n_users, shape=(), seed_sd=0.0):
    """0/1 scores (*shape, users, 10): abilities differ by user, seeds differ by `seed_sd`; the mean curve
    rises from .2 to .8."""
    level_K = np.linspace(0.2, 0.8, 10)
    ability = rng.normal(0, 1, (n_users, 1)) + rng.normal(0, 1, (*shape, 1, 1)) * seed_sd
    return (
        rng.random((*shape, n_users, 10)) < 1 / (1 + np.exp(-np.log(level_K / (1 - level_K)) - ability))
    ).astype(float)


def coverage(draw, truth, studies=1000):
    drawn = [draw(np.random.default_rng(study)) for study in range(studies)]
    return np.mean([interval.low <= truth <= interval.high for interval in drawn])


@pytest.fixture(scope="module")
def truth_K():
    return metrics.alignment_level(simulate(np.random.default_rng(99), 400_000))


def test_alignment_level_by_hand():
    scores = [[1, 0, 0.5], [0, 0, 1], [1, 1, np.nan], [0, 0, 0.6]]
    assert metrics.alignment_level(scores) == pytest.approx([0.5, 0.25, 0.7])


def test_alignment_level_of_a_turn_without_scores_is_nan():
    assert np.isnan(metrics.alignment_level([[1, np.nan], [0, np.nan]])[1])


@pytest.mark.parametrize("bad", [[1, 0], [[62.16]], [[-0.1]], np.zeros((0, 3)), [[[1]]]])
def test_alignment_level_refuses(bad):
    with pytest.raises(ValueError, match="scores must"):
        metrics.alignment_level(bad)


def test_normalisation_by_hand():
    # Running minimum and maximum of 2 4 1 3: (2,2) (2,4) (1,4) (1,4).
    assert metrics.normalize_levels([2, 4, 1, 3], "running") == pytest.approx([0, 1, 0, 2 / 3])
    assert metrics.normalize_levels([2, 4, 1, 3], "global") == pytest.approx([1 / 3, 1, 0, 2 / 3])
    # Turns -1.5 -.5 .5 1.5 around their mean; global: slope (-.5 - .5 + 0 + 1) / 5 = 0; running: (-.5 + 1) /
    # 5 = .1.
    assert metrics.normalized_improvement([2, 4, 1, 3])[0] == pytest.approx(0.0)
    assert metrics.normalized_improvement([2, 4, 1, 3], norm="running")[0] == pytest.approx(0.1)


def test_straight_and_flat_curves():
    assert metrics.normalized_improvement([10, 20, 30, 40]) == pytest.approx((1 / 3, 1.0))
    for norm in ("global", "running"):
        assert metrics.normalized_improvement([0.3] * 10, norm) == (0.0, 0.0)
        assert metrics.normalized_improvement([0.1 + 0.2, 0.3, 0.3], norm) == (0.0, 0.0)


def test_running_reading_cannot_tell_rising_curves_apart():
    # N-AL is 0, 1, 1, ..., 1 for every curve that rises at each turn: slope 4.5 / 82.5, determination .2727.
    for rising in (np.arange(10.0), np.arange(10.0) ** 3, np.log(np.arange(1, 11))):
        assert metrics.normalized_improvement(rising, "running") == pytest.approx((4.5 / 82.5, 3 / 11))


@pytest.mark.parametrize(("table", "index"), ROWS)
def test_printed_improvement_is_reproduced_to_the_digit(table, index):
    row = PAPER.rows(table).loc[index]
    n_ir, n_r2 = metrics.normalized_improvement(curve(row), norm=READING[table])
    assert (round(n_ir, 3), round(n_r2, 3)) == (row["n_ir"], row["n_r2"])


def test_improvement_is_vectorised_and_free_of_units():
    curves = PAPER.rows("table5")[[f"k{k}" for k in range(1, 11)]].to_numpy(float)
    n_ir, n_r2 = metrics.normalized_improvement(curves / 100, "running")
    one_by_one = [metrics.normalized_improvement(curve, "running") for curve in curves]
    assert np.allclose(np.stack([n_ir, n_r2], axis=1), one_by_one)


@pytest.mark.parametrize(
    ("bad", "norm"), [([1], "global"), ([1, np.nan], "global"), ([1, 2], "local"), (3.0, "running")]
)
def test_improvement_refuses(bad, norm):
    with pytest.raises(ValueError, match=r"turn|norm"):
        metrics.normalized_improvement(bad, norm)


def test_table_10_follows_from_table_9():
    found = classification_metrics(tp=124, fp=21, fn=18, tn=137)
    printed = {
        "accuracy": 0.87, "precision": 0.855, "recall": 0.873, "f1": 0.864, "specificity": 0.867,
        "cohens_kappa": 0.74,
    }
    assert {name: round(value, 3) for name, value in found.items()} == printed


def test_empty_ratio_is_nan_and_not_zero():
    found = classification_metrics(tp=0, fp=0, fn=3, tn=7)
    assert np.isnan(found["precision"]) and found["recall"] == 0


def test_overlap_metrics_by_hand():
    # Errors 0, 1, 2, 0: half exact, three within one, mean square 5 / 4.
    found = overlap_metrics([3, 4, 1, 0], [3, 5, 3, 0])
    assert found == pytest.approx({"exact_acc": 50, "fuzzy_acc": 75, "mse": 1.25, "rmse": 1.25**0.5})


def test_holm_by_hand():
    assert intervals.adjust_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_binomial_interval_ends_and_a_textbook_value():
    low, high = intervals.binomial_interval([0, 46, 74], 74)
    assert (low[0], high[2]) == (0.0, 1.0)
    assert high[0] == pytest.approx(1 - 0.025 ** (1 / 74))
    reference = stats.binomtest(46, 74).proportion_ci(method="exact")
    assert (low[1], high[1]) == pytest.approx((reference.low, reference.high))


def test_binomial_interval_never_covers_less_than_it_says():
    # Coverage is summed exactly over all outcomes, so no simulation noise hides a failure.
    counts = np.arange(75)
    low, high = intervals.binomial_interval(counts, 74)
    for share in np.linspace(0.005, 0.995, 199):
        assert stats.binom.pmf(counts, 74, share)[(low <= share) & (share <= high)].sum() >= 0.95


def test_alignment_interval_counts_valid_scores_only():
    scores = np.array([[1, 1.0], [0, np.nan], [1, 0.0]])
    assert intervals.alignment_interval(scores)[1].high == pytest.approx(intervals.binomial_interval(1, 2)[1])
    with pytest.raises(ValueError, match="0/1"):
        intervals.alignment_interval([[0.5]])


@pytest.mark.parametrize("n_users", [74, 20])
def test_bootstrap_of_the_average_covers(truth_K, n_users):
    found = coverage(
        lambda rng: intervals.bootstrap_interval(simulate(rng, n_users), n_resamples=500), truth_K.mean()
    )
    assert 0.93 <= found <= 0.97


def test_paired_difference_covers_and_its_test_keeps_its_level(truth_K):
    results = []
    for study in range(1000):
        rng = np.random.default_rng(study)
        scores = simulate(rng, 74)
        # A second system that agrees with the first on most turns and is as good on average over the flips.
        flips = rng.random(scores.shape) < 0.3
        other = np.where(flips, simulate(rng, 74), scores)
        results.append(intervals.paired_difference(scores, other, n_resamples=400))
    covered = np.mean([result.low <= 0 <= result.high for result in results])
    false_alarms = np.mean([result.p_value <= 0.05 for result in results])
    assert 0.93 <= covered <= 0.97
    assert false_alarms <= 0.07


def test_paired_test_sees_a_real_gap_and_drops_missing_cells():
    rng = np.random.default_rng(3)
    a = simulate(rng, 74)
    b = a * (rng.random(a.shape) < 0.8)
    b[0] = np.nan
    result = intervals.paired_difference(a, b)
    assert result.n_users == 73 and result.low > 0 and result.p_value < 0.001
    assert result.estimate == pytest.approx((a[1:] - b[1:]).mean())


@pytest.mark.parametrize(("n_seeds", "seed_sd"), [(3, 0.1), (3, 0.3), (5, 0.2)])
def test_seed_interval_covers(n_seeds, seed_sd):
    truth = np.mean(
        [simulate(np.random.default_rng(10_000 + i), 300, (100,), seed_sd).mean() for i in range(30)]
    )
    found = coverage(lambda rng: intervals.seed_interval(simulate(rng, 74, (n_seeds,), seed_sd)), truth)
    assert 0.93 <= found <= 0.97


def test_seed_interval_needs_three_seeds():
    with pytest.raises(ValueError, match="3 seeds"):
        intervals.seed_interval(np.zeros((2, 5, 3)))


def test_ratio_interval_by_hand():
    # Marks passed 1 of 2, 3 of 4, 2 of 2: 6 of 8. Residuals -.5, 0, .5; spread sqrt(3/2 * .5) / 8, t with 2
    # degrees of freedom 4.303.
    found = intervals.ratio_interval([1, 3, 2], [2, 4, 2])
    half = 4.302653 * 0.75**0.5 / 8
    assert (found.estimate, found.low, found.high) == pytest.approx((0.75, 0.75 - half, 1.0))
    # A share of users is binomial. Where nobody differs up to 1 - .025^(1/2) of all users may be anything; on
    # an open scale nothing is known.
    assert intervals.ratio_interval([1, 0, 1], [1, 1, 1]).low == pytest.approx(
        intervals.binomial_interval(2, 3)[0]
    )
    assert intervals.ratio_interval([4, 4], [4, 4]).low == pytest.approx(intervals.binomial_interval(2, 2)[0])
    assert intervals.ratio_interval([2, 2], [4, 4]).high == pytest.approx(0.5 + 0.5 * (1 - 0.025**0.5))
    assert np.isnan(intervals.ratio_interval([8, 8], [4, 4], (0, np.inf)).low)
    assert np.isnan(intervals.ratio_interval([0, 0], [0, 0]).estimate) and np.isnan(
        intervals.ratio_interval([1], [2]).high
    )


def test_ratio_interval_covers():
    # Users differ in ability and in how often they were asked.
    def draw(rng):
        asked = rng.integers(1, 11, 74)
        return intervals.ratio_interval(rng.binomial(asked, rng.beta(2, 2, 74)), asked)

    assert 0.93 <= coverage(draw, 0.5) <= 0.97


def test_no_variation_is_not_certainty():
    # All of four users pass always: what holds for one mark a user (Clopper-Pearson, .025^(1/4)) is said, not
    # [1, 1].
    everybody = intervals.bootstrap_interval(np.ones((4, 3)))
    assert (everybody.low, everybody.high) == pytest.approx((0.025**0.25, 1.0))
    seeds = intervals.seed_interval(np.zeros((3, 4, 2)))
    assert (seeds.low, seeds.high) == pytest.approx((0.0, 1 - 0.025**0.25))
    same = intervals.paired_difference(np.ones((4, 3)), np.ones((4, 3)))
    assert (same.low, same.estimate, same.high) == pytest.approx((0.025**0.25 - 1, 0, 1 - 0.025**0.25))


def test_bootstrap_refuses_and_repeats():
    scores = simulate(np.random.default_rng(0), 30)
    assert intervals.bootstrap_interval(scores, seed=5) == intervals.bootstrap_interval(scores, seed=5)
    with pytest.raises(ValueError, match="two users"):
        intervals.bootstrap_interval(scores[:1])
    with pytest.raises(ValueError, match="no valid"):
        intervals.bootstrap_interval([[1, np.nan], [0, np.nan]])


def test_two_users_have_an_interval():
    """The widened tails of a bootstrap of two users are 1e-72 and 1: the upper one must not be taken for
    infinity."""
    found = intervals.bootstrap_interval(np.array([[1, 0, 1], [1, 1, 1]]))
    assert (found.low, found.high) == (pytest.approx(2 / 3), 1.0)
