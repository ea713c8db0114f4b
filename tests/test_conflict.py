"""A preference that changes in mid-dialogue (section 5.2): the drawn change, the user that says it in
passing, and how recovery is counted."""

import json
import math
import re

import numpy as np
import pytest
from scripted_server import ScriptedServer

from rlpa_lib.agents import parties
from rlpa_lib.agents.users import Shift, ShiftingUser
from rlpa_lib.dialogue.dialogue import Dialogue, Turn, Utterance
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import SLOTS, Profile, Reply
from rlpa_lib.evaluation import conflict, scoring, tables
from rlpa_lib.methods.controls import OracleControl
from rlpa_lib.mini import language
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.mini.attacks import PERSONA
from rlpa_lib.mini.judge import RuleEvaluationJudge, RuleJudge
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.mini.play import play_careful
from rlpa_lib.mini.user import AgendaUser, read_temperament
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

AT, TURNS = 6, 9
PEOPLE = builtin_personas("vanilla", 20, 0)
SHIFTS = conflict.draw_shifts(PEOPLE, 0)
USER = ShiftingUser(AgendaUser(0, "user_test"), AT, SHIFTS)


@pytest.fixture(scope="module")
def played():
    return play_careful(PEOPLE, USER, TURNS, 0)


def person(name, **profile):
    return Persona(
        name, "", "", Profile(tuple((slot.replace("_", " "), value) for slot, value in profile.items()))
    )


def dialogue(name, *profiles):
    turns = tuple(Turn(Utterance("x"), "", Reply(Profile(tuple(p.items())), "y", True)) for p in profiles)
    return Dialogue(name, name, turns)


def test_a_change_takes_the_only_other_value_there_is_by_hand():
    people = [
        person("a", Age="30", Location="Rome"),
        person("b", Age="40", Location="Oslo"),
        person("c", Age="50", Location="Rome"),
    ]
    shifts = conflict.draw_shifts(people, 7)
    assert shifts == {
        "a": Shift("Location", "Rome", "Oslo"),
        "b": Shift("Location", "Oslo", "Rome"),
        "c": Shift("Location", "Rome", "Oslo"),
    }
    table = conflict.shift_table(people, shifts, AT)
    assert table.to_dict("records")[0] == {
        "user": "a", "turn": 6, "slot": "Location", "old": "Rome", "new": "Oslo",
    }
    with pytest.raises(InputError, match="nothing of persona a can change"):
        conflict.draw_shifts([person("a", Age="30"), person("b", Age="40")], 7)


def test_changes_are_drawn_by_seed_and_contradict():
    assert conflict.draw_shifts(PEOPLE, 0) == SHIFTS != conflict.draw_shifts(PEOPLE, 1)
    assert conflict.draw_shifts(PEOPLE[::-1], 0) == SHIFTS  # not a matter of order
    for p in PEOPLE:
        shift = SHIFTS[p.id]
        assert shift.slot in conflict.CHANGEABLE and p.profile.get(shift.slot) == shift.old
        assert not lex.same_value(shift.slot, shift.new, shift.old)
    assert len({s.slot for s in SHIFTS.values()}) > 1


def test_the_valid_persona_changes_at_the_turn_and_keeps_its_temperament():
    p, shift = PEOPLE[0], SHIFTS[PEOPLE[0].id]
    assert USER.valid(p, AT - 1) == p
    changed = USER.valid(p, AT)
    assert (
        changed.profile == p.profile.replace(shift.slot, shift.new) and changed.description == p.description
    )
    assert shift.new in changed.personality and f"no longer {shift.old}" in changed.personality
    assert read_temperament(changed) == read_temperament(p)
    assert ShiftingUser(AgendaUser(), AT, {}).valid(p, AT) == p


def test_before_the_change_nothing_is_different(played):
    calm = play_careful(PEOPLE, AgendaUser(0, "user_test"), TURNS, 0)
    for mine, theirs in zip(played, calm, strict=True):
        told = SHIFTS[mine.persona_id].slot in Dialogue("", "", theirs.turns[: AT - 2]).ledger()
        same = AT - 1 if told else AT - 2  # who has not told the old value by then is made to
        assert mine.turns[: same - 1] == theirs.turns[: same - 1]


