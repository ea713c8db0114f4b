"""Users who do not cooperate: what each manner changes, that the ledger stays honest, and that willing users
stay what they were."""

import json
import random

import numpy as np
import pytest
from scripted_server import ScriptedServer

from rlpa_lib.agents import parties
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.reveal import SHARE_PER_TURN
from rlpa_lib.evaluation import difficult
from rlpa_lib.mini import language
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.mini.attacks import PERSONA
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.mini.play import list_moments, play_careful
from rlpa_lib.mini.user import (
    MANNERS,
    WILLING,
    AgendaUser,
    Manner,
    count_empty_answers,
    draw_other_value,
)
from rlpa_lib.settings import config
from rlpa_lib.settings.base import MANNERS as NAMES

PEOPLE = builtin_personas("vanilla", 24, 0)
ASKS = "What is your job?"  # no content of its own
SAYS = "A warm cup of tea can make a slow evening nicer. What is your job?"


def talk(*responses):
    d = Dialogue("d", PERSONA.id).hear(Utterance("Hello"))
    for text in responses[:-1]:
        d = d.answer(text, Reply(Profile(), text, True)).hear(Utterance("Okay."))
    return d.answer(responses[-1], Reply(Profile(), responses[-1], True))


def play(manner, turns=8):
    return play_careful(
        PEOPLE, AgendaUser(0, "user_test", manner if isinstance(manner, Manner) else MANNERS[manner]), turns,
        0,
    )


@pytest.fixture(scope="module")
def worlds():
    return {name: play(name) for name in MANNERS}


def acts(text, name="manners_test"):
    return {s.template.act for options in language.parse(text, name) for s in options}


def told(dialogues):
    return np.mean([len(d.ledger()) for d in dialogues])


def lines(dialogues):
    return [before.pending.text for d in dialogues for before, _ in list_moments(d)]


def test_the_settings_and_the_agenda_know_the_same_manners():
    assert tuple(MANNERS) == ("willing", *NAMES)


def test_a_willing_user_does_not_depend_on_the_other_manners(worlds):
    assert worlds["willing"] == play(Manner(patience=99))  # draws nothing, says nothing else


@pytest.mark.parametrize("name", ["reluctant", "impatient", "off_topic", "terse"])
def test_difficult_users_tell_less(worlds, name):
    assert told(worlds[name]) < told(worlds["willing"])


def test_no_manner_tells_more_than_the_rule_or_what_its_ledger_hides(worlds):
    for dialogues in worlds.values():
        for p, d in zip(PEOPLE, dialogues, strict=True):
            for before, _ in list_moments(d):
                assert len(before.ledger()) <= max(
                    2, SHARE_PER_TURN * len(p.profile) * (len(before.turns) + 1)
                )
                user = before.pending
                for slot, phrase in zip(user.stated, user.phrases, strict=True):
                    assert phrase in user.text and lex.same_value(slot, phrase, p.profile.get(slot))


def test_reluctant_users_evade_questions():
    user = AgendaUser(0, "user_test", Manner(volunteers=0.0, answers=0.0))
    [said] = user.reply([PERSONA], [talk(ASKS)])
    assert said.stated == () and "evade" in acts(said.text)
    assert "Occupation" in AgendaUser(0, "user_test", WILLING).reply([PERSONA], [talk(ASKS)])[0].stated


def test_impatience_by_hand():
    assert [count_empty_answers(talk(*r)) for r in ([ASKS], [ASKS, ASKS], [ASKS, SAYS], [SAYS, ASKS])] == [
        1, 2, 0, 1,
    ]
    user = AgendaUser(0, "user_test", MANNERS["impatient"])
    [cross] = user.reply([PERSONA], [talk(ASKS, ASKS)])
    assert "impatient" in acts(cross.text) and cross.stated == ()
    [pleased] = user.reply([PERSONA], [talk(ASKS, SAYS)])
    assert "Occupation" in pleased.stated and "impatient" not in acts(pleased.text)


