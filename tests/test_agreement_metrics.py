"""Agreement between raters by hand, and the rules about gaps, single categories and open votes."""

import math

import numpy as np
import pandas as pd
import pytest

from rlpa_lib.evaluation.agreement_metrics import group_agreement, kappa_interval, majority, pairwise_kappa


def test_kappa_and_interval_of_the_papers_table_9():
    found = kappa_interval([[124, 21], [18, 137]])
    # observed 261/300; by chance (145 * 142 + 155 * 158) / 300^2 = 0.5009
    assert (
        found.estimate == pytest.approx((0.87 - 45080 / 90000) / (1 - 45080 / 90000))
        and round(found.estimate, 2) == 0.74
    )
    assert found.low == pytest.approx(0.663, abs=5e-4) and found.high == pytest.approx(0.816, abs=5e-4)


def test_quadratic_weights_by_hand():
    # errors of one step cost 1, of two steps 4: observed cost 10 * 1, expected (20*... ) = 50 with these
    # margins
    assert kappa_interval([[10, 0, 0], [10, 0, 0], [0, 0, 10]], "quadratic").estimate == pytest.approx(
        1 - 10 / 50
    )
    assert math.isnan(kappa_interval([[5, 0], [0, 0]]).estimate)
    # plain: observed .7; chance (.5 x .6 + .5 x .4) = .5
    assert kappa_interval([[20, 5], [10, 15]]).estimate == pytest.approx(0.4)
    for bad in ([[1, 2]], [[-1, 0], [0, 1]], [[0, 0], [0, 0]]):
        with pytest.raises(ValueError, match="square"):
            kappa_interval(bad)
    with pytest.raises(ValueError, match="quadratic"):
        kappa_interval([[1, 0], [0, 1]], "linear")


def test_pairs_of_raters_use_what_both_rated():
    ratings = pd.DataFrame({"a": [1, 2, 3, 1], "b": [1, 2, 3, np.nan], "c": [1, 3, 3, 2]})
    table = pairwise_kappa(ratings, (1, 2, 3), ordinal=True).set_index(["first", "second"])
    assert table["n"].tolist() == [3, 4, 3]
    assert table.loc[("a", "b"), "kappa"] == 1 and table.loc[("a", "b"), "kappa_quadratic"] == 1
    # a against c: 2 of 4 agree; by chance (2*1 + 1*1 + 1*2) / 16 = 5/16
    assert table.loc[("a", "c"), "kappa"] == pytest.approx((1 / 2 - 5 / 16) / (11 / 16))
    with pytest.raises(ValueError, match="no category"):
        pairwise_kappa(ratings, (1, 2), ordinal=False)


def test_fleiss_and_krippendorff_by_hand():
    ratings = pd.DataFrame({"a": ["x", "x", "y"], "b": ["x", "x", "y"], "c": ["x", "y", "y"]})
    found = group_agreement(ratings, ("x", "y"), ordinal=False)
    # agreeing pairs per item 1, 1/3, 1; share of x 5/9: chance (5/9)^2 + (4/9)^2 = 41/81
    assert found["fleiss_kappa"] == pytest.approx((7 / 9 - 41 / 81) / (1 - 41 / 81))
    # alpha: disagreement 1 - 7/9 against 2 * 5 * 4 / (9 * 8)
    assert found["krippendorff_alpha"] == pytest.approx(1 - (2 / 9) / (40 / 72))
    gaps = group_agreement(ratings.where(ratings != "y"), ("x", "y"), ordinal=False)
    assert (
        gaps["items_by_all"] == 1
        and math.isnan(gaps["fleiss_kappa"])
        and math.isnan(gaps["krippendorff_alpha"])
    )
    alone = group_agreement(ratings[["a"]], ("x", "y"), ordinal=False)
    assert alone["raters"] == 1 and math.isnan(alone["krippendorff_alpha"])


def test_majority_is_more_than_half():
    ratings = pd.DataFrame({"a": ["s", "s", "s"], "b": ["s", "d", np.nan], "c": ["d", "u", np.nan]})
    assert majority(ratings, "uncertain").tolist() == ["s", "uncertain", "s"]
