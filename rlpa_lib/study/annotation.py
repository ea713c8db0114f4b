"""What people are asked and what they answered (appendices G and H).

annotation/<task>/ of a run: items.json (shown), key.json (hidden: model, system label, verdict) and
answers/<annotator>.jsonl, where an item's last line counts.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from rlpa_lib.runs import record, storage
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import REWARD_CRITERIA

_ANNOTATOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")


@dataclass(frozen=True)
class Task:
    """Questions (name -> text) about each item of a kind, all with the same choices: key on the keyboard ->
    (stored value, label)."""

    name: str
    title: str
    guide: str
    questions: Mapping[str, str]
    choices: Mapping[str, tuple[Any, str]]


@dataclass(frozen=True)
class Item:
    """What is shown: headed blocks of lines (speaker or label, text). `hidden` goes to the key file alone."""

    id: str
    blocks: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    hidden: Mapping[str, Any] = field(default_factory=dict)


USERS = Task(
    "users", "How good is this simulated user?",
    "Rate the user, not the assistant. The persona is who the user should be.", {
        "coherence": "Coherence: the user's words are logical and fit the conversation.",
        "stability": "Stability: persona, goals and mood stay the same from turn to turn.",
        "proactivity": "Proactivity: the user brings things up and reacts with feeling, as a person would.",
        "persona_fit": "Persona fit: what the user says and how it is said suit the persona.",
    }, {label[0]: (int(label[0]), label) for label in ("1 very poor", "2", "3", "4", "5 excellent")},
)  # fmt: skip
PAIRS = Task(
    "pairs", "Do these two items say the same about a person?",
    "Both stand under the same heading of a profile. Judge the meaning, not the words.",
    {"label": "The two items are"},
    {"s": ("same", "Same"), "d": ("different", "Different"), "u": ("uncertain", "Uncertain")},
)  # fmt: skip
RESPONSES = Task(
    "responses", "Is this response good for this user?",
    "The inferred profile is what the assistant believes about the user. Judge the response against it. "
    "The label is 1 when all of them are.",
    {name: criterion.question for name, criterion in REWARD_CRITERIA.items()},
    {"1": (1, "1 yes"), "0": (0, "0 no")},
)  # fmt: skip
TASKS = {task.name: task for task in (USERS, PAIRS, RESPONSES)}


def locate_task(run_dir: str | Path, task: Task) -> Path:
    """The folder of a task; a relative run directory counts from the repository, as in `runs.open_run`."""
    return record.REPOSITORY / Path(run_dir).expanduser() / "annotation" / task.name


def prepare(run_dir: str | Path, task: Task, items: Sequence[Item], seed: int) -> None:
    """Shuffle the items, give them neutral ids, write items.json and key.json.

    InputError: there are answers to other items, which would be taken for answers to these.
    """
    place, order = locate_task(run_dir, task), list(items)
    random.Random(derive_seed(seed, "annotation", task.name)).shuffle(order)
    named = {f"{task.name}-{number:04d}": item for number, item in enumerate(order, start=1)}
    shown = [{"id": name, "blocks": item.blocks} for name, item in named.items()]
    digest = storage.hash_json(shown)
    file, answered = place / "items.json", any(place.glob("answers/*.jsonl"))
    if answered and file.is_file() and _load_items(place)["sha256"] != digest:
        what_to_do = "keep that folder under another name, then run this again"
        raise InputError(f"{place}: holds answers to other items; {what_to_do}")
    key = {name: {**item.hidden, "was": item.id} for name, item in named.items()}
    storage.write_json(place / "key.json", key)
    storage.write_json(file, {"task": task.name, "seed": seed, "sha256": digest, "items": shown})


class Answers:
    """One annotator's items in an order of their own, the answers so far, and where to go on.

    InputError: nothing is prepared, the name cannot be a file's, or the answers belong to other items.
    """

    def __init__(self, run_dir: str | Path, task: Task, annotator: str):
        if not _ANNOTATOR.fullmatch(annotator):
            raise InputError(f"annotator: letters, digits, - and _ are wanted, at most 40; got {annotator!r}")
        place = locate_task(run_dir, task)
        stored = _load_items(place)
        self.task, self.annotator, self._digest = task, annotator, stored["sha256"]
        self.items = [Item(row["id"], row["blocks"]) for row in stored["items"]]
        random.Random(derive_seed(stored["seed"], "order", task.name, annotator)).shuffle(self.items)
        self.file = place / "answers" / f"{annotator}.jsonl"
        self.given = {row["item"]: row["answers"] for row in _read_answers(self.file, stored)}

    def next_open(self, start: int = 0) -> int | None:
        """Place of the first item without an answer, from `start` on if there is one; None: there is none."""
        places = [place for place, item in enumerate(self.items) if item.id not in self.given]
        return next((place for place in places if place >= start), places[0] if places else None)

    def save(self, item: Item, answers: Mapping[str, Any]) -> None:
        """Append one answer. ValueError: a question without an answer, or a value that is no choice."""
        for name in self.task.questions:
            if answers.get(name) not in [value for value, _ in self.task.choices.values()]:
                raise ValueError(f"{name}: {answers.get(name)!r} is no choice")
        row = {"item": item.id, "annotator": self.annotator, "answers": dict(answers), "time": record.now()}
        storage.append_jsonl(self.file, {**row, "items_sha256": self._digest})
        self.given[item.id] = dict(answers)


def load_answers(run_dir: str | Path, task: Task) -> pd.DataFrame:
    """All annotators' last answers: columns annotator, item, the questions, time, and what was hidden."""
    place, last = locate_task(run_dir, task), {}
    for file in sorted(place.glob("answers/*.jsonl")):
        last |= {(row["annotator"], row["item"]): row for row in _read_answers(file, _load_items(place))}
    if not last:
        return pd.DataFrame(columns=["annotator", "item", *task.questions, "time"])
    hidden = json.loads((place / "key.json").read_text(encoding="utf-8"))
    return pd.DataFrame([
        {"annotator": who, "item": item, **row["answers"], "time": row["time"], **hidden[item]}
        for (who, item), row in sorted(last.items())
    ])


def export_answers(run_dir: str | Path, task: Task) -> Path:
    """annotation/<task>/answers.csv with all answers so far, written in one step."""
    table = load_answers(run_dir, task).to_csv(index=False)
    return storage.write_bytes(locate_task(run_dir, task) / "answers.csv", table.encode())


def _load_items(place: Path) -> dict[str, Any]:
    file = place / "items.json"
    if not file.is_file():
        what_to_do = "run 34_user_and_reward_model_evaluation with this run directory first"
        raise InputError(f"{file}: nothing to annotate here; {what_to_do}")
    return json.loads(file.read_text(encoding="utf-8"))


def _read_answers(file: Path, stored: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = storage.read_jsonl(file, appended=True) if file.is_file() else []
    ids = {item["id"] for item in stored["items"]}
    if any(row["items_sha256"] != stored["sha256"] or row["item"] not in ids for row in rows):
        items = file.parents[1] / "items.json"
        raise InputError(f"{file}: holds answers to other items than those in {items}")
    return rows
