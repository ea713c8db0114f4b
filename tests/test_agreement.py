"""Labelled turns and a judge's agreement with them (appendix H)."""

import json

import pytest

from rlpa_lib.mini.attacks import PERSONA, TOLD, load_gallery, situation
from rlpa_lib.mini.judge import RuleEvaluationJudge, RuleJudge
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import REWARD_CRITERIA
from rlpa_lib.study.response_judge import agreement_table, measure_agreement, read_labels


def row(response, **labels):
    persona = {
        "id": "p", "description": "x", "personality": "",
        "profile": [list(item) for item in PERSONA.profile.items],
    }
    marks = dict.fromkeys((*REWARD_CRITERIA, "score", "evaluation"), 1) | labels
    reply = {"profile": [list(item) for item in TOLD.items], "response": response}
    return {
        "persona": persona, "dialogue": situation().to_json(), "reply": reply, "labels": marks,
        "source": "test",
    }


def written(tmp_path, *rows):
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_agreement_by_hand():
    found = measure_agreement([1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 1])
    assert [found[k] for k in ("tp", "fp", "fn", "tn")] == [2, 1, 1, 2]
    # Observed 4/6, by chance 1/2: kappa = (2/3 - 1/2) / (1/2).
    assert found["accuracy"] == pytest.approx(2 / 3) and found["cohens_kappa"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError):
        measure_agreement([1], [1, 0])


def test_labels_are_read_and_compared(tmp_path):
    good, told = (
        load_gallery()[0].response,
        next(a.response for a in load_gallery() if a.name == "asked what was told"),
    )
    turns = read_labels(written(tmp_path, row(good), row(told, L=0, score=0, evaluation=0), row(told)))
    assert (
        turns[0].persona.profile == PERSONA.profile
        and turns[0].dialogue == situation()
        and turns[0].reply.profile == TOLD
    )
    training = RuleJudge().responses([(t.dialogue, t.reply) for t in turns])
    evaluation = RuleEvaluationJudge().evaluate([(t.persona, t.dialogue, t.reply.response) for t in turns])
    table = agreement_table(turns, training, evaluation).set_index("mark")
    assert list(table.index) == [*REWARD_CRITERIA, "score", "evaluation"]
    assert table.loc["N", ["tp", "fp", "fn", "tn"]].tolist() == [3, 0, 0, 0]
    for mark in ("L", "score", "evaluation"):
        assert table.loc[mark, ["tp", "fp", "fn", "tn"]].tolist() == [1, 0, 1, 1], mark


TWOS = {"labels": dict.fromkeys((*REWARD_CRITERIA, "score", "evaluation"), 2)}


@pytest.mark.parametrize("broken", [{"labels": {"N": 1}}, {"reply": {"response": "x"}}, TWOS])
def test_a_broken_row_is_named(tmp_path, broken):
    with pytest.raises(InputError, match="row 2"):
        read_labels(written(tmp_path, row("x"), row("x") | broken))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="nothing.jsonl"):
        read_labels(tmp_path / "nothing.jsonl")


def test_labels_made_before_a_criterion_are_compared_without_it_and_must_be_alike(tmp_path):
    older = [row("x"), row("y")]
    for one in older:
        del one["labels"]["F"]
    turns = read_labels(written(tmp_path, *older))
    verdicts = RuleJudge().responses([(turn.dialogue, turn.reply) for turn in turns])
    assert "F" not in set(agreement_table(turns, verdicts, verdicts)["mark"])
    with pytest.raises(InputError, match="row 2: F: not every row has this label"):
        read_labels(written(tmp_path, older[0], row("y")))
