"""The analyses (notebooks 31, 32 and 35) played by stand-ins, as `rehearsal` plays the main evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from rlpa_lib import evaluation, parties
from rlpa_lib.analyses import conflict, long_term
from rlpa_lib.evaluation import rows
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.plan.rehearsal import NoEncoder, StandIn
from rlpa_lib.schema import WITH_PROFILE


def play_conflict(run: StandIn, wanted: Sequence[rows.Row], users: int) -> None:
    """A change in mid-dialogue, and the question whether each profile holds the old and the new value."""
    cfg, people = run.cfg, builtin_personas("vanilla", users, 0)
    shifts = conflict.draw_shifts(people, 0)
    user, judge = parties.shifting_user(cfg, shifts, 0, run), parties.reward_judge(cfg, run)
    for row in wanted:
        dialogues = _played(run, row, people, user, judge, cfg.conflict.turns, user.valid)
        if row.method in WITH_PROFILE:
            conflict.held(dialogues, shifts, judge)


def play_long_term(run: StandIn, wanted: Sequence[rows.Row], users: int) -> None:
    """A long dialogue, and what the user has revealed at its checkpoints."""
    cfg, people = run.cfg, builtin_personas("vanilla", users, 0)
    user, judge, reader = parties.simulated_user(cfg, "vanilla", 0, run), parties.reward_judge(cfg, run), parties.reveal_judge(cfg, run)
    marks = long_term.checkpoints(cfg.long_term.turns, cfg.long_term.every)
    for row in wanted:
        dialogues = _played(run, row, people, user, judge, cfg.long_term.turns)
        long_term.revealed(people, dialogues, marks, reader, by_judge=True)


def play_difficult(run: StandIn, wanted: Sequence[rows.Row], users: int) -> None:
    """Users of each manner; the willing ones are those of the main evaluation."""
    cfg, people = run.cfg, builtin_personas("vanilla", users, 0)
    for manner in cfg.difficult.manners:
        user, judge = parties.simulated_user(cfg, "vanilla", 0, run, manner), parties.reward_judge(cfg, run)
        for row in wanted:
            _played(run, row, people, user, judge, cfg.difficult.turns)


def _played(run: StandIn, row: rows.Row, people, user, judge, turns: int, valid=None) -> list:
    cfg = run.cfg
    scripted = cfg.evaluator.kind == "rule" and row.method in ("random", "oracle")
    method = rows.build(row.method, None if scripted else run.policy(), cfg, NoEncoder())
    options = {"turns": turns, "seed": 0, "swap": False, "valid": valid}
    return evaluation.evaluate(method, "analysis", people, user, parties.evaluation_judge(cfg, run), judge, **options)[0]
