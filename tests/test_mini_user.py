"""The agenda user: gradual, honest in its ledger, and deterministic (section 3.1)."""

import random
import re
from collections import Counter

import pytest

from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.reveal import SHARE_PER_TURN
from rlpa_lib.mini import language
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.mini.attacks import PERSONA
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.mini.play import list_moments, measure_reveal, play_careful
from rlpa_lib.mini.user import AgendaUser, read_temperament, theoretical_max

TURNS = 10
SPEECH = {"train": "user_train", "vanilla": "user_test", "extended": "user_test"}


def answer(dialogue, text):
    return dialogue.answer(text, Reply(Profile(), text, True))


def after(response, persona=PERSONA, before=(), seed=0):
    """What the persona says to a response: the reaction, after a first turn and perhaps told slots."""
    dialogue = Dialogue("d", persona.id).hear(Utterance("Hello"))
    for slot in before:
        dialogue = answer(dialogue, "I see.").hear(
            Utterance(f"({slot})", (slot,), (persona.profile.get(slot),))
        )
    return AgendaUser(seed).reply([persona], [answer(dialogue, response)])[0]


def acts(utterance, speech="user_train"):
    return {s.template.act for options in language.parse(utterance.text, speech) for s in options}


@pytest.fixture(scope="module", params=["train", "vanilla", "extended"])
def played(request):
    """(split, personas, dialogues): 12 users, 10 turns with the careful assistant."""
    personas = builtin_personas(request.param, 12, 0)
    return request.param, personas, play_careful(personas, AgendaUser(0, SPEECH[request.param]), TURNS, 0)


def test_opens_with_hello_and_reveals_nothing(played):
    for dialogue in played[2]:
        assert dialogue.turns[0].user == Utterance("Hello")


def test_the_same_seed_gives_the_same_dialogue_and_order_does_not_matter():
    personas = builtin_personas("train", 6, 0)
    first = play_careful(personas, AgendaUser(3), 5, 1)
    assert first == play_careful(personas, AgendaUser(3), 5, 1)
    assert first[::-1] == play_careful(personas[::-1], AgendaUser(3), 5, 1)
    assert first != play_careful(personas, AgendaUser(4), 5, 1)
    # Stateless: an old dialogue gets the old answer.
    before, _ = list_moments(first[0])[3]
    heard = Dialogue(before.id, before.persona_id, before.turns)
    assert AgendaUser(3).reply([personas[0]], [heard]) == [before.pending]


def test_reveals_at_most_two_slots_a_turn_and_15_percent_a_turn_on_average(played):
    _, personas, dialogues = played
    table = measure_reveal(personas, dialogues)
    assert len(table) == 12 * TURNS
    assert table["new_slots"].max() <= 2
    assert (table["share"] <= SHARE_PER_TURN * table["turn"] + 1e-9).all()
    assert table.groupby("user")["share"].is_monotonic_increasing.all()


def test_the_ledger_is_what_the_text_says(played):
    split, personas, dialogues = played
    for persona, dialogue in zip(personas, dialogues, strict=True):
        for before, _ in list_moments(dialogue):
            user = before.pending
            assert len(user.stated) == len(user.phrases) == len(set(user.stated))
            said = [
                f
                for options in language.parse(user.text, SPEECH[split])
                for s in options
                if s.template.act == "say"
                for f in s.facts
            ]
            for slot, phrase in zip(user.stated, user.phrases, strict=True):
                assert lex.same_value(slot, phrase, persona.profile.get(slot)), (slot, phrase)
                # An extended slot without frames of its own is named with its topic.
                assert (slot, phrase) in said or f"About {slot.lower()} there is this: {phrase}." in user.text


def test_no_slot_is_told_that_the_ledger_does_not_list(played):
    _, personas, dialogues = played
    for persona, dialogue in zip(personas, dialogues, strict=True):
        told = Counter()
        for before, _ in list_moments(dialogue):
            told.update(before.pending.stated)
            text = before.pending.text
            # one value may be named inside another one: "musicals" in "numbers from Broadway musicals"
            for phrase in before.pending.phrases:
                text = text.replace(phrase, "")
            text = f" {lex.normalise(text)} "
            for slot, value in persona.profile.items:
                if slot not in told and slot not in ("Age", "Gender"):
                    assert not [
                        f for f in language.list_forms(slot, value) if f" {lex.normalise(f)} " in text
                    ], (slot, text)
        assert max(told.values()) == 1, "a slot is revealed once"


