"""What is measured in dialogues of simulated users, and points of the training log, on the miniature's own
parties."""

from dataclasses import replace

import pytest

from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.profile import Profile, Reply, render_reply
from rlpa_lib.mini.attacks import PERSONA
from rlpa_lib.mini.judge import RuleJudge
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.mini.play import collect_responses
from rlpa_lib.mini.user import AgendaUser
from rlpa_lib.rlpa.rewards import score_replies
from rlpa_lib.runs.run import claim
from rlpa_lib.settings.config import Config
from rlpa_lib.settings.kinds import REWARD_CRITERIA
from rlpa_lib.study import response_judge, user_measures

NOBODY = Reply(Profile(), "I see.", True)


def talk(*utterances):
    dialogue = Dialogue("d", PERSONA.id)
    for text, stated, phrases in utterances:
        dialogue = dialogue.hear(Utterance(text, stated, phrases)).answer("", NOBODY)
    return dialogue


def test_measures_by_hand():
    dialogue = talk(
        ("Hello", (), ()),
        ("I live in Lisbon.", ("Location",), ("Lisbon",)),
        # two lies, one of them against what was said
        ("I am forty. I live in Madrid.", ("Age", "Location"), ("forty", "Madrid")),
        (
            "I am forty. I live in Madrid!",
            ("Occupation", "Interests", "Gender", "Others"),
            ("pediatric nurse", "rock climbing", "woman", "a talent"),
        ),
    )
    found = user_measures.measure_dialogue(PERSONA, dialogue)
    assert (found["turns"], found["slots"], found["stated"], found["told"]) == (4, 10, 7, 6)
    assert found["contradicted"] == 3 and found["inconsistent"] == 1  # forty, Madrid, a talent
    assert found["repeated"] == 1 and found["words"] == 1 + 4 + 7 + 7
    # allowed after turns 1 to 4: 1 (a courtesy), 2, 3, 5; told: 0, 1, 2, 6
    assert found["over_limit"] == 1


def test_a_user_who_does_not_report_words_is_not_called_true_to_the_persona():
    found = user_measures.measure_table(
        {"llm": [(PERSONA, talk(("I live in Madrid.", ("Location",), ())))]}
    ).iloc[0]
    assert found[["stated", "contradiction_rate", "inconsistency_rate"]].isna().all() and found[
        "share_per_turn"
    ] == pytest.approx(0.1)


def played(user, people, turns=6):
    """Dialogues with an assistant that says something else at each turn."""
    now, pool = (
        [Dialogue(f"d-{p.id}", p.id) for p in people],
        [Reply(Profile(), text, True) for text in collect_responses()],
    )
    for turn in range(turns):
        now = [d.hear(u) for d, u in zip(now, user.reply(people, now), strict=True)]
        now = [d.answer("", pool[(turn * 17 + i) % len(pool)]) for i, d in enumerate(now)]
    return list(zip(people, now, strict=True))


def test_the_agenda_user_is_true_and_its_impostor_is_not():
    people = builtin_personas("vanilla", 12, 0)
    user = AgendaUser(0, "user_test")
    impostor = user_measures.Impostor(user, tuple(people))
    table = user_measures.measure_table(
        {"own": played(user, people), "impostor": played(impostor, people)}
    ).set_index("model")
    assert table.loc["own", "contradiction_rate"] == 0 == table.loc["own", "over_limit_rate"]
    assert (
        table.loc["impostor", "contradiction_rate"] > 0.6 and table.loc["impostor", "inconsistency_rate"] == 0
    )
    assert table.loc["own", "stated"] > 20 and 0 < table.loc["own", "share_per_turn"] <= 0.15
    items = user_measures.make_items({"secret-model": played(user, people[:1], 2)})
    assert "secret-model" not in str(items[0].blocks) and items[0].hidden == {"model": "secret-model"}
    assert people[0].description in str(items[0].blocks) and "Hello" in str(items[0].blocks)


@pytest.fixture
def trained(tmp_path):
    """A run whose log holds two turns of three users, two samples each, judged as training judges them."""
    cfg = Config.model_validate({"rollout": {"users": 3, "turns": 2, "samples": 2}, "ppo": {"minibatch": 6}})
    run, people, user, judge = (
        claim(cfg, 1, tmp_path / "run", "test"), builtin_personas("train", 5, 1)[:3], AgendaUser(1),
        RuleJudge(),
    )
    pool, now, seen = (
        collect_responses(), [Dialogue(f"{i:04d}-{p.id}", p.id) for i, p in enumerate(people)], {},
    )
    for turn in (1, 2):
        now = [d.hear(u) for d, u in zip(now, user.reply(people, now), strict=True)]
        rows, following = [], []
        for i, (person, dialogue) in enumerate(zip(people, now, strict=True)):
            replies = [
                Reply(Profile(tuple(dialogue.facts().items())), pool[7 * i + turn + k], True) for k in (0, 1)
            ]
            replies[1] = replace(replies[1], format_ok=turn == 1)
            rewards = score_replies(judge, [person] * 2, [dialogue] * 2, replies)
            for k, (reply, reward) in enumerate(zip(replies, rewards, strict=True)):
                text = render_reply(reply.profile, reply.response)
                rows.append(
                    {
                        "dialogue": dialogue.id, "turn": turn, "sample": k, "chosen": k == turn - 1,
                        "completion": text, "reward": vars(reward),
                    }
                )
                seen[dialogue.id, turn, k] = dialogue
            following.append(dialogue.answer("", replies[turn - 1]))
        now = following
        run.write_jsonl(f"dialogues/ppo/update-{turn:04d}.jsonl", rows)
        run.log_metrics("ppo", {"update": turn})
    return run, people, user, judge, seen


def test_the_log_gives_back_what_the_judge_saw(trained):
    run, people, user, judge, seen = trained
    points = response_judge.read_training_points(run, people, user)
    assert len(points) == 9  # three of the second turn's replies were of broken format
    for point in points:
        _, turn, sample = point.id.rsplit("-", 2)
        then = seen[point.dialogue.id, int(turn), int(sample)]
        assert point.dialogue.pending == then.pending and [t.user for t in point.dialogue.turns] == [
            t.user for t in then.turns
        ]
        assert [t.reply.response for t in point.dialogue.turns] == [t.reply.response for t in then.turns]
        [verdict] = judge.responses([(point.dialogue, point.reply)])
        assert {
            c: int(verdict.marks[c]) for c in REWARD_CRITERIA
        } == point.marks and point.verdict == verdict.score
    assert response_judge.read_training_points(run, people, user, name="other") == []


def test_points_are_drawn_evenly_by_verdict():
    points = [
        response_judge.Point(str(i), Dialogue("d", "p"), NOBODY, dict.fromkeys(REWARD_CRITERIA, int(i < 5)))
        for i in range(100)
    ]
    drawn = response_judge.draw_evenly(points, 20, 0)
    assert len(drawn) == 20 == len({p.id for p in drawn}) and sum(p.verdict for p in drawn) == 5
    assert (
        sum(p.verdict for p in response_judge.draw_evenly(points, 8, 0)) == 4
        and len(response_judge.draw_evenly(points, 300, 0)) == 100
    )
    assert drawn == response_judge.draw_evenly(points, 20, 0) != response_judge.draw_evenly(points, 20, 1)
