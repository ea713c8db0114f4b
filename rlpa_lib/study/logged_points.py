"""Points of the training log for people to label (appendix H.2): inferred profile, dialogue, response and the judge's verdict."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rlpa_lib.dialogue.dialogue import Dialogue, judge_view
from rlpa_lib.dialogue.judging import CRITERIA, Judge
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Reply, parse_reply
from rlpa_lib.dialogue.protocols import SimulatedUser
from rlpa_lib.evaluation.agreement_metrics import classification_metrics
from rlpa_lib.runs import storage
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.study import agreement
from rlpa_lib.study.annotation import Item


@dataclass(frozen=True)
class Point:
    """A candidate reply to a dialogue's pending utterance, and the judge's five marks; only replies of good format are judged."""

    id: str
    dialogue: Dialogue
    reply: Reply
    marks: dict[str, int]

    @property
    def verdict(self) -> int:
        """N * R * L * G * F (eq. 4)."""
        return int(all(self.marks[c] for c in CRITERIA))


def training_points(run: Run, people: Sequence[Persona], user: SimulatedUser, name: str = "ppo") -> list[Point]:
    """Every judged sample of a training, in order; [] when the run holds none.

    The log has replies and marks, not what the user said: that follows from seed, persona and transcript (`SimulatedUser`), so the user is
    asked again along the samples that went on; a model behind a server answers from the run's cache.
    """
    by_id, points = {persona.id: persona for persona in people}, []
    talks: dict[str, Dialogue] = {}
    for update in run.read_metrics(name):
        rows = storage.read_jsonl(run.dir / "dialogues" / name / f"update-{update['update']:04d}.jsonl")
        for turn, group in _by_turn(rows):
            talks = {} if turn == 1 else talks
            names = list(dict.fromkeys(row["dialogue"] for row in group))
            who = [by_id[_persona_id(name_, by_id)] for name_ in names]
            now = [talks.get(name_) or Dialogue(name_, persona.id) for name_, persona in zip(names, who, strict=True)]
            heard = {d.id: d.hear(u) for d, u in zip(now, user.reply(who, now), strict=True)}
            for row in group:
                reply = parse_reply(row["completion"])
                if row["reward"] and row["reward"]["format_ok"]:
                    label = f"{update['update']:04d}-{row['dialogue']}-{turn}-{row['sample']}"
                    points.append(Point(label, heard[row["dialogue"]], reply, {c: int(row["reward"]["criteria"][c]) for c in CRITERIA}))
            said = {r["dialogue"]: r["completion"] for r in group if r["chosen"]}
            talks |= {who: heard[who].answer(text, parse_reply(text), run.cfg.rollout.fallback) for who, text in said.items()}
    return points


def judged_points(dialogues: Sequence[Dialogue], judge: Judge) -> list[Point]:
    """The same from finished dialogues, judged now: for a run without training."""
    cases = []
    for dialogue in dialogues:
        now = Dialogue(dialogue.id, dialogue.persona_id)
        for turn in dialogue.turns:
            now = now.hear(turn.user)
            if turn.reply.format_ok:
                cases.append((now, turn.reply))
            now = now.answer(turn.completion, turn.reply)
    verdicts = judge.responses(cases)
    return [
        Point(f"{d.id}-{len(d.turns) + 1}", d, reply, {c: int(v.marks[c]) for c in CRITERIA})
        for (d, reply), v in zip(cases, verdicts, strict=True)
        if v is not None
    ]


def stratified(points: Sequence[Point], n: int, seed: int) -> list[Point]:
    """n points without repetition, half of each verdict; where one verdict is rare the other fills up. Fewer when there are fewer."""
    rng = random.Random(derive_seed(seed, "points"))
    groups = [rng.sample(one, len(one)) for one in ([p for p in points if p.verdict == v] for v in (1, 0))]
    first = min(len(groups[0]), max(n - n // 2, n - len(groups[1])))
    return [*groups[0][:first], *groups[1][: n - first]]


def annotation_items(points: Sequence[Point]) -> list[Item]:
    """One item a point: what the assistant believes, the talk, and the response; the verdict is hidden."""
    return [
        Item(p.id, (
            ("Inferred profile", p.reply.profile.items or (("nothing", "the assistant has noted nothing yet"),)),
            ("Conversation", tuple(judge_view(p.dialogue))),
            ("Response to judge", (("assistant", p.reply.response),)),
        ), {"verdict": p.verdict, **{f"judge_{c}": mark for c, mark in p.marks.items()}})
        for p in points
    ]  # fmt: skip


def confusion(labels: Sequence[int], verdicts: Sequence[int]) -> pd.DataFrame:
    """Table 9: rows model_label 1 and 0, columns human_1 and human_0 (the labels, whoever gave them)."""
    found = agreement.agreement(labels, verdicts)
    return pd.DataFrame({"model_label": [1, 0], "human_1": [found["tp"], found["fn"]], "human_0": [found["fp"], found["tn"]]})


def table10(counts: pd.DataFrame, share: float | None = None) -> dict[str, Any]:
    """Table 10 from table 9. With `share`, the judge's share of 1 in the whole log, the two rows are weighed as they are there:
    points were drawn evenly by verdict, which changes all but precision."""
    rows = counts.set_index("model_label")[["human_1", "human_0"]].astype(float)
    if share is not None:
        rows = rows.div(rows.sum(axis=1), axis=0).mul(pd.Series({1: share, 0: 1 - share}), axis=0)
    return classification_metrics(*rows.loc[1], *rows.loc[0])


def _by_turn(rows: Sequence[dict]) -> Iterator[tuple[int, list[dict]]]:
    """An update's rows turn by turn; one update may hold all turns of a cohort (`ppo.update_every: dialogue`)."""
    for turn in sorted({row["turn"] for row in rows}):
        yield turn, [row for row in rows if row["turn"] == turn]


def _persona_id(dialogue: str, known: dict[str, Persona]) -> str:
    """A dialogue is named after its place and its persona, and a copy's number (`rollout.start`)."""
    name = dialogue.split("-", 1)[1]
    return name if name in known else name.rpartition("-")[0]
