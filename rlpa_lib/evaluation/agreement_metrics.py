"""Agreement of raters and judges (appendices G and H). Ratings: items x raters, NaN where not rated."""

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from statsmodels.stats.inter_rater import aggregate_raters, cohens_kappa, fleiss_kappa

from rlpa_lib.evaluation.intervals import NAN, UNKNOWN, Interval


def kappa_interval(confusion: ArrayLike, weights: Literal["quadratic"] | None = None) -> Interval:
    """Cohen's kappa of a square table of counts (a rater each way) with the large-sample 95 % interval of
    Fleiss, Cohen and Everitt (1969). NaN when there is one category only. ValueError: not square, negative
    counts, empty, unknown weights."""
    counts = np.asarray(confusion, dtype=float)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or np.any(counts < 0) or counts.sum() == 0:
        raise ValueError("a confusion table is square, with counts of 0 or more and at least one case")
    if weights not in (None, "quadratic"):
        raise ValueError(f"weights must be None or 'quadratic', not {weights!r}")
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0 where there is one category: that is the NaN
        found = cohens_kappa(counts, wt=weights)
    return Interval(float(found.kappa), float(found.kappa_low), float(min(1.0, found.kappa_upp)))


def classification_metrics(tp: float, fp: float, fn: float, tn: float) -> dict[str, float]:
    """The columns of table 10 from the counts of table 9; a ratio with an empty denominator is NaN."""
    shares = {"accuracy": (tp + tn, tp + fp + fn + tn), "precision": (tp, tp + fp), "recall": (tp, tp + fn),
              "f1": (2 * tp, 2 * tp + fp + fn), "specificity": (tn, tn + fp)}  # fmt: skip
    ratios = {name: part / total if total else NAN for name, (part, total) in shares.items()}
    return {**ratios, "cohens_kappa": kappa_interval([[tp, fp], [fn, tn]]).estimate}


def overlap_metrics(predicted_E: ArrayLike, true_E: ArrayLike) -> dict[str, float]:
    """Table 8's columns for overlap counts (E,): accuracies in percent (fuzzy: off by 1 at most), MSE, RMSE.
    ValueError: shapes differ or no case."""
    predicted, true = np.asarray(predicted_E, dtype=float), np.asarray(true_E, dtype=float)
    if predicted.shape != true.shape or predicted.size == 0:
        raise ValueError("predicted and true counts must be equally long and not empty")
    error = np.abs(predicted - true)
    exact, fuzzy, mse = (float(part.mean()) for part in (error == 0, error <= 1, error**2))
    return {"exact_acc": 100 * exact, "fuzzy_acc": 100 * fuzzy, "mse": mse, "rmse": mse**0.5}


def pairwise_kappa(ratings: pd.DataFrame, categories: Sequence[Any], ordinal: bool) -> pd.DataFrame:
    """Kappa of every two raters over the items that both rated, where `ordinal` also with quadratic weights:
    columns first, second, n, kappa, kappa_quadratic, and bounds. ValueError: a rating that is no category."""
    _check_ratings(ratings, categories)
    kinds = {"kappa": None} | ({"kappa_quadratic": "quadratic"} if ordinal else {})
    rows = []
    for one, other in combinations(ratings.columns, 2):
        both = ratings[[one, other]].dropna()
        counts = [[((both[one] == a) & (both[other] == b)).sum() for b in categories] for a in categories]
        row: dict[str, Any] = {"first": one, "second": other, "n": len(both)}
        for name, weights in kinds.items():
            row |= (kappa_interval(counts, weights) if len(both) else UNKNOWN).columns(name)
        rows.append(row)
    return pd.DataFrame(rows)


def group_agreement(ratings: pd.DataFrame, categories: Sequence[Any], ordinal: bool) -> dict[str, float]:
    """Fleiss' kappa over items that all rated, Krippendorff's alpha (nominal or ordinal) over items with two
    ratings or more. NaN: fewer than two raters, no item, a single category."""
    import krippendorff  # slow to import, and few who need metrics need this

    _check_ratings(ratings, categories)
    places = {value: place for place, value in enumerate(categories)}
    coded = ratings.map(lambda value: places.get(value, np.nan)).to_numpy(dtype=float)
    n_ratings = (~np.isnan(coded)).sum(axis=1)
    complete, shared = coded[n_ratings == ratings.shape[1]], coded[n_ratings >= 2]
    fleiss = alpha = NAN
    if ratings.shape[1] >= 2 and len(np.unique(complete)) > 1:
        fleiss = float(fleiss_kappa(aggregate_raters(complete.astype(int), len(categories))[0]))
    if len(np.unique(shared[~np.isnan(shared)])) > 1:
        domain, level = [*range(len(categories))], "ordinal" if ordinal else "nominal"
        alpha = float(krippendorff.alpha(shared.T, value_domain=domain, level_of_measurement=level))
    counts = {"raters": ratings.shape[1], "items_by_all": len(complete)}
    return {**counts, "fleiss_kappa": fleiss, "krippendorff_alpha": alpha}


def majority(ratings: pd.DataFrame, otherwise: Any) -> pd.Series:
    """Each item's value that more than half of its raters gave (H.1); `otherwise` where there is none."""

    def vote(row: pd.Series) -> Any:
        counts = row.dropna().value_counts()
        return counts.index[0] if len(counts) and counts.iloc[0] * 2 > counts.sum() else otherwise

    return ratings.apply(vote, axis=1)


def _check_ratings(ratings: pd.DataFrame, categories: Sequence[Any]) -> None:
    unknown = {value for value in ratings.to_numpy().ravel() if not pd.isna(value)} - set(categories)
    if unknown:
        raise ValueError(f"ratings that are no category: {sorted(unknown, key=str)}")
