"""Evaluation on the real miniature: the controls bound the scale, the same seed repeats a run, a kill loses
one turn at most."""

import json
from dataclasses import replace

import numpy as np
import pytest

from rlpa_lib import runs
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.judging import Verdict
from rlpa_lib.dialogue.protocols import Completion
from rlpa_lib.evaluation import played, rows, scoring, tables
from rlpa_lib.methods.controls import OracleControl, RandomControl
from rlpa_lib.methods.prompting import Prompted
from rlpa_lib.mini.judge import RuleEvaluationJudge, RuleJudge
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.mini.play import collect_responses, select_personal
from rlpa_lib.mini.user import AgendaUser
from rlpa_lib.settings import config
from rlpa_lib.settings.kinds import EVALUATION_CRITERIA

PEOPLE = builtin_personas("vanilla", 12, 0)


def play(method, people=PEOPLE, benchmark="vanilla", turns=6, seed=0, **options):
    return scoring.evaluate(
        method, benchmark, people, AgendaUser(0, "user_test"),
        options.pop("evaluator", RuleEvaluationJudge()), options.pop("judge", RuleJudge()), turns=turns,
        seed=seed, **options,
    )


def rows_of(method, **options):
    return [j.to_json() for j in play(method, **options)[1]]


class Recorder:
    """A policy that answers everything with one text and remembers what it was shown."""

    def __init__(self, text):
        self.text, self.seen = text, []

    def generate(self, messages, n, *, seed, temperature, max_new_tokens):
        self.seen += messages
        return [[Completion((1,), (2, 3), (0.0, 0.0), self.text, True)] * n for _ in messages]


def test_oracle_is_a_ceiling_and_random_a_floor():
    pool = select_personal(collect_responses(10))
    personal = "Life in Lisbon must be lovely. What is your job?"
    assert select_personal(["What is your job?", personal]) == (personal,)
    oracle, random = (tables.score_table(rows_of(m)).mean() for m in (OracleControl(), RandomControl(pool)))
    assert oracle > 0.9 and random < 0.1


def test_the_same_seed_gives_the_same_judgements_and_another_seed_others():
    first, again, other = (play(OracleControl(), seed=s)[1] for s in (3, 3, 4))
    assert first == again != other


def test_the_dimensions_of_a_verdict_are_on_record():
    class Marking(RuleEvaluationJudge):
        def evaluate(self, cases):
            return [replace(v, dimensions={"goal_alignment": True}) for v in super().evaluate(cases)]

    assert {str(row["dimensions"]) for row in rows_of(OracleControl(), turns=2, evaluator=Marking())} == {
        "{'goal_alignment': True}"
    }
    assert {str(row["dimensions"]) for row in rows_of(OracleControl(), turns=2)} == {"{}"}


def test_a_policy_never_sees_what_the_user_has_not_said():
    policy = Recorder("<profile>\n</profile>\n\n<response>\nI see.\n</response>")
    dialogues, _ = play(Prompted("rlpa", policy, "system", True))
    for persona, dialogue in zip(PEOPLE, dialogues, strict=True):
        shown = " ".join(m["content"] for messages in policy.seen for m in messages)
        for slot, value in persona.profile.items:
            if (
                slot not in dialogue.ledger()
                and not value.isdigit()
                and slot not in ("Gender", "Marital Status")
            ):
                assert value not in " ".join(t.user.text for t in dialogue.turns)
        assert persona.description not in shown


PASSED = Verdict(dict.fromkeys(EVALUATION_CRITERIA, True), dict.fromkeys(EVALUATION_CRITERIA, ""))


class Counting:
    """A judge that finds everything good, and remembers what it was asked."""

    def __init__(self, verdict=PASSED):
        self.verdict, self.cases = verdict, []

    def evaluate(self, cases):
        self.cases += cases
        return [self.verdict for _ in cases]


def test_a_broken_format_scores_zero_is_counted_and_costs_no_judge():
    judge = Counting()
    rows = rows_of(Prompted("rlpa", Recorder("Hello there."), "system", True), turns=2, evaluator=judge)
    assert [r["score"] for r in rows] == [r["swapped_score"] for r in rows] == [0] * 24
    assert not any(r["format_ok"] for r in rows) and judge.cases == []


def test_every_response_is_judged_again_for_the_next_user():
    judge = Counting()
    rows = rows_of(OracleControl(), people=PEOPLE[:3], turns=1, evaluator=judge)
    asked = [persona.id for persona, _, _ in judge.cases]
    ids = [p.id for p in PEOPLE[:3]]
    assert asked == [*ids, ids[1], ids[2], ids[0]]
    assert [text for _, _, text in judge.cases[:3]] == [text for _, _, text in judge.cases[3:]]
    assert [r["swapped_user"] for r in rows] == asked[3:]
    assert rows_of(OracleControl(), people=PEOPLE[:3], turns=1, swap=False)[0]["swapped_score"] is None
    assert rows_of(OracleControl(), people=PEOPLE[:1], turns=1)[0]["swapped_user"] is None


