"""One transcript and its views: what the policy and the judges may see (section 3.1); the user's is in
test_llm_user."""

import json
import random

import pytest

from rlpa_lib.dialogue.dialogue import Dialogue, Utterance, judge_view, policy_view
from rlpa_lib.dialogue.profile import SLOTS, Profile, parse_reply, render_reply

FIRST = Profile((("Age", "27"),))
SECOND = Profile((("Age", "27"), ("Occupation", "nurse")))


def answered(dialogue, user, completion, stated=()):
    return dialogue.hear(Utterance(user, stated)).answer(completion, parse_reply(completion))


@pytest.fixture
def dialogue():
    start = Dialogue("d1", "p1")
    one = answered(start, "Hello", render_reply(FIRST, "Hi. Who are you?"))
    two = answered(
        one, "I am 27 and a nurse.", render_reply(SECOND, "How is the ward?"), ("Age", "Occupation")
    )
    return two.hear(Utterance("I live in Rome, at 27.", ("Location", "Age"), ("Rome", "27")))


def test_policy_sees_the_latest_profile_block_only(dialogue):
    assert policy_view(dialogue, "Be kind.") == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi. Who are you?"},
        {"role": "user", "content": "I am 27 and a nurse."},
        {"role": "assistant", "content": render_reply(SECOND, "How is the ward?")},
        {"role": "user", "content": "I live in Rome, at 27."},
    ]


def test_policy_may_see_all_blocks_or_none(dialogue):
    every = [m["content"] for m in policy_view(dialogue, "", "all") if m["role"] == "assistant"]
    assert every == [render_reply(FIRST, "Hi. Who are you?"), render_reply(SECOND, "How is the ward?")]
    none = [m["content"] for m in policy_view(dialogue, "", "none") if m["role"] == "assistant"]
    assert none == ["Hi. Who are you?", "How is the ward?"]
    with pytest.raises(ValueError, match="history_profiles"):
        policy_view(dialogue, "", "newest")


@pytest.mark.parametrize(
    ("completion", "shown"),
    [
        ("just chatting", "just chatting"),
        ("<profile>\n- Age:  \n</profile>\n\n<response>\nHi\n</response>", "Hi"),
        ("<profile>\n- Age: 27\n</profile>\n\n<response>\nHi", "Hi"),
    ],
)
def test_a_broken_reply_goes_on_with_an_empty_profile(completion, shown):
    dialogue = answered(Dialogue("d", "p"), "Hello", completion).hear(Utterance("And?"))
    assert policy_view(dialogue, "")[2]["content"] == render_reply(Profile(), shown)
    assert dialogue.turns[0].completion == completion
    assert judge_view(dialogue)[1] == ("assistant", shown)


def test_a_fallback_stands_for_a_broken_reply_and_for_no_other():
    asked = Dialogue("d", "p").hear(Utterance("Hello"))
    broken = asked.answer("zz zz", parse_reply("zz zz"), "Tell me more.").hear(Utterance("What?"))
    assert broken.turns[0].completion == "zz zz" and not broken.turns[0].reply.format_ok
    shown = policy_view(broken, "Be kind.")[2]["content"]
    assert shown == render_reply(Profile(), "Tell me more.") and judge_view(broken)[1] == (
        "assistant",
        "Tell me more.",
    )
    text = render_reply(FIRST, "Hi.")
    assert asked.answer(text, parse_reply(text), "Tell me more.") == asked.answer(text, parse_reply(text))


def test_judge_view_holds_responses_and_the_pending_utterance(dialogue):
    assert judge_view(dialogue)[-2:] == [
        ("assistant", "How is the ward?"),
        ("user", "I live in Rome, at 27."),
    ]
    assert "<profile>" not in json.dumps(judge_view(dialogue))


def test_ledger_gives_the_first_turn_of_each_slot_and_counts_the_pending_one(dialogue):
    assert dialogue.ledger() == {"Age": 2, "Occupation": 2, "Location": 3}
    assert Dialogue("d", "p").ledger() == {}


def test_turns_come_in_order():
    empty = Dialogue("d", "p")
    with pytest.raises(ValueError):
        empty.answer("x", parse_reply("x"))
    with pytest.raises(ValueError):
        policy_view(empty, "")
    with pytest.raises(ValueError):
        empty.hear(Utterance("Hello")).hear(Utterance("Hello?"))


def test_dialogues_are_values(dialogue):
    before = dialogue
    dialogue.answer("x", parse_reply("x"))
    assert dialogue == before and dialogue.pending is not None
    with pytest.raises(AttributeError):
        dialogue.id = "other"


def test_json_round_trip(dialogue):
    for value in (dialogue, Dialogue("d", "p"), dialogue.answer("kaputt", parse_reply("kaputt"))):
        assert Dialogue.from_json(json.loads(json.dumps(value.to_json()))) == value


def test_the_true_profile_never_reaches_the_policy_view():
    """Property: whatever is stated or inferred, the view holds what was said, never the persona or the
    ledger."""
    rng = random.Random(0)
    for case in range(200):
        true = {slot: f"truth-{case}-{index}" for index, slot in enumerate(SLOTS)}
        dialogue, said = Dialogue(f"d{case}", f"persona-{case}"), ""
        for turn in range(rng.randint(1, 6)):
            stated = tuple(rng.sample(SLOTS, rng.randint(0, 2)))
            text = " ".join(["So"] + [true[slot] for slot in stated if rng.random() < 0.5])
            guess = render_reply(Profile(((rng.choice(SLOTS), f"guess {turn}"),)), "Fine.")
            said += text
            dialogue = answered(dialogue, text, rng.choice((guess, "no format")), stated)
        view = json.dumps(policy_view(dialogue.hear(Utterance("Go on.", tuple(SLOTS))), "Be kind."))
        assert dialogue.persona_id not in view
        assert [value for value in true.values() if value in view and value not in said] == []
