"""Tables 6 and 7 (appendices G, H.1) from what annotators answered (`annotation.load_answers`); every number with its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from rlpa_lib.dialogue.judging import CRITERIA
from rlpa_lib.evaluation import intervals
from rlpa_lib.evaluation.agreement_metrics import group_agreement, majority, pairwise_kappa
from rlpa_lib.study.annotation import PAIRS, RESPONSES, USERS, pivot_ratings

DIMENSIONS = tuple(question.name for question in USERS.questions)
_LIKERT = (1, 2, 3, 4, 5)
_LABELS = ("same", "different", "uncertain")


def table6(answers: pd.DataFrame) -> pd.DataFrame:
    """Table 6's columns, a row a user model: mean ratings and their mean over the four (all_avg) with 95 % intervals over dialogues, kappa.

    `kappa` is the mean of Cohen's kappas of all pairs of annotators over all four questions (the paper does not say which it printed); beside
    it the same with quadratic weights, Fleiss' kappa and Krippendorff's ordinal alpha; n counts ratings of one question.
    """
    rows = []
    for model, part in answers.groupby("model", sort=True):
        means = part.groupby("item")[list(DIMENSIONS)].mean()
        row: dict[str, Any] = {"model": model}
        for name, values in (*((d, means[d]) for d in DIMENSIONS), ("all_avg", means.mean(axis=1))):
            row |= _mean(name, part[name] if name in DIMENSIONS else part[list(DIMENSIONS)].mean(axis=1), values)
        stacked = pd.concat([pivot_ratings(part, d) for d in DIMENSIONS], keys=DIMENSIONS)
        rows.append({**row, **_agreement(stacked, _LIKERT, ordinal=True), "dialogues": len(means), "n": len(part)})
    return pd.DataFrame(rows)


def table7(answers: pd.DataFrame) -> pd.DataFrame:
    """Table 7: by system label the majority's same, different and uncertain (no majority counts as uncertain), accuracy in percent with exact
    95 % interval; an open vote is no agreement (H.1). The last row is overall and leaves the three counts open, as the paper does."""
    vote, system = majority(pivot_ratings(answers, "label"), "uncertain"), answers.groupby("item")["system"].first()
    rows = []
    for label in _LABELS[:2]:
        counted = vote[system == label].value_counts().reindex(_LABELS, fill_value=0)
        rows.append({"system_label": label, "total": int(counted.sum()), **counted.to_dict(), "right": int(counted[label])})
    total, right = sum(row["total"] for row in rows), sum(row["right"] for row in rows)
    frame = pd.DataFrame([*rows, {"system_label": "overall", "total": total, "right": right}])
    low, high = intervals.binomial_interval(frame["right"], frame["total"].clip(lower=1))
    share = 100 * frame["right"] / frame["total"].clip(lower=1)
    return frame.assign(accuracy_pct=share, accuracy_pct_low=100 * low, accuracy_pct_high=100 * high).drop(columns="right")


def vote_on_responses(answers: pd.DataFrame) -> pd.DataFrame:
    """One row a labelled point: `label`, the majority's N * R * L * G * F (H.2: each annotator's product, then the vote), and `verdict`.
    Points without a majority are left out."""
    products = answers.assign(product=answers[list(CRITERIA)].astype(int).prod(axis=1))
    vote = majority(pivot_ratings(products, "product"), None).dropna()
    verdicts = answers.groupby("item")["verdict"].first()
    return pd.DataFrame({"label": vote.astype(int), "verdict": verdicts.reindex(vote.index).astype(int)})


def compare_raters(answers: pd.DataFrame, task: str) -> tuple[pd.DataFrame, dict[str, float]]:
    """How well annotators agree at pairs or responses: Cohen's kappa of every two, and Fleiss' kappa and Krippendorff's alpha of all."""
    if task == PAIRS.name:
        table, categories = pivot_ratings(answers, "label"), _LABELS
    elif task == RESPONSES.name:
        table, categories = pivot_ratings(answers.assign(product=answers[list(CRITERIA)].astype(int).prod(axis=1)), "product"), (0, 1)
    else:
        table, categories = pd.concat([pivot_ratings(answers, d) for d in DIMENSIONS], keys=DIMENSIONS), _LIKERT
    ordinal = task == USERS.name
    return pairwise_kappa(table, categories, ordinal), group_agreement(table, categories, ordinal)


def _mean(name: str, marks: pd.Series, by_dialogue: pd.Series) -> dict[str, float]:
    row = {name: float(marks.mean()), f"{name}_low": float("nan"), f"{name}_high": float("nan")}
    if len(by_dialogue) > 1:
        reach = intervals.bootstrap_interval(by_dialogue.to_numpy()[:, None], limits=(1.0, 5.0))
        row |= {f"{name}_low": max(1.0, reach.low), f"{name}_high": min(5.0, reach.high)}
    return row


def _agreement(table: pd.DataFrame, categories: Sequence[Any], ordinal: bool) -> dict[str, float]:
    pairs, group = pairwise_kappa(table, categories, ordinal), group_agreement(table, categories, ordinal)
    means = {name: float(pairs[name].mean()) if len(pairs) else float("nan") for name in ("kappa", "kappa_quadratic")}
    return {**means, "fleiss_kappa": group["fleiss_kappa"], "krippendorff_alpha": group["krippendorff_alpha"]}
