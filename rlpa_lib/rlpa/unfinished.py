"""A rollout as it grows, on disk: turns that are sampled and judged before their update are never paid for twice."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.protocols import Completion
from rlpa_lib.rlpa.rewards import Reward
from rlpa_lib.rlpa.rollout import Sample, TurnGroup
from rlpa_lib.runs import storage


@dataclass(frozen=True)
class TakenTurn:
    """One turn of a cohort that waits for its update: its groups, the dialogues after it, and how many of its prompts were cut."""

    groups: list[TurnGroup]
    dialogues: tuple[Dialogue, ...]
    prompts_cut: int


def keep(folder: Path, update: int, turn: TakenTurn) -> None:
    """Write one more turn of the rollout that update `update` (from 0) will learn from."""
    end = {"update": update, "prompts_cut": turn.prompts_cut, "dialogues": [d.to_json() for d in turn.dialogues]}
    storage.write_jsonl(folder / f"turn-{turn.groups[0].turn:03d}.jsonl", [*map(_row, turn.groups), end])


def read(folder: Path, update: int) -> list[list[dict]]:
    """Rows of each turn kept for this update, in order (`parse_turn` reads them). What was kept for another update is deleted: it was sampled
    by weights that are no more."""
    turns = [storage.read_jsonl(file) for file in sorted(folder.glob("turn-*.jsonl"))]
    if any(rows[-1]["update"] != update for rows in turns):
        clear(folder)
        return []
    return turns


def parse_turn(rows: Sequence[dict]) -> TakenTurn:
    """The turn behind its rows."""
    *groups, end = rows
    return TakenTurn([_group(row) for row in groups], tuple(Dialogue.from_json(d) for d in end["dialogues"]), end["prompts_cut"])


def clear(folder: Path) -> None:
    """Nothing waits any longer: the update is done and saved."""
    shutil.rmtree(folder, ignore_errors=True)


def completion_of(row: dict) -> Completion:
    """A completion whose fields went through JSON."""
    return Completion(**{**row, **{name: tuple(row[name]) for name in ("prompt_ids", "token_ids", "logprobs")}})


def _row(group: TurnGroup) -> dict:
    samples = [
        {"completion": vars(s.completion), "reply": {**vars(s.reply), "profile": s.reply.profile.to_json()},
         "reward": None if s.reward is None else asdict(s.reward)}
        for s in group.samples
    ]  # fmt: skip
    return {**vars(group), "samples": samples}


def _group(row: dict) -> TurnGroup:
    samples = tuple(
        Sample(
            completion_of(s["completion"]),
            Reply(**{**s["reply"], "profile": Profile.from_json(s["reply"]["profile"])}),
            None if s["reward"] is None else Reward(**s["reward"]),
        )
        for s in row["samples"]
    )
    return TurnGroup(**{**row, "prompt_ids": tuple(row["prompt_ids"]), "samples": samples})