def test_the_old_value_is_told_before_and_the_new_one_in_passing(played):
    for d in played:
        shift = SHIFTS[d.persona_id]
        before, change = Dialogue("", "", d.turns[: AT - 1]), d.turns[AT - 1].user
        assert before.ledger()[shift.slot] < AT and lex.same_value(
            shift.slot, before.facts()[shift.slot], shift.old
        )
        assert shift.slot in change.stated
        phrase = dict(zip(change.stated, change.phrases, strict=True))[shift.slot]
        assert phrase in change.text and lex.same_value(shift.slot, phrase, shift.new)
        [sentence] = [
            s
            for options in language.parse(change.text, "changes_test")
            for s in options
            if (shift.slot, phrase) in s.facts
        ]
        assert sentence.template.act == "changed"
        assert lex.same_value(shift.slot, d.facts()[shift.slot], shift.new)
        later = " ".join(t.user.text for t in d.turns[AT:])
        assert not any(
            re.search(rf"\b{re.escape(form)}\b", later) for form in language.list_forms(shift.slot, shift.old)
        )


def test_at_most_one_slot_more_than_the_rule_allows_is_told(played):
    for p, d in zip(PEOPLE, played, strict=True):
        told = Dialogue("", "", d.turns[: AT - 1]).ledger()
        assert len(told) <= math.ceil(0.15 * len(p.profile) * (AT - 2))


def test_a_shifting_user_is_stateless(played):
    cut = [Dialogue(d.id, d.persona_id, d.turns[: AT - 1]) for d in played]
    assert USER.reply(PEOPLE, cut) == [d.turns[AT - 1].user for d in played]
    assert USER.reply(PEOPLE[::-1], cut[::-1]) == [d.turns[AT - 1].user for d in played][::-1]


def test_a_slot_without_frames_is_named():
    p = person("a", Favorite_Food="pad thai", Age="30")
    user = ShiftingUser(AgendaUser(0, "user_test"), 2, {"a": Shift("Favorite Food", "pad thai", "sushi")})
    said = user.reply(
        [p], [Dialogue("d", "a").hear(Utterance("Hello")).answer("", Reply(Profile(), "I see.", True))]
    )[0]
    assert (
        "About favorite food something has changed, now there is this: sushi." in said.text
        and said.stated == ("Favorite Food",)
    )


@pytest.mark.parametrize("file", ["changes", "manners"])
def test_test_users_share_no_frame_with_training_users_here_either(file):
    bare = re.compile(r"\[[^\]]*\]|\{[^}]*\}|[^\w\s]")

    def frames(name):
        return {" ".join(bare.sub(" ", t.text).lower().split()) for t in language.load_grammar(name)}

    assert not frames(f"{file}_train") & frames(f"{file}_test")
    assert {t.act for t in language.load_grammar(f"{file}_train")} == {
        t.act for t in language.load_grammar(f"{file}_test")
    }
    for other in ("user_train", "user_test"):
        assert not (frames(f"{file}_train") | frames(f"{file}_test")) & frames(other)


def test_every_changeable_slot_of_the_ten_has_sentences():
    for slot in conflict.CHANGEABLE:
        assert slot in SLOTS
        for name in ("changes_train", "changes_test"):
            assert language.find_templates(name, "changed", slot), (name, slot)


def test_judges_hold_a_response_against_the_persona_that_is_valid_now():
    """The careful oracle knows the valid persona: it stays a ceiling through the change. A judge that went by
    the old persona would find it wrong."""
    settings = {"turns": TURNS, "seed": 0, "swap": False}
    parts = ("conflict", PEOPLE, USER, RuleEvaluationJudge(), RuleJudge())
    _, right = scoring.evaluate(OracleControl(), *parts, valid=USER.valid, **settings)
    _, wrong = scoring.evaluate(OracleControl(), *parts, valid=None, **settings)
    found = [tables.score_table([j.to_json() for j in rows]) for rows in (right, wrong)]
    assert found[0][:, AT - 1 :].mean() > 0.9 and (
        found[1][:, AT - 1 :].mean() < found[0][:, AT - 1 :].mean()
    )
    # The oracle writes the true profile: all of it matches at every turn, before and after.
    assert all(j.n_matched == j.n_true for j in right)