def test_a_judge_that_fails_leaves_neither_0_nor_1():
    class NoOverlap(RuleJudge):
        def matches(self, pairs):
            return [None for _ in pairs]

    [row] = rows_of(OracleControl(), people=PEOPLE[:1], turns=1, evaluator=Counting(None), judge=NoOverlap())
    assert row["score"] is row["marks"] is row["n_matched"] is row["profile_f1"] is None
    assert np.isnan(tables.score_table([row])).all()


def test_base_answers_are_plain_text():
    rows = rows_of(
        Prompted("base", Recorder("Hi, nice to meet you. What is your job?"), "system", False), turns=1
    )
    assert all(r["format_ok"] and r["n_inferred"] == 0 for r in rows)
    # nothing is known at turn 1, so a definite question is enough
    assert tables.score_table(rows).mean() == 1.0


def test_guesses_are_items_about_slots_that_were_not_told():
    text = (
        "<profile>\n- Gender: woman\n- Marital Status: single\n</profile>\n\n<response>\nI see.\n</response>"
    )
    rows = rows_of(Prompted("rlpa", Recorder(text), "system", True), turns=1)
    assert all(r["n_guesses"] == 2 and r["n_told"] == 0 for r in rows)
    right = sum(r["n_right_guesses"] for r in rows)
    assert right == sum(p.profile.get("Gender") == "female" for p in PEOPLE)


def test_rows_survive_json_and_a_missing_verdict_is_left_out():
    row = json.loads(json.dumps(rows_of(OracleControl(), turns=1)[0]))
    table = tables.score_table([row, {**row, "user": "x", "score": None}])
    assert table.shape == (2, 1) and np.isnan(table[1, 0])


def test_dialogues_are_read_back():
    dialogues, _ = play(OracleControl(), turns=2)
    assert [Dialogue.from_json(json.loads(json.dumps(d.to_json()))) for d in dialogues] == dialogues


class Mortal(OracleControl):
    """The oracle, which dies at its n-th call and counts what it answers."""

    calls, dies_at = 0, None

    def respond(self, personas, dialogues, seed):
        type(self).calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        return super().respond(personas, dialogues, seed)


def evaluated(run, method, version="v1"):
    return played.evaluate_row(
        run, method, "vanilla", PEOPLE, AgendaUser(0, "user_test"), RuleEvaluationJudge(), RuleJudge(),
        version,
    )


@pytest.fixture
def open_run(tmp_path):
    def make(name, *overrides):
        return runs.claim(
            config.load_config("smoke", ["evaluation.turns=4", *overrides]), 0, tmp_path / name,
            "params/smoke.yaml",
        )

    return make


@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_evaluation_goes_on_at_the_turn_it_was_in(open_run, torn):
    whole = evaluated(open_run("whole"), OracleControl())
    run = open_run("killed")
    Mortal.calls, Mortal.dies_at = 0, 3
    with pytest.raises(KeyboardInterrupt):
        evaluated(run, Mortal())
    if torn:  # killed between two files: the dialogues are one turn ahead of the mark
        later = rows.read_dialogues(open_run("whole"), "oracle", "vanilla")
        run.write_jsonl(
            "dialogues/oracle-vanilla.jsonl",
            [Dialogue(d.id, d.persona_id, d.turns[:3]).to_json() for d in later],
        )
    assert evaluated(run, Mortal()) == whole
    assert Mortal.calls == 3 + 2  # turns 1 and 2, the death, then turns 3 and 4
    assert evaluated(run, Mortal()) == whole and Mortal.calls == 5
    assert rows.read_finished(run, "oracle", "vanilla", "v1") == whole
    assert rows.read_finished(run, "oracle", "vanilla", "v2") is None
    for file in ("dialogues", "judgements"):
        written = (run.dir / file / "oracle-vanilla.jsonl").read_bytes()
        assert written == (open_run("whole").dir / file / "oracle-vanilla.jsonl").read_bytes()


def test_other_weights_are_evaluated_again(open_run):
    run = open_run("run")
    Mortal.calls, Mortal.dies_at = 0, None
    evaluated(run, Mortal(), "weights 1")
    evaluated(run, Mortal(), "weights 2")
    assert Mortal.calls == 8


def test_a_judge_that_fails_too_often_stops_the_row_early(open_run):
    run = open_run("run")
    with pytest.raises(
        RuntimeError,
        match="oracle-vanilla: the judge failed on 12 of 48 turns, "
        "more than run.max_judge_failure_rate = 0.02",
    ):
        played.evaluate_row(
            run, OracleControl(), "vanilla", PEOPLE, AgendaUser(0, "user_test"), Counting(None), RuleJudge()
        )
