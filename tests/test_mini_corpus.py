"""What the tiny model is trained on: facts survive the disturbances, and nothing of the test is in it."""

import random
import re

import pytest

from rlpa_lib.dialogue.dialogue import Utterance
from rlpa_lib.dialogue.profile import SLOTS
from rlpa_lib.mini import language, play
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.mini.pretraining import corpus


@pytest.fixture(scope="module")
def examples():
    return list(corpus.make_corpus(builtin_personas("train", 400, 5), 5))


def users_of(examples):
    return [m["content"] for e in examples for m in e.messages if m["role"] == "user"]


def test_a_disturbed_utterance_keeps_its_facts():
    said = Utterance(
        "I live in Lisbon these days. I work as a tax adviser.",
        ("Location", "Occupation"),
        ("Lisbon", "tax adviser"),
    )
    rough = [play.roughen(said, random.Random(seed)) for seed in range(200)]
    assert all(p in u.text for u in rough for p in said.phrases)
    assert all((u.stated, u.phrases) == (said.stated, said.phrases) for u in rough)
    assert 60 < sum(u.text != said.text for u in rough) < 150  # expected: 1 - .7 * .7 of 200


def test_an_aside_is_whole_and_tells_nothing():
    for seed in range(100):
        text = play.write_aside(random.Random(seed))
        assert text[0].isupper() and text[-1] in ".?" and not re.search(r"[{}\[\]|]", text)


def test_every_dialogue_opens_with_a_plain_hello():
    first = [
        d.pending.text
        for p in builtin_personas("train", 60, 7)
        for d, *_ in play.play_crowd(p, 7, "rlpa")
        if not d.turns
    ]
    assert first == ["Hello"] * 60


def test_no_slot_is_made_up_that_a_test_knows():
    known = {s.lower() for s in (*SLOTS, *lex.list_extended_slots())}
    assert len(language.list_made_up_slots()) > 150
    assert not known & {s.lower() for s in language.list_made_up_slots()}


def test_made_up_slots_are_told_and_noted(examples):
    blocks = [e.completion.split("</profile>")[0] for e in examples if e.completion.startswith("<profile>")]
    noted = [[s for s in language.list_made_up_slots() if f"- {s}:" in b] for b in blocks]
    assert sum(map(bool, noted)) > 0.08 * len(blocks)
    for block, slots in zip(blocks, noted, strict=True):
        places = [block.index(f"- {s}:") for s in slots]
        own = [block.index(f"- {s}:") for s in SLOTS if f"- {s}:" in block]
        assert not places or not own or min(places) > max(own)


def test_what_is_no_longer_so_is_replaced_in_the_profile():
    changed = 0
    people = builtin_personas("train", 120, 6)
    for dialogue, profile, _ in (moment for p in people for moment in play.play_crowd(p, 6, "rlpa")):
        for slot, value in profile.items:
            told = [
                p
                for u in [*(t.user for t in dialogue.turns), dialogue.pending]
                for s, p in zip(u.stated, u.phrases, strict=True)
                if s == slot
            ]
            if len(set(told)) > 1:
                changed += 1
                assert value in told
    assert changed > 20


def test_no_value_of_a_test_user_is_told_in_training(examples):
    test = [
        f
        for slot in lex.LISTED
        for v in lex.list_values(slot, "test")
        for f in v.forms
        if len(f.split()) > 2
    ]
    test += [
        f
        for slot in lex.list_extended_slots()
        for v in lex.list_values(slot)
        for f in v.forms
        if len(f.split()) > 2
    ]
    text = "\n".join(users_of(examples))
    # Scrambling draws single words from the whole world and may rebuild "the city of ..." by chance.
    assert len(test) > 500 and sum(f in text for f in test) < 0.005 * len(test)


def test_no_fact_is_told_in_a_test_frame(examples):
    sentences = {s for text in users_of(examples) for s in language.split_sentences(text)}
    facts = [
        s
        for sentence in sentences
        for s in language.parse_sentence(sentence, "user_test")
        if s.template.act == "say"
    ]
    # A general frame such as "I am {..}" may be read by chance; what must not happen is a frame of the test
    # in so many words.
    assert len(facts) < 0.002 * len(sentences), [f.template.text for f in facts][:5]
