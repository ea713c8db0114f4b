"""Tables 6, 7, 9 and 10 (appendices G and H) from what annotators answered, each number with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from rlpa_lib.evaluation import intervals
from rlpa_lib.evaluation.agreement_metrics import (
    classification_metrics,
    group_agreement,
    majority,
    pairwise_kappa,
)
from rlpa_lib.settings.kinds import REWARD_CRITERIA
from rlpa_lib.study.annotation import PAIRS, RESPONSES, USERS

DIMENSIONS = tuple(question.name for question in USERS.questions)
_LIKERT = (1, 2, 3, 4, 5)
_LABELS = ("same", "different", "uncertain")
NAN = float("nan")


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
        row: dict[str, Any] = {"model": model}
        for name in DIMENSIONS:
            row |= _rate(name, marks[name], by_dialogue[name])
        row |= _rate("all_avg", marks.mean(axis=1), by_dialogue.mean(axis=1))
        pairs, group = compare_raters(part, USERS.name)
        plain, weighted = "kappa", "kappa_quadratic"
        kappas = {key: float(pairs[key].mean()) if len(pairs) else NAN for key in (plain, weighted)}
        group = {key: group[key] for key in ("fleiss_kappa", "krippendorff_alpha")}
        rows.append({**row, **kappas, **group, "dialogues": len(by_dialogue), "n": len(part)})
    return pd.DataFrame(rows)


def table7(answers: pd.DataFrame) -> pd.DataFrame:
    """Table 7: by system label the majority's votes and the accuracy in percent with its exact 95 % interval.

    No majority counts as uncertain, and an open vote is no agreement (H.1). The last row, overall, leaves the
    three counts open, as the paper does.
    """
    vote = majority(_pivot(answers, "label"), "uncertain")
    system, rows = answers.groupby("item")["system"].first(), []
    for label in _LABELS[:2]:
        counted = vote[system == label].value_counts().reindex(_LABELS, fill_value=0)
        total, right = int(counted.sum()), int(counted[label])
        rows.append({"system_label": label, "total": total, **counted.to_dict(), "right": right})
    sums = {key: sum(row[key] for row in rows) for key in ("total", "right")}
    frame = pd.DataFrame([*rows, {"system_label": "overall", **sums}])
    cases = frame["total"].clip(lower=1)
    low, high = intervals.binomial_interval(frame["right"], cases)
    columns = {"": 100 * frame["right"] / cases, "_low": 100 * low, "_high": 100 * high}
    return frame.assign(**{f"accuracy_pct{end}": x for end, x in columns.items()}).drop(columns="right")


def vote_on_responses(answers: pd.DataFrame) -> pd.DataFrame:
    """One row a labelled point: `label`, the majority's product of marks (H.2), and the judge's `verdict`.

    Marks are multiplied per annotator, then voted on; points without a majority are left out.
    """
    vote = majority(_pivot(_multiply(answers), "product"), None).dropna()
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
    ends = {key: intervals.binomial_interval(*of) if of[1] >= 1 else (NAN, NAN) for key, of in cases.items()}
    chance = ((tp + fp) * (tp + fn) + (tn + fp) * (tn + fn)) / len(pairs) ** 2
    ends["cohens_kappa"] = tuple((x - chance) / (1 - chance) if chance < 1 else NAN for x in ends["accuracy"])
    for name, (low, high) in ends.items():
        found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return {"tp": tp, "fp": fp, "fn": fn, "tn": tn, **found}


def compare_raters(answers: pd.DataFrame, task: str) -> tuple[pd.DataFrame, dict[str, float]]:
    """Cohen's kappa of every two annotators of a task, and Fleiss' kappa and Krippendorff's alpha of all."""
    if task == PAIRS.name:
        table, categories = _pivot(answers, "label"), _LABELS
    elif task == RESPONSES.name:
        table, categories = _pivot(_multiply(answers), "product"), (0, 1)
    else:
        table, categories = pd.concat([_pivot(answers, d) for d in DIMENSIONS], keys=DIMENSIONS), _LIKERT
    ordinal = task == USERS.name
    return pairwise_kappa(table, categories, ordinal), group_agreement(table, categories, ordinal)


def _pivot(answers: pd.DataFrame, question: str) -> pd.DataFrame:
    """Items x annotators of one question's values; NaN where somebody has not answered."""
    return answers.pivot(index="item", columns="annotator", values=question)


def _multiply(answers: pd.DataFrame) -> pd.DataFrame:
    return answers.assign(product=answers[list(REWARD_CRITERIA)].astype(int).prod(axis=1))


def _rate(name: str, marks: pd.Series, by_dialogue: pd.Series) -> dict[str, float]:
    low = high = NAN
    if len(by_dialogue) > 1:
        reach = intervals.bootstrap_interval(by_dialogue.to_numpy()[:, None], limits=(1.0, 5.0))
        low, high = max(1.0, reach.low), min(5.0, reach.high)
    return {name: float(marks.mean()), f"{name}_low": low, f"{name}_high": high}