def test_off_topic_users_talk_of_others_whose_facts_are_not_theirs(worlds):
    sentences = [
        s
        for text in lines(worlds["off_topic"])
        for options in language.parse(text, "manners_test")
        for s in options
    ]
    kinds = [s.template.act for s in sentences]
    assert kinds.count("chatter") > 10 and kinds.count("aside") > 10
    for p, d in zip(PEOPLE, worlds["off_topic"], strict=True):
        for text in (t.user.text for t in d.turns):
            for options in language.parse(text, "manners_test"):
                for slot, phrase in (f for s in options for f in s.facts):
                    assert not lex.same_value(slot, phrase, p.profile.get(slot) or "")


def test_a_contradiction_is_no_revelation_and_is_taken_back_a_turn_later(worlds):
    slips = 0
    for p, d in zip(PEOPLE, worlds["contradictory"], strict=True):
        for before, _ in list_moments(d):
            turn, text = len(before.turns) + 1, before.pending.text
            user = AgendaUser(0, "user_test", MANNERS["contradictory"])
            done = user.draw_slip(p, Dialogue("", "", before.turns), turn)
            if done is None:
                continue
            slips += 1
            slot, phrase = done
            assert phrase in text and not lex.same_value(slot, phrase, p.profile.get(slot))
            assert (slot, phrase) not in zip(before.pending.stated, before.pending.phrases, strict=True)
            # the ledger never believes it
            assert lex.same_value(slot, before.facts()[slot], p.profile.get(slot))
            after = d.turns[turn].user if turn < len(d.turns) else None
            if after and user.draw_slip(p, Dialogue("", "", d.turns[:turn]), turn + 1) is None:
                assert slot in after.stated and "take_back" in acts(after.text)
    assert slips > 15
    assert told(worlds["contradictory"]) == pytest.approx(told(worlds["willing"]), rel=0.15)


def test_terse_users_say_bare_values(worlds):
    for d in worlds["terse"]:
        for before, _ in list_moments(d):
            user = before.pending
            if user.stated:
                assert user.text.startswith(" ".join(f"{phrase}." for phrase in user.phrases))
    assert np.mean([len(t.split()) for t in lines(worlds["terse"])]) < 0.5 * np.mean(
        [len(t.split()) for t in lines(worlds["willing"])]
    )


def test_another_value_is_another_one():
    for slot, value in PERSONA.profile.items:
        other = draw_other_value(slot, value, "user_test", random.Random(0))
        assert other is None if slot == "Gender" else not lex.same_value(slot, other, value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("language_of", ["en", "zh"])
def test_a_language_model_user_is_told_its_manner(tmp_path, name, language_of):
    text = prompt_files.load_prompt(f"user_{name}", language_of)
    with ScriptedServer(lambda body: json.dumps({"message": "Hm.", "revealed": []})) as server:
        cfg = config.load_config(
            "smoke",
            ["user.kind=llm", "user.model=m", f"user.base_url={server.url}", f"run.prompt_set={language_of}"],
        )
        parties.make_user(cfg, "vanilla", 0, tmp_path, name).reply([PERSONA], [talk(ASKS)])
    system = server.bodies[0]["messages"][0]["content"]
    assert (
        PERSONA.personality in system
        and len(text) > 40
        and " ".join(text.split()) in " ".join(system.split())
    )


def test_the_table_compares_the_same_users_by_hand():
    """Four users, three turns, the first of which does not count."""
    willing = np.array([[0, 1, 1], [0, 1, 1], [1, 1, 0], [1, 1, 0]], dtype=float)
    terse = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]], dtype=float)
    table = difficult.alignment_table({("rlpa", "willing"): willing, ("rlpa", "terse"): terse}, "tiny")
    first, second = table.to_dict("records")
    assert (first["method"], first["manner"], first["avg"], second["avg"]) == ("RLPA", "willing", 75.0, 25.0)
    assert (
        np.isnan(first["difference"])
        and second["difference"] == -50.0
        and second["low"] <= -50 <= second["high"]
        and 0 < second["p"] <= 1
    )
    rows = [{"turn": t, "n_told": n, "n_true": 10} for t, n in ((1, 0), (2, 4))]
    assert difficult.told_table({("rlpa", "willing"): rows, ("dpo", "willing"): rows[:1]}).to_dict(
        "records"
    ) == [{"manner": "willing", "dpo": 0.0, "rlpa": 40.0}]
