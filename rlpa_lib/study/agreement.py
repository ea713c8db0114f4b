"""Turns labelled one by one, and how well a judge agrees with the labels (appendix H)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.judging import CRITERIA, Verdict
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.evaluation.agreement_metrics import classification_metrics
from rlpa_lib.evaluation.intervals import binomial_interval
from rlpa_lib.runs.storage import read_jsonl
from rlpa_lib.settings.config import InputError

NAN = float("nan")


@dataclass(frozen=True)
class LabelledTurn:
    """A reply to a pending utterance with hand-made marks: each criterion, `score` (eq. 4) and `evaluation` (C.3), 0 or 1."""

    persona: Persona
    dialogue: Dialogue
    reply: Reply
    labels: dict[str, int]
    source: str


def read_labels(path: Path) -> list[LabelledTurn]:
    """Rows of a JSONL file of labelled turns. InputError: missing file, broken line, or a missing or impossible field (line named)."""
    turns = []
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            turns.append(_read_row(row))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}, row {number}: {type(error).__name__}: {error}") from None
    return turns


def agreement(labels: Sequence[int], marks: Sequence[int]) -> dict[str, float]:
    """Counts tp, fp, fn, tn (positive = marked 1, labels taken as true) and the columns of table 10 with exact 95 % intervals (_low, _high).

    That of kappa is the interval of the accuracy with chance agreement as it was observed; F1, no share of cases, is read as
    one of tp + (fp + fn) / 2. ValueError: no case or unequal length.
    """
    pairs = list(zip(labels, marks, strict=True))
    counts = {name: sum(pair == wanted for pair in pairs) for name, wanted in (("tp", (1, 1)), ("fp", (0, 1)), ("fn", (1, 0)), ("tn", (0, 0)))}
    found = classification_metrics(**counts)
    tp, fp, fn, tn = counts.values()
    cases = {"accuracy": (tp + tn, len(pairs)), "precision": (tp, tp + fp), "recall": (tp, tp + fn), "f1": (tp, tp + (fp + fn) / 2),
             "specificity": (tn, tn + fp)}  # fmt: skip
    ends = {name: binomial_interval(*shares) if shares[1] >= 1 else (NAN, NAN) for name, shares in cases.items()}
    chance = ((tp + fp) * (tp + fn) + (tn + fp) * (tn + fn)) / len(pairs) ** 2
    ends["cohens_kappa"] = tuple((end - chance) / (1 - chance) if chance < 1 else NAN for end in ends["accuracy"])
    for name, (low, high) in ends.items():
        found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return {**counts, **found}


def judge_agreement(turns: Sequence[LabelledTurn], training: Sequence[Verdict], evaluation: Sequence[Verdict]) -> pd.DataFrame:
    """One row a criterion, one for the training judge's score and one for the evaluation judge's; columns mark, tp ... cohens_kappa."""
    rows = [{"mark": c, **agreement([t.labels[c] for t in turns], [int(v.marks[c]) for v in training])} for c in CRITERIA]
    for name, verdicts in (("score", training), ("evaluation", evaluation)):
        rows.append({"mark": name, **agreement([t.labels[name] for t in turns], [v.score for v in verdicts])})
    return pd.DataFrame(rows)


def _read_row(row: Mapping[str, Any]) -> LabelledTurn:
    who = row["persona"]
    persona = Persona(who["id"], who["description"], who["personality"], _profile(who["profile"]))
    dialogue = Dialogue.from_json(row["dialogue"])
    if dialogue.pending is None:
        raise ValueError("no utterance of the dialogue is pending")
    labels = {name: row["labels"][name] for name in (*CRITERIA, "score", "evaluation")}
    if not set(labels.values()) <= {0, 1}:
        raise ValueError(f"labels other than 0 and 1: {labels}")
    return LabelledTurn(persona, dialogue, Reply(_profile(row["reply"]["profile"]), row["reply"]["response"], True), labels, row["source"])


def _profile(data: Mapping | Sequence) -> Profile:
    """From `Profile.to_json`, or from a plain list of [slot, value]."""
    return Profile.from_json(data) if isinstance(data, Mapping) else Profile(tuple((slot, value) for slot, value in data))
