"""What people are asked, and what they answered (appendices G and H): tasks, items in a seeded order, append-only answers, one CSV.

A run's folder annotation/<task>/ holds items.json (what is shown), key.json (what is hidden: model, system label, verdict) and
answers/<annotator>.jsonl, one line an answer; a later line about the same item replaces an earlier one.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from rlpa_lib.dialogue.judging import CRITERIA
from rlpa_lib.runs import record, storage
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import InputError

_ANNOTATOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


@dataclass(frozen=True)
class Question:
    """One question with its choices: key on the keyboard -> (value that is stored, label)."""

    name: str
    text: str
    choices: Mapping[str, tuple[Any, str]]


@dataclass(frozen=True)
class Task:
    """A kind of item with the questions that are asked about each."""

    name: str
    title: str
    guide: str
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Item:
    """What is shown: headed blocks of lines (speaker or label, text). `hidden` goes into the key file alone."""

    id: str
    blocks: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    hidden: Mapping[str, Any] = field(default_factory=dict)


_LIKERT = {str(n): (n, label) for n, label in enumerate(("1 very poor", "2", "3", "4", "5 excellent"), start=1)}
_YES = {"1": (1, "1 yes"), "0": (0, "0 no")}
USERS = Task(
    "users", "How good is this simulated user?", "Rate the user, not the assistant. The persona is who the user should be.",
    (Question("coherence", "Coherence: the user's words are logical and fit the conversation.", _LIKERT),
     Question("stability", "Stability: persona, goals and mood stay the same from turn to turn.", _LIKERT),
     Question("proactivity", "Proactivity: the user brings things up and reacts with feeling, as a person would.", _LIKERT),
     Question("persona_fit", "Persona fit: what the user says and how it is said suit the persona.", _LIKERT)),
)  # fmt: skip
PAIRS = Task(
    "pairs", "Do these two items say the same about a person?", "Both stand under the same heading of a profile. Judge the meaning, not the words.",
    (Question("label", "The two items are", {"s": ("same", "Same"), "d": ("different", "Different"), "u": ("uncertain", "Uncertain")}),),
)  # fmt: skip
_CRITERION = {
    "N": "Natural: good language that a person could write.",
    "R": "Relevant: fits this user, as far as the inferred profile knows them, and what was just said.",
    "L": "Logical: contradicts neither the conversation nor the profile, does not ask for what was told.",
    "G": "Engaging: keeps the conversation going, without flattery.",
    "F": "Informative: says something of content.",
}
RESPONSES = Task(
    "responses", "Is this response good for this user?",
    "The inferred profile is what the assistant believes about the user. Judge the response against it. The label is 1 when all five are.",
    tuple(Question(c, _CRITERION[c], _YES) for c in CRITERIA),
)  # fmt: skip
TASKS = {task.name: task for task in (USERS, PAIRS, RESPONSES)}


def locate_task(run_dir: str | Path, task: Task) -> Path:
    """Where a task lives; a relative run directory counts from the repository, as in `runs.open_run`."""
    return record.REPOSITORY / Path(run_dir).expanduser() / "annotation" / task.name


def prepare(run_dir: str | Path, task: Task, items: Sequence[Item], seed: int) -> list[Item]:
    """Shuffle, give ids that tell nothing, and write items.json and key.json; the items as they are shown.

    InputError: there are answers to other items; they would be taken for answers to these.
    """
    place, order = locate_task(run_dir, task), list(items)
    random.Random(derive_seed(seed, "annotation", task.name)).shuffle(order)
    named = [Item(f"{task.name}-{number:04d}", item.blocks, {**item.hidden, "was": item.id}) for number, item in enumerate(order, start=1)]
    shown = [{"id": item.id, "blocks": item.blocks} for item in named]
    digest = storage.hash_json(shown)
    existing = place / "items.json"
    if existing.is_file() and json.loads(existing.read_text(encoding="utf-8"))["sha256"] != digest and any(place.glob("answers/*.jsonl")):
        raise InputError(f"{place}: holds answers to other items; keep that folder under another name, then run this again")
    storage.write_json(place / "key.json", {item.id: item.hidden for item in named})
    storage.write_json(existing, {"task": task.name, "seed": seed, "sha256": digest, "items": shown})
    return named


class Answers:
    """One annotator's work on a task: items in an order of their own, answers so far, and where to go on.

    InputError: no items have been prepared, the name cannot be a file's, or the answers belong to other items.
    """

    def __init__(self, run_dir: str | Path, task: Task, annotator: str):
        if not _ANNOTATOR.fullmatch(annotator):
            raise InputError(f"annotator: letters, digits, - and _ are wanted, at most 40; got {annotator!r}")
        self.task, self.annotator = task, annotator
        stored = _items(run_dir, task)
        self._digest = stored["sha256"]
        self.items = [Item(row["id"], tuple((head, tuple(map(tuple, lines))) for head, lines in row["blocks"])) for row in stored["items"]]
        random.Random(derive_seed(stored["seed"], "order", task.name, annotator)).shuffle(self.items)
        self.file = locate_task(run_dir, task) / "answers" / f"{annotator}.jsonl"
        self.given = {row["item"]: row["answers"] for row in _read(self.file, self._digest, [item.id for item in self.items])}

    def next_open(self) -> int | None:
        """Place of the first item without an answer, None when all have one."""
        return next((place for place, item in enumerate(self.items) if item.id not in self.given), None)

    def save(self, item: Item, answers: Mapping[str, Any]) -> None:
        """Append one answer to the file, then remember it. ValueError: a question without an answer, or a value that is no choice."""
        for question in self.task.questions:
            if answers.get(question.name) not in [value for value, _ in question.choices.values()]:
                raise ValueError(f"{question.name}: {answers.get(question.name)!r} is no choice")
        row = {"item": item.id, "annotator": self.annotator, "answers": dict(answers), "time": record.now(), "items_sha256": self._digest}
        storage.append_jsonl(self.file, row)
        self.given[item.id] = dict(answers)


def load_answers(run_dir: str | Path, task: Task) -> pd.DataFrame:
    """All annotators' last answers: columns annotator, item, the questions, time, and what was hidden (key.json). No rows before the first answer."""
    place = locate_task(run_dir, task)
    columns = ["annotator", "item", *(q.name for q in task.questions), "time"]
    files = sorted(place.glob("answers/*.jsonl"))
    if not files:
        return pd.DataFrame(columns=columns)
    stored, hidden = _items(run_dir, task), json.loads((place / "key.json").read_text(encoding="utf-8"))
    ids = [row["id"] for row in stored["items"]]
    last = {(row["annotator"], row["item"]): row for file in files for row in _read(file, stored["sha256"], ids)}
    rows = [{"annotator": who, "item": item, **row["answers"], "time": row["time"], **hidden[item]} for (who, item), row in sorted(last.items())]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)


def export_answers(run_dir: str | Path, task: Task) -> Path:
    """annotation/<task>/answers.csv with all answers so far, written in one step."""
    return storage.write_bytes(locate_task(run_dir, task) / "answers.csv", load_answers(run_dir, task).to_csv(index=False).encode())


def pivot_ratings(table: pd.DataFrame, question: str) -> pd.DataFrame:
    """Items x annotators of one question's values; NaN where somebody has not answered."""
    return table.pivot(index="item", columns="annotator", values=question)


def _items(run_dir: str | Path, task: Task) -> dict[str, Any]:
    file = locate_task(run_dir, task) / "items.json"
    if not file.is_file():
        raise InputError(f"{file}: nothing to annotate here; run 34_user_and_reward_model_evaluation with this run directory first")
    return json.loads(file.read_text(encoding="utf-8"))


def _read(file: Path, digest: str, ids: Sequence[str]) -> list[dict[str, Any]]:
    rows = storage.read_jsonl(file, appended=True) if file.is_file() else []
    if any(row["items_sha256"] != digest or row["item"] not in ids for row in rows):
        raise InputError(f"{file}: holds answers to other items than those in {file.parents[1] / 'items.json'}")
    return rows
