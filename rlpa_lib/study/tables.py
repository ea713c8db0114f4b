"""Tables 6, 7, 9 and 10 (appendices G and H) from what annotators answered, each number with its interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from rlpa_lib.evaluation.agreement_metrics import (
    classification_metrics,
    group_agreement,
    majority,
    pairwise_kappa,
)
from rlpa_lib.evaluation.intervals import NAN, UNKNOWN, binomial_interval, bootstrap_interval
from rlpa_lib.settings.kinds import REWARD_CRITERIA
from rlpa_lib.study.annotation import PAIRS, RESPONSES, TASKS, USERS

DIMENSIONS = tuple(USERS.questions)
_LABELS = ("same", "different", "uncertain")
_CATEGORIES = {USERS.name: (1, 2, 3, 4, 5), PAIRS.name: _LABELS, RESPONSES.name: (0, 1)}


def table6(answers: pd.DataFrame) -> pd.DataFrame:
    """Table 6: a row a user model with mean ratings, their mean (all_avg), intervals and kappa.

    `kappa` is the mean of Cohen's kappas of all pairs of annotators over all four questions (the paper does
    not say which it printed), followed by the same with quadratic weights, Fleiss' kappa and Krippendorff's
    ordinal alpha; n counts ratings of one question.
    """
    rows = []
    for model, part in answers.groupby("model", sort=True):
        marks = part[list(DIMENSIONS)]
        by_dialogue = marks.groupby(part["item"]).mean()
        marks, by_dialogue = (some.assign(all_avg=some.mean(axis=1)) for some in (marks, by_dialogue))
        row: dict[str, Any] = {"model": model}
        for name in marks:
            reach = UNKNOWN
            if len(by_dialogue) > 1:
                reach = bootstrap_interval(by_dialogue[name].to_numpy()[:, None], limits=(1.0, 5.0))
            low, high = np.clip((reach.low, reach.high), 1.0, 5.0)
            row |= {name: marks[name].mean(), f"{name}_low": low, f"{name}_high": high}
        pairs, group = compare_raters(part, USERS.name)
        row |= {key: pairs[key].mean() if len(pairs) else NAN for key in ("kappa", "kappa_quadratic")}
        row |= {key: group[key] for key in ("fleiss_kappa", "krippendorff_alpha")}
        rows.append({**row, "dialogues": len(by_dialogue), "n": len(part)})
    return pd.DataFrame(rows)


def table7(answers: pd.DataFrame) -> pd.DataFrame:
    """Table 7: by system label the majority's votes and the accuracy in percent with its exact 95 % interval.

    No majority counts as uncertain, and an open vote is no agreement (H.1). The last row, overall, leaves the
    three counts open, as the paper does.
    """
    system, vote = answers.groupby("item")["system"].first(), majority(_pivot(answers, "label"), "uncertain")
    counts = pd.crosstab(system, vote).reindex(index=_LABELS[:2], columns=_LABELS, fill_value=0)
    sums = pd.DataFrame({"total": counts.sum(axis=1), "right": np.diag(counts)})
    sums.loc["overall"] = sums.sum()
    cases = sums["total"].clip(lower=1)
    low, high = binomial_interval(sums["right"], cases)
    rates = {"": 100 * sums["right"] / cases, "_low": 100 * low, "_high": 100 * high}
    rates = {f"accuracy_pct{end}": values for end, values in rates.items()}
    return sums[["total"]].join(counts).assign(**rates).rename_axis("system_label").reset_index()


def vote_on_responses(answers: pd.DataFrame) -> pd.DataFrame:
    """One row a labelled point: `label`, the majority's product of marks (H.2), and the judge's `verdict`.

    Marks are multiplied per annotator, then voted on; points without a majority are left out.
    """
    vote = majority(_pivot_products(answers), None).dropna()
    verdicts = answers.groupby("item")["verdict"].first()
    return pd.DataFrame({"label": vote.astype(int), "verdict": verdicts.reindex(vote.index).astype(int)})


def table9(labels: Sequence[int], verdicts: Sequence[int]) -> pd.DataFrame:
    """Table 9: rows model_label 1 and 0, columns human_1 and human_0 (the labels, whoever gave them)."""
    n = measure_agreement(labels, verdicts)
    return pd.DataFrame({"model_label": [1, 0], "human_1": [n["tp"], n["fn"]], "human_0": [n["fp"], n["tn"]]})


def table10(counts: pd.DataFrame, share: float | None = None) -> dict[str, Any]:
    """Table 10 from table 9. `share`: the judge's share of 1 in the whole log, by which the rows are weighed,
    since points are drawn evenly by verdict, which changes all but precision."""
    rows = counts.set_index("model_label")[["human_1", "human_0"]].astype(float)
    if share is not None:
        rows = rows.div(rows.sum(axis=1), axis=0).mul(pd.Series({1: share, 0: 1 - share}), axis=0)
    return classification_metrics(*rows.loc[1], *rows.loc[0])


def measure_agreement(labels: Sequence[int], marks: Sequence[int]) -> dict[str, float]:
    """Counts tp, fp, fn, tn (positive = marked 1, labels as truth), table 10's columns with _low and _high.

    Intervals are exact (95 %); kappa's is the accuracy's with chance agreement as observed; F1, which is no
    share of cases, is read as one of tp + (fp + fn) / 2. ValueError: no case or unequal length.
    """
    pairs = list(zip(labels, marks, strict=True))
    tp, fp, fn, tn = (pairs.count(pair) for pair in ((1, 1), (0, 1), (1, 0), (0, 0)))
    found = classification_metrics(tp=tp, fp=fp, fn=fn, tn=tn)
    cases = {"accuracy": (tp + tn, len(pairs)), "precision": (tp, tp + fp), "recall": (tp, tp + fn),
             "f1": (tp, tp + (fp + fn) / 2), "specificity": (tn, tn + fp)}  # fmt: skip
    ends = {key: binomial_interval(*of) if of[1] >= 1 else (NAN, NAN) for key, of in cases.items()}
    chance = ((tp + fp) * (tp + fn) + (tn + fp) * (tn + fn)) / len(pairs) ** 2
    ends["cohens_kappa"] = tuple((x - chance) / (1 - chance) if chance < 1 else NAN for x in ends["accuracy"])
    for name, (low, high) in ends.items():
        found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return {"tp": tp, "fp": fp, "fn": fn, "tn": tn, **found}


def compare_raters(answers: pd.DataFrame, task: str) -> tuple[pd.DataFrame, dict[str, float]]:
    """Cohen's kappa of every two annotators of a task, and Fleiss' kappa and Krippendorff's alpha of all."""
    if task == RESPONSES.name:
        table = _pivot_products(answers)
    else:
        table = pd.concat([_pivot(answers, question) for question in TASKS[task].questions])
    categories, ordinal = _CATEGORIES[task], task == USERS.name
    return pairwise_kappa(table, categories, ordinal), group_agreement(table, categories, ordinal)


def _pivot(answers: pd.DataFrame, question: str) -> pd.DataFrame:
    """Items x annotators of one question's values; NaN where somebody has not answered."""
    return answers.pivot(index="item", columns="annotator", values=question)


def _pivot_products(answers: pd.DataFrame) -> pd.DataFrame:
    """The same for the product of each annotator's marks."""
    products = answers[list(REWARD_CRITERIA)].astype(int).prod(axis=1)
    return _pivot(answers.assign(product=products), "product")
