"""Evaluation on the real miniature: the controls bound the scale, the same seed repeats a run, the true profile stays hidden."""

import json

import numpy as np
import pytest

from rlpa_lib import evaluation, tables
from rlpa_lib.dialogue import Dialogue
from rlpa_lib.methods import OracleControl, Prompted, RandomControl
from rlpa_lib.mini.judge import RuleEvaluationJudge, RuleJudge
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.mini.teacher import response_pool
from rlpa_lib.mini.user import AgendaUser
from rlpa_lib.policies import Completion

PEOPLE = builtin_personas("vanilla", 12, 0)


def play(method, people=PEOPLE, benchmark="vanilla", turns=6, seed=0):
    return evaluation.evaluate(
        method, benchmark, people, AgendaUser(0, "user_test"), RuleEvaluationJudge(), RuleJudge(), turns=turns, seed=seed
    )


class Recorder:
    """A policy that answers everything with one text and remembers what it was shown."""

    def __init__(self, text):
        self.text, self.seen = text, []

    def generate(self, messages, n, *, seed, temperature, max_new_tokens):
        self.seen += messages
        return [[Completion((1,), (2, 3), (0.0, 0.0), self.text, True)] * n for _ in messages]


def test_oracle_is_a_ceiling_and_random_a_floor():
    oracle, random = (
        evaluation.score_table([j.to_json() for j in play(m)[1]]).mean() for m in (OracleControl(), RandomControl(response_pool(10)))
    )
    assert oracle > 0.9 and random < 0.3


def test_the_same_seed_gives_the_same_judgements_and_another_seed_others():
    first, again, other = (play(OracleControl(), seed=s)[1] for s in (3, 3, 4))
    assert first == again != other


def test_a_policy_never_sees_what_the_user_has_not_said():
    policy = Recorder("<profile>\n</profile>\n\n<response>\nI see.\n</response>")
    dialogues, _ = play(Prompted("rlpa", policy, "system", True))
    for persona, dialogue in zip(PEOPLE, dialogues, strict=True):
        shown = " ".join(m["content"] for messages in policy.seen for m in messages)
        for slot, value in persona.profile.items:
            if slot not in dialogue.ledger() and not value.isdigit() and slot not in ("Gender", "Marital Status"):
                assert value not in " ".join(t.user.text for t in dialogue.turns)
        assert persona.description not in shown


def test_a_broken_format_scores_zero_and_is_counted():
    rows = [j.to_json() for j in play(Prompted("rlpa", Recorder("Hello there."), "system", True), turns=2)[1]]
    assert evaluation.score_table(rows).sum() == 0
    assert evaluation.diagnostics(rows)["format_rate"] == 0


def test_base_answers_are_plain_text():
    rows = [j.to_json() for j in play(Prompted("base", Recorder("Hi, nice to meet you. What is your job?"), "system", False), turns=1)[1]]
    assert all(r["format_ok"] and r["n_inferred"] == 0 for r in rows)
    assert evaluation.score_table(rows).mean() == 1.0  # nothing is known at turn 1, so a definite question is enough


def test_swapping_the_persona_takes_the_personal_part_away():
    dialogues, judgements = play(OracleControl(), turns=8)
    swap = evaluation.swap_test([j.to_json() for j in judgements], PEOPLE, dialogues, RuleEvaluationJudge())
    assert swap["own"] > 0.9 and swap["personal_share"] > 0.5


def test_guesses_are_items_about_slots_that_were_not_told():
    text = "<profile>\n- Gender: woman\n- Marital Status: single\n</profile>\n\n<response>\nI see.\n</response>"
    rows = [j.to_json() for j in play(Prompted("rlpa", Recorder(text), "system", True), turns=1)[1]]
    assert all(r["n_guesses"] == 2 and r["n_told"] == 0 for r in rows)
    right = sum(r["n_right_guesses"] for r in rows)
    assert right == sum(p.profile.get("Gender") == "female" for p in PEOPLE)


def test_rows_survive_json_and_a_missing_verdict_is_left_out():
    row = json.loads(json.dumps(play(OracleControl(), turns=1)[1][0].to_json()))
    table = evaluation.score_table([row, {**row, "user": "x", "score": None}])
    assert table.shape == (2, 1) and np.isnan(table[1, 0])


def test_tables_by_hand():
    scores = {("base", "vanilla"): np.array([[0, 0, 1], [0, 1, 1], [0, 0, 0], [1, 0, 0]], dtype=float),
              ("rlpa", "vanilla"): np.array([[0, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 0]], dtype=float)}
    turnwise = tables.turnwise_table(scores, "vanilla", "tiny").set_index("method")
    assert turnwise.loc["Base", ["k1", "k2", "k3", "avg"]].tolist() == pytest.approx([25, 25, 50, 100 / 3])
    assert turnwise.loc["Base", "n_ir"] == pytest.approx(0.5)  # 0, 0, 1 against 1, 2, 3: slope 1/2
    assert turnwise.loc["Base", "n_r2"] == pytest.approx(0.75)
    assert turnwise.loc["Base", "k1_low"] == pytest.approx(0.63, abs=0.01)  # Clopper-Pearson of 1 in 4
    paired = tables.paired_table(scores)
    assert paired["difference"].item() == pytest.approx(100 * (9 - 4) / 12)
    assert "extended_avg" not in tables.main_table(scores, "tiny")


def test_dialogues_are_read_back():
    dialogues, _ = play(OracleControl(), turns=2)
    assert [Dialogue.from_json(json.loads(json.dumps(d.to_json()))) for d in dialogues] == dialogues