def test_answers_what_it_is_asked():
    utterance = after("What is your job?")
    assert "Occupation" in utterance.stated
    assert any(form in utterance.text for form in language.list_forms("Occupation", "pediatric nurse"))
    assert after("Where do you live? What do you do for fun?").stated[:2] == ("Location", "Interests")


def test_complains_about_a_repeated_question_flattery_and_false_claims():
    assert "react_repeat" in acts(after("What is your job?", before=("Occupation",)))
    assert "Occupation" not in after("What is your job?", before=("Occupation",)).stated
    assert "react_flatter" in acts(after("You are the most amazing person I have ever met!"))
    assert "react_wrong" in acts(after("It sounds like playing tennis makes you happy."))
    neutral = after("It sounds like rock climbing makes you happy.")
    assert not acts(neutral) & {"react_wrong", "react_flatter", "react_repeat"}


def test_a_true_remark_is_not_taken_for_a_false_one():
    """Some sentences have several readings: "about Lisbon" could be an interest, "a newlywed" a gender."""
    assert "react_wrong" not in acts(after("What do you like most about Lisbon?"))
    assert "react_wrong" not in acts(after("What do you like most about being a pediatric nurse?"))
    assert "react_wrong" in acts(after("What do you like most about Madrid?"))


def test_a_private_slot_is_never_told(played):
    _, personas, dialogues = played
    for persona, dialogue in zip(personas, dialogues, strict=True):
        assert read_temperament(persona).private not in dialogue.ledger()


def test_asked_for_a_private_topic_it_declines():
    people = [p for p in builtin_personas("train", 60, 0) if read_temperament(p).private == "Age"]
    for persona in people:
        utterance = after("How old are you?", persona)
        assert "react_private" in acts(utterance) and "Age" not in utterance.stated
    assert people, "no persona of sixty keeps its age to itself"


def test_wishes_are_told_once_and_only_by_those_who_have_them():
    personas = builtin_personas("train", 40, 0)
    for persona, dialogue in zip(personas, play_careful(personas, AgendaUser(0), 6, 0), strict=True):
        mood = read_temperament(persona)
        said = Counter(
            act
            for before, _ in list_moments(dialogue)
            for act in acts(before.pending)
            if act in ("brief", "calm", "private")
        )
        assert said == Counter(
            {k: 1 for k, on in (("brief", mood.brief), ("calm", mood.calm), ("private", mood.private)) if on}
        )


def test_talkative_users_reveal_faster_than_reserved_ones():
    personas = builtin_personas("train", 60, 0)
    silent = [Dialogue(p.id, p.id) for p in personas]
    for _ in range(4):
        heard = [d.hear(u) for d, u in zip(silent, AgendaUser(0).reply(personas, silent), strict=True)]
        silent = [answer(d, "I see.") for d in heard]
    share = measure_reveal(personas, silent).query("turn == 4").groupby("pace")["share"].mean()
    assert share["talkative"] > share["balanced"] > share["reserved"]


def test_survives_any_answer():
    for response in ("", "???", "asdf qwer", "<profile>", "How old are you? " * 20):
        assert after(response).text


def test_theoretical_max_by_hand():
    dialogue = Dialogue("d", PERSONA.id).hear(Utterance("x", ("Age", "Location")))
    assert theoretical_max(PERSONA, dialogue) == pytest.approx(0.2)


def test_test_users_use_no_training_sentence(played):
    split, _, dialogues = played
    if split == "train":
        return
    frames = [t for t in language.load_grammar("user_train") if not t.slots]
    fixed = {language.realise(t, random.Random(s)) for t in frames for s in range(8)}
    for dialogue in dialogues:
        for before, _ in list_moments(dialogue):
            assert not set(re.split(r"(?<=[.!?])\s", before.pending.text)) & fixed
