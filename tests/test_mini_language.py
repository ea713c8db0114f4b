"""The grammar of the offline world: what is spoken can be understood again, and nothing else can."""

import random
import re

import pytest

from rlpa_lib.mini import language
from rlpa_lib.mini import lexicon as lex

NAMES = ("assistant", "user_train", "user_test")
SKELETON = re.compile(r"\[[^\]]*\]|\{[^}]*\}|[^\w\s]")


def phrases(slot, rng):
    """A phrase of a slot's value, from any split."""
    value = (
        str(rng.randint(18, 82))
        if slot == "Age"
        else rng.choice(sorted(lex.GENDERS))
        if slot == "Gender"
        else None
    )
    return rng.choice(
        language.list_forms(slot, value or rng.choice(lex.list_values(slot)).canonical)
    )


def test_article_by_hand():
    assert language.add_article("nurse") == "a nurse"
    assert language.add_article("engineer") == "an engineer"
    assert language.add_article("Uber driver") == "an Uber driver"


def test_realise_by_hand():
    template = language.Template("x:1", "ack", ("Occupation",), "Being {a:Occupation} is [fun|hard].")
    said = {language.realise(template, random.Random(seed), {"Occupation": "actor"}) for seed in range(20)}
    assert said == {"Being an actor is fun.", "Being an actor is hard."}
    with pytest.raises(KeyError):
        language.realise(template, random.Random(0), {})


def test_a_sentence_is_read_back_by_hand():
    [sentence] = language.parse_sentence("Life in Lisbon must be lovely.")
    assert (sentence.template.act, sentence.facts) == ("ack", (("Location", "Lisbon"),))
    [sentence] = language.parse_sentence(
        "After a long day as an actor, playing tennis sounds like a good way to unwind."
    )
    assert sentence.facts == (("Occupation", "actor"), ("Interests", "playing tennis"))


@pytest.mark.parametrize("name", NAMES)
def test_every_template_can_be_read_back(name):
    for template in language.load_grammar(name):
        rng = random.Random(template.id)
        for _ in range(4):
            facts = {slot: phrases(slot, rng) for slot in template.slots}
            text = language.realise(template, rng, facts)
            [sentence] = language.split_sentences(text)
            [mine] = [s for s in language.parse_sentence(sentence, name) if s.template is template]
            assert mine.facts == tuple(
                (hole[2], facts[hole[2]]) for hole in language.HOLE.finditer(template.text)
            )


def test_every_act_and_slot_that_the_parties_need_has_a_sentence():
    for slot in ("Age", "Gender", *lex.LISTED):
        for act in ("ask", "ack", "detail", "suggest"):
            assert language.find_templates("assistant", act, slot), (act, slot)
        for speech in ("user_train", "user_test"):
            assert language.find_templates(speech, "say", slot), (speech, slot)
    acts = {t.act for t in language.load_grammar("user_train")}
    assert acts == {t.act for t in language.load_grammar("user_test")}


def test_test_users_share_no_sentence_frame_with_training_users():
    def frames(name):
        found = {}
        for t in language.load_grammar(name):
            key = " ".join(SKELETON.sub(" ", t.text).lower().split())
            assert key not in found or t.act == "say", f"{t.text!r} and {found.get(key)!r}"
            found[key] = t.text
        return set(found)

    assert not frames("user_train") & frames("user_test")


@pytest.mark.parametrize("name, other", [("user_train", "user_test"), ("user_test", "user_train")])
def test_no_fact_is_told_in_the_words_of_the_other_grammar(name, other):
    for template in language.load_grammar(name):
        if template.act != "say" or template.slots[0] not in lex.LISTED:
            continue
        rng = random.Random(template.id)
        facts = {slot: phrases(slot, rng) for slot in template.slots}
        same = [
            s
            for s in language.parse_sentence(language.realise(template, rng, facts), other)
            if dict(s.facts) == facts
        ]
        assert not same, (template.text, same)


@pytest.mark.parametrize(
    "text",
    [
        "", "   ", "Lisbon.", "Do you have a relationship?", "How old are you should in?", "how old are you?",
        "How old are you", "How old are you??", "How old are you? and", "It takes skill to be a actor.",
        "It takes skill to be an nurse.", "It takes skill to be actor.", "Life in  must be lovely.",
        "{Location}.", "Life in Lisbon must be [lovely|exciting].",
    ],
)
def test_garbage_is_not_read(text):
    assert not any(language.parse(text)) or not all(language.parse(text))


def test_splitting_by_hand():
    assert language.split_sentences(" I see.  How nice! And you? ") == ["I see.", "How nice!", "And you?"]
    assert language.split_sentences("I see.How nice.") == ["I see.How nice."]
    assert language.split_sentences("") == []


def test_spoken_forms_by_hand():
    assert language.list_forms("Age", "34") == ("34", "thirty-four")
    assert language.list_forms("Age", "104") == ("104",)
    assert language.list_forms("Gender", "female") == ("woman", "lady", "female person")
    assert language.list_forms("Location", "Lisbon") == (
        "Lisbon", "the city of Lisbon", "the Portuguese capital",
    )
    assert language.list_forms("Location", "a place that nobody knows") == ("a place that nobody knows",)


def test_frames_of_open_slots():
    assert language.list_frame_slots("Location") == ("Location",)
    assert language.list_frame_slots("Favorite Food") == ("Interests",)
    assert language.list_frame_slots("Fear") == ()


def test_an_unknown_grammar_is_named():
    with pytest.raises(ValueError, match="user_old"):
        language.load_grammar("user_old")


def test_telling_by_hand():
    rng = random.Random(0)
    assert (
        language.list_made_up_slots()["Lucky Number"] == "Noun"
        and language.list_made_up_slots()["Wait For"] == "Verb"
    )
    assert "lucky number" in language.tell("user_train", "Lucky Number", "a pair of nines", rng).lower()
    assert "wait for" in language.tell("user_train", "Wait For", "the last tram", rng)
    assert language.tell("user_train", "Shoe Size", "44", rng) == "About shoe size there is this: 44."
    assert "Lisbon" in language.tell("user_test", "Location", "Lisbon", rng)
