"""Agreement between raters (appendices G and H), through statsmodels and krippendorff. Tables are items x raters, NaN where one has not rated."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from rlpa_lib.evaluation.intervals import Interval


def kappa_interval(confusion: ArrayLike, weights: Literal["quadratic"] | None = None) -> Interval:
    """Cohen's kappa of a square table of counts (rows one rater, columns the other), plain or with quadratic weights, with the
    large-sample 95 % interval of Fleiss, Cohen and Everitt (1969).

    NaN when chance agreement is complete (one category only). ValueError: not square, negative counts, empty, unknown weights.
    """
    from statsmodels.stats.inter_rater import cohens_kappa  # slow to import, and few who need metrics need this

    counts = np.asarray(confusion, dtype=float)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or np.any(counts < 0) or counts.sum() == 0:
        raise ValueError("a confusion table is square, with counts of 0 or more and at least one case")
    if weights not in (None, "quadratic"):
        raise ValueError(f"weights must be None or 'quadratic', not {weights!r}")
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0 where there is one category: that is the NaN
        found = cohens_kappa(counts, wt=weights)
    return Interval(float(found.kappa), float(found.kappa_low), float(min(1.0, found.kappa_upp)), 0.95)


def pairwise_kappa(ratings: pd.DataFrame, categories: Sequence[Any], ordinal: bool) -> pd.DataFrame:
    """Cohen's kappa of every two raters over the items that both rated, and with quadratic weights where categories are `ordinal`.

    Columns first, second, n, kappa, kappa_low, kappa_high (and kappa_quadratic...). ValueError: a rating that is no category.
    """
    _check(ratings, categories)
    rows = []
    for one, other in combinations(ratings.columns, 2):
        both = ratings[[one, other]].dropna()
        row: dict[str, Any] = {"first": one, "second": other, "n": len(both)}
        table = np.array([[((both[one] == a) & (both[other] == b)).sum() for b in categories] for a in categories])
        for weights, name in ((None, "kappa"), *((("quadratic", "kappa_quadratic"),) if ordinal else ())):
            found = kappa_interval(table, weights) if len(both) else Interval(*[float("nan")] * 3, 0.95)
            row |= {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def group_agreement(ratings: pd.DataFrame, categories: Sequence[Any], ordinal: bool) -> dict[str, float]:
    """Fleiss' kappa over the items that all raters rated, Krippendorff's alpha over all items with two ratings or more, and their numbers.

    Alpha is nominal, or ordinal where categories are. NaN where it is not defined: fewer than two raters, no item, a single category.
    """
    import krippendorff
    from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

    _check(ratings, categories)
    places = {value: place for place, value in enumerate(categories)}
    coded = ratings.map(lambda value: places.get(value, np.nan)).to_numpy(dtype=float)
    whole, used = coded[~np.isnan(coded).any(axis=1)], coded[(~np.isnan(coded)).sum(axis=1) >= 2]
    result = {"raters": ratings.shape[1], "items_by_all": len(whole), "fleiss_kappa": float("nan"), "krippendorff_alpha": float("nan")}
    if ratings.shape[1] >= 2 and len(whole) and len(np.unique(whole)) > 1:
        result["fleiss_kappa"] = float(fleiss_kappa(aggregate_raters(whole.astype(int), len(categories))[0]))
    if len(used) and len(np.unique(used[~np.isnan(used)])) > 1:
        level = "ordinal" if ordinal else "nominal"
        result["krippendorff_alpha"] = float(krippendorff.alpha(used.T, value_domain=list(range(len(categories))), level_of_measurement=level))
    return result


def majority(ratings: pd.DataFrame, otherwise: Any) -> pd.Series:
    """Each item's value that more than half of its raters gave; `otherwise` where there is none (H.1: an open vote is no agreement)."""

    def vote(row: pd.Series) -> Any:
        counts = row.dropna().value_counts()
        return counts.index[0] if len(counts) and counts.iloc[0] * 2 > counts.sum() else otherwise

    return ratings.apply(vote, axis=1)


def _check(ratings: pd.DataFrame, categories: Sequence[Any]) -> None:
    found = {value for value in ratings.to_numpy().ravel() if not pd.isna(value)}
    if not found <= set(categories):
        raise ValueError(f"ratings that are no category: {sorted(found - set(categories), key=str)}")
