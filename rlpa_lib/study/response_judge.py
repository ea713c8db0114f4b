"""Is the response judge right (appendix H.2)? Points of the training log to label, and labelled turns."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from rlpa_lib.dialogue.dialogue import Dialogue, judge_view
from rlpa_lib.dialogue.judging import Judge, Verdict
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply, parse_released_reply, parse_reply
from rlpa_lib.dialogue.protocols import SimulatedUser
from rlpa_lib.runs import storage
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import REWARD_CRITERIA
from rlpa_lib.study.annotation import Item
from rlpa_lib.study.tables import measure_agreement

T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """A reply of good format to a dialogue's pending utterance, and the judge's marks."""

    id: str
    dialogue: Dialogue
    reply: Reply
    marks: dict[str, int]

    @property
    def verdict(self) -> int:
        """The product of the marks (eq. 4)."""
        return int(all(self.marks[name] for name in REWARD_CRITERIA))


@dataclass(frozen=True)
class LabelledTurn:
    """A reply with labels of 0 or 1: each criterion, `score` (eq. 4) and `evaluation` (C.3)."""

    persona: Persona
    dialogue: Dialogue
    reply: Reply
    labels: dict[str, int]
    source: str


def read_training_points(
    run: Run, people: Sequence[Persona], user: SimulatedUser, name: str = "ppo"
) -> list[Point]:
    """Every judged sample of a training, in order; [] when the run holds none.

    The log lacks what the user said, who is asked again along the samples that went on: seed, persona and
    transcript decide the answer, and a model's comes from the run's cache.
    """
    read = parse_reply if run.cfg.profile.strictness == "strict" else parse_released_reply
    by_id, points, talks = {persona.id: persona for persona in people}, [], {}
    for update in run.read_metrics(name):
        prefix = f"{update['update']:04d}"
        rows = storage.read_jsonl(run.dir / "dialogues" / name / f"update-{prefix}.jsonl")
        for turn in sorted({row["turn"] for row in rows}):  # one update may hold all turns of a cohort
            group = [row for row in rows if row["turn"] == turn]
            who = {row["dialogue"]: _find_persona(row["dialogue"], by_id) for row in group}
            talks = {} if turn == 1 else talks
            now = [talks.get(key) or Dialogue(key, persona.id) for key, persona in who.items()]
            spoken = user.reply([*who.values()], now)
            heard = {d.id: d.hear(utterance) for d, utterance in zip(now, spoken, strict=True)}
            for row in group:
                dialogue = heard[row["dialogue"]]
                reply = read(row["completion"])
                if row["reward"] and row["reward"]["format_ok"]:
                    marks = {c: int(row["reward"]["criteria"][c]) for c in REWARD_CRITERIA}
                    label = f"{prefix}-{dialogue.id}-{turn}-{row['sample']}"
                    points.append(Point(label, dialogue, reply, marks))
                if row["chosen"]:
                    told = row["completion"], reply, run.cfg.rollout.fallback
                    talks[dialogue.id] = dialogue.answer(*told)
    return points


def judge_points(dialogues: Sequence[Dialogue], judge: Judge) -> list[Point]:
    """The same from finished dialogues, judged now: for a run without training."""
    cases = [
        (dialogue.before(k), turn.reply)
        for dialogue in dialogues
        for k, turn in enumerate(dialogue.turns)
        if turn.reply.format_ok
    ]
    return [
        Point(f"{d.id}-{len(d.turns) + 1}", d, reply, {c: int(verdict.marks[c]) for c in REWARD_CRITERIA})
        for (d, reply), verdict in zip(cases, judge.responses(cases), strict=True)
        if verdict is not None
    ]


def draw_evenly(points: Sequence[Point], n: int, seed: int) -> list[Point]:
    """n points without repetition, half of each verdict; where one verdict is rare the other fills up."""
    rng = random.Random(derive_seed(seed, "points"))
    good, bad = ([point for point in points if point.verdict == verdict] for verdict in (1, 0))
    good, bad = rng.sample(good, len(good)), rng.sample(bad, len(bad))
    first = min(len(good), max(n - n // 2, n - len(bad)))
    return [*good[:first], *bad[: n - first]]


def make_items(points: Sequence[Point]) -> list[Item]:
    """One item a point: what the assistant believes, the talk, and the response; the verdict is hidden."""
    nothing = (("nothing", "the assistant has noted nothing yet"),)
    return [
        Item(p.id, (
            ("Inferred profile", p.reply.profile.items or nothing),
            ("Conversation", judge_view(p.dialogue)),
            ("Response to judge", (("assistant", p.reply.response),)),
        ), {"verdict": p.verdict, **{f"judge_{c}": mark for c, mark in p.marks.items()}})
        for p in points
    ]  # fmt: skip


def read_rows(path: Path, read: Callable[[dict[str, Any]], T]) -> list[T]:
    """What `read` makes of each row of a JSONL file. InputError names the row that is broken."""
    made = []
    for number, row in enumerate(storage.read_jsonl(path), start=1):
        try:
            made.append(read(row))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}, row {number}: {type(error).__name__}: {error}") from None
    return made


def read_labels(path: Path) -> list[LabelledTurn]:
    """Labelled turns of a JSONL file. InputError: no file, broken line or field, rows labelled unlike."""
    turns = read_rows(path, _read_turn)
    for number, turn in enumerate(turns, start=1):
        if missing := sorted(turn.labels.keys() ^ turns[0].labels.keys()):
            raise InputError(f"{path}: row {number}: {', '.join(missing)}: not every row has this label")
    return turns


def agreement_table(
    turns: Sequence[LabelledTurn], training: Sequence[Verdict], evaluation: Sequence[Verdict]
) -> pd.DataFrame:
    """One row a criterion, then both judges' scores: `measure_agreement` by mark."""
    labelled = [c for c in REWARD_CRITERIA if c in turns[0].labels]
    marks = {c: [int(verdict.marks[c]) for verdict in training] for c in labelled}
    marks |= {"score": [v.score for v in training], "evaluation": [v.score for v in evaluation]}
    return pd.DataFrame([
        {"mark": name, **measure_agreement([turn.labels[name] for turn in turns], given)}
        for name, given in marks.items()
    ])


def _read_turn(row: Mapping[str, Any]) -> LabelledTurn:
    who, said, dialogue = row["persona"], row["reply"], Dialogue.from_json(row["dialogue"])
    if dialogue.pending is None:
        raise ValueError("no utterance of the dialogue is pending")
    # A criterion that came later than the labels is compared nowhere; `read_labels` wants all rows alike.
    criteria = [c for c in REWARD_CRITERIA if c in row["labels"]]
    labels = {name: row["labels"][name] for name in (*criteria, "score", "evaluation")}
    if not set(labels.values()) <= {0, 1}:
        raise ValueError(f"labels other than 0 and 1: {labels}")
    persona = Persona(who["id"], who["description"], who["personality"], _read_profile(who["profile"]))
    reply = Reply(_read_profile(said["profile"]), said["response"], True)
    return LabelledTurn(persona, dialogue, reply, labels, row["source"])


def _read_profile(data: Mapping | Sequence) -> Profile:
    """From `Profile.to_json`, or from a plain list of [slot, value]."""
    return Profile.from_json(data if isinstance(data, Mapping) else {"items": data})


def _find_persona(dialogue: str, known: Mapping[str, Persona]) -> Persona:
    """A dialogue is named after its place, its persona and a copy's number (`rollout.start`)."""
    name = dialogue.split("-", 1)[1]
    return known.get(name) or known[name.rpartition("-")[0]]
