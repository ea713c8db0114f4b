"""The analyses (notebooks 31, 32, 34 and 35) played by stand-ins, as `rehearsal` plays the main evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rlpa_lib.agents import parties
from rlpa_lib.evaluation import conflict, long_term, rows, scoring
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.plan import rehearsal
from rlpa_lib.plan.rehearsal import NoEncoder, StandIn, Tally, Typical
from rlpa_lib.runs.storage import hash_json
from rlpa_lib.settings.config import Config
from rlpa_lib.settings.kinds import WITH_PROFILE
from rlpa_lib.study import response_judge, rewrites, user_measures

CLAIMS = 2  # of a user about itself, an utterance after the first: as many as it may tell at once
PROFILES = 100  # the most that are rewritten in a rehearsal; a and b are drawn for each, so two or three would not be typical


def play_conflict(run: StandIn, wanted: Sequence[rows.Row], users: int) -> None:
    """A change in mid-dialogue, and the question whether each profile holds the old and the new value."""
    cfg, people = run.cfg, builtin_personas("vanilla", users, 0)
    shifts = conflict.draw_shifts(people, 0)
    user, judge = parties.make_shifting_user(cfg, shifts, 0, run), parties.make_reward_judge(cfg, run)
    for row in wanted:
        dialogues = _played(run, row, people, user, judge, cfg.conflict.turns, user.valid)
        if row.method in WITH_PROFILE:
            conflict.check_profiles(dialogues, shifts, judge)


def play_long_term(run: StandIn, wanted: Sequence[rows.Row], users: int) -> None:
    """A long dialogue, and what the user has revealed at its checkpoints."""
    cfg, people = run.cfg, builtin_personas("vanilla", users, 0)
    user, judge, reader = parties.make_user(cfg, "vanilla", 0, run), parties.make_reward_judge(cfg, run), parties.make_reveal_judge(cfg, run)
    marks = long_term.list_checkpoints(cfg.long_term.turns, cfg.long_term.every)
    for row in wanted:
        dialogues = _played(run, row, people, user, judge, cfg.long_term.turns)
        long_term.track_revealed(people, dialogues, marks, reader, by_judge=True)


def play_difficult(run: StandIn, wanted: Sequence[rows.Row], users: int) -> None:
    """Users of each manner; the willing ones are those of the main evaluation."""
    cfg, people = run.cfg, builtin_personas("vanilla", users, 0)
    for manner in cfg.difficult.manners:
        user, judge = parties.make_user(cfg, "vanilla", 0, run, manner), parties.make_reward_judge(cfg, run)
        for row in wanted:
            _played(run, row, people, user, judge, cfg.difficult.turns)


def study(cfg: Config, typical: Typical) -> Tally:
    """All that notebook 34 asks, in requests and tokens; `study.personas` and `study.profiles` give the sizes."""
    n = min(cfg.study.profiles, PROFILES)
    rewritten = rehearsal._played(cfg, typical, play_rewrites, n)
    return rehearsal.per_users(cfg, typical, cfg.study.personas, play_users).added(rewritten, cfg.study.profiles / n)


def play_users(run: StandIn, users: int) -> None:
    """Dialogues of every user model, what is claimed in them, and verdicts on replies to the first model where no training has left any.

    Points of a training log cost nothing: what its users said is in the run's cache.
    """
    cfg, people, fresh = run.cfg, builtin_personas("vanilla", users, 0), Fresh(run)
    partner = rows.build_method("rlpa_prompting", fresh.policy(), cfg)
    models = user_measures.make_user_models(fresh, people)
    played = {name: user_measures.play_dialogues(fresh, name, user, people, partner) for name, user in models.items()}
    user_measures.find_claims(fresh, {name: list(zip(people, dialogues, strict=True)) for name, dialogues in played.items()})
    if cfg.policy.kind == "endpoint":
        response_judge.judge_points(next(iter(played.values())), parties.make_reward_judge(cfg, fresh))


def play_rewrites(run: StandIn, profiles: int) -> None:
    """The data sets of rewritten profiles, and each profile judge's count of every case."""
    fresh = Fresh(run)
    for some in rewrites.make_sets(fresh, builtin_personas("vanilla", profiles, 0)).values():
        rewrites.count_overlaps(some, rewrites.make_judges(fresh))


class Fresh(StandIn):
    """A stand-in as a run that has no results yet and keeps none. Its models find claims and rewrite profiles too."""

    def __init__(self, run: StandIn):
        super().__init__(run.cfg, run.dir, run.typical)
        self.tally, self.seen, self.seed = run.tally, run.seen, 0

    def fingerprint(self, *parts: str) -> str:
        """Nothing is read back, so all are alike."""
        return ""

    def done(self, key: str, fingerprint: str) -> bool:
        """Never: everything is played."""
        return False

    def mark_done(self, key: str, fingerprint: str) -> None:
        """Forgotten."""

    def write_jsonl(self, relative: str, rows: Iterable[Any]) -> None:
        """Not written."""

    def answer(self, schema, messages: list[dict[str, str]], seed: int | None) -> str:
        """As any stand-in's; lists of claims (CLAIMS an utterance) and of values (one an item) are filled here."""
        name = schema.__name__ if schema else ""
        if not name.startswith(("Claims", "Rewritten_")):
            return super().answer(schema, messages, seed)
        value = rehearsal._words(self.typical.value, hash_json([messages, seed])[:8], self.typical)
        if name == "Claims":
            one = {"utterance": 1, "claim": value, "against_persona": 1, "against_earlier": 1}
            return json.dumps({"claims": [one] * CLAIMS * (messages[1]["content"].count('"number":') - 1)})
        values = [value] * int(name.rpartition("_")[2])
        return json.dumps({"paraphrased": values, "altered": values})


def _played(run: StandIn, row: rows.Row, people, user, judge, turns: int, valid=None) -> list:
    cfg = run.cfg
    scripted = cfg.evaluator.kind == "rule" and row.method in ("random", "oracle")
    method = rows.build_method(row.method, None if scripted else run.policy(), cfg, NoEncoder())
    options = {"turns": turns, "seed": 0, "swap": False, "valid": valid}
    return scoring.evaluate(method, "analysis", people, user, parties.make_evaluation_judge(cfg, run), judge, **options)[0]