def test_what_a_profile_holds_and_recovery_by_hand():
    """Change at turn 3 of five. a follows at once; b two turns late, through a turn with neither; c never; d
    at once, and forgets it again."""
    shift = Shift("Location", "Lisbon", "Madrid")
    old, new, none = {"Location": "Lisbon"}, {"Location": "Madrid"}, {}
    talks = [
        dialogue("a", none, old, new, new, new),
        dialogue("b", old, old, old, none, new),
        dialogue("c", old, old, old, old, old),
        dialogue("d", none, none, {"Location": "the Spanish capital"}, old, old),
    ]
    table = conflict.check_profiles(talks, dict.fromkeys("abcd", shift), RuleJudge())
    assert list(table.columns) == ["user", "turn", "holds_new", "holds_old"] and len(table) == 20
    assert table.query("user == 'b'")["holds_old"].tolist() == [1, 1, 1, 0, 0]
    # another phrasing of the value counts
    assert table.query("user == 'd'")["holds_new"].tolist() == [0, 0, 1, 0, 0]
    assert conflict.measure_recovery(table, 3).to_dict() == {"a": 0, "b": 2, "c": math.inf, "d": 0}
    summary = conflict.summarize_recovery(table, 3)
    assert (summary["users"], summary["knew_old"], summary["recovered"], summary["at_once"]) == (
        4, 0.75, 0.75, 0.5,
    )
    assert summary["median_turns"] == 1.0  # of 0, 0, 2 and inf
    assert summary["stale"] == pytest.approx((0 + 1 + 3 + 2) / 12) and summary["holds_new"] == pytest.approx(
        (3 + 1 + 0 + 1) / 12
    )
    assert summary["stale_low"] <= summary["stale"] <= summary["stale_high"]
    curves = conflict.profile_curves({"rlpa": table})
    at_three = curves.query("turn == 3 and value == 'old'").iloc[0]
    assert at_three["share"] == 0.5 and at_three["low"] < 0.5 < at_three["high"] and len(curves) == 10


def test_a_judge_that_fails_leaves_a_gap_and_is_no_recovery():
    class Silent(RuleJudge):
        def matches(self, pairs):
            return [None for _ in pairs]

    talks = [dialogue("a", {"Location": "Madrid"}), dialogue("b", {})]
    table = conflict.check_profiles(
        talks, dict.fromkeys("ab", Shift("Location", "Lisbon", "Madrid")), Silent()
    )
    assert table["holds_new"].isna().all() and conflict.measure_recovery(table, 1).tolist() == [
        math.inf,
        math.inf,
    ]


def test_before_and_after_by_hand():
    """Four users (two of each kind), five turns, change at turn 4; turn 1 does not count. Before: turns 2-3,
    after: turns 4-5."""
    scores = np.array([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]] * 2, dtype=float)
    row = conflict.compare_before_after(scores, 4)
    assert row["before"] == 75.0 and row["after"] == 25.0 and row["change"] == -50.0
    assert row["drop"] == -50.0  # (0 - 1 + 0 - 0) / 2
    assert row["change_low"] <= -50.0 <= row["change_high"]
    curve = conflict.alignment_curves({"rlpa": scores}, {"rlpa": scores[:, :3]})
    assert curve.query("users == 'change'")["al"].tolist() == [50, 100, 50, 0, 50] and len(curve) == 8


def test_a_language_model_user_is_told_what_has_changed(tmp_path):
    shift = Shift("Location", "Lisbon", "Oslo")
    talk = Dialogue("d", PERSONA.id)
    for text, stated in (("Hello", ()), ("I live in Lisbon.", ("Location",))):
        talk = talk.hear(Utterance(text, stated)).answer("", Reply(Profile(), "I see.", True))
    with ScriptedServer(
        lambda body: json.dumps({"message": "Boxes everywhere since I came to Oslo.", "revealed": [9]})
    ) as server:
        more = [
            "user.kind=llm", "user.model=m", f"user.base_url={server.url}", "conflict.at=3",
            "conflict.turns=4", "run.prompt_set=en",
        ]
        cfg = config.load_config("smoke", more)
        user = parties.make_shifting_user(cfg, {PERSONA.id: shift}, 0, tmp_path)
        [said] = user.reply([PERSONA], [talk])
        user.reply([PERSONA], [talk.hear(said).answer("", Reply(Profile(), "Oh.", True))])
        early = ShiftingUser(
            user.inner, 4, {PERSONA.id: Shift("Others", PERSONA.profile.get("Others"), "a cat")}
        )
        early.reply([PERSONA], [talk])
    assert said == Utterance("Boxes everywhere since I came to Oslo.", ("Location",))
    first, second, third = (
        [json.loads(b["messages"][-1]["content"]), b["messages"][0]["content"]] for b in server.bodies
    )
    assert (
        first[0]["changed_item"] == {"number": 9, "was": "Lisbon"}
        and "9. Location: Oslo" in first[1]
        and "no longer" in first[1]
    )
    assert "changed_item" not in second[0] and "9. Location: Oslo" in second[1]
    assert third[0]["tell_now"] == 10 and "changed_item" not in third[0] and "9. Location: Lisbon" in third[1]
