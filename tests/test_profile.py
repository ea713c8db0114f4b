"""Profiles, the reply format and the profile score, by hand (eq. 2-3, appendix E.1)."""

import random

import pytest

from rlpa_lib.dialogue.profile import SLOTS, Profile, Reply, parse_reply, render_reply
from rlpa_lib.rlpa.rewards import precision_recall, profile_f1

AGE_JOB = Profile((("Age", "27"), ("Occupation", "nurse")))


def reply_text(lines, response="Hi."):
    return f"<profile>\n{lines}\n</profile>\n\n<response>\n{response}\n</response>"


@pytest.mark.parametrize(
    ("n_inferred", "n_true", "n_matched", "precision", "recall", "f1"),
    [
        (2, 10, 2, 1.0, 0.2, 4 / 12), (10, 10, 10, 1.0, 1.0, 1.0), (4, 10, 3, 0.75, 0.3, 6 / 14),
        (3, 10, 0, 0.0, 0.0, 0.0), (0, 10, 0, 0.0, 0.0, 0.0), (3, 0, 0, 0.0, 0.0, 0.0),
        (0, 0, 0, 0.0, 0.0, 0.0),
    ],
)
def test_score_by_hand(n_inferred, n_true, n_matched, precision, recall, f1):
    assert precision_recall(n_inferred, n_true, n_matched) == pytest.approx((precision, recall))
    assert profile_f1(n_inferred, n_true, n_matched) == pytest.approx(f1)


def test_score_is_the_harmonic_mean_of_precision_and_recall():
    for n_inferred, n_true, n_matched in [(1, 1, 1), (3, 10, 2), (10, 3, 3), (7, 9, 5)]:
        p, r = precision_recall(n_inferred, n_true, n_matched)
        assert profile_f1(n_inferred, n_true, n_matched) == pytest.approx(2 * p * r / (p + r))


@pytest.mark.parametrize("counts", [(2, 10, 3), (10, 2, 3), (0, 0, 1), (-1, 2, 0), (2, -1, 0), (2, 2, -1)])
def test_impossible_counts_raise(counts):
    with pytest.raises(ValueError):
        profile_f1(*counts)
    with pytest.raises(ValueError):
        precision_recall(*counts)


def test_a_line_end_after_the_last_item_is_not_an_item():
    reply = parse_reply(
        "<profile>\n- Age: 27\n- Occupation: nurse\n\n</profile>\n<response>\nHi.\n</response>\n"
    )
    assert reply == Reply(AGE_JOB, "Hi.", True)
    assert profile_f1(len(reply.profile), 2, 2) == 1.0


def test_render_and_parse_are_inverse():
    assert render_reply(AGE_JOB, "Hi.") == reply_text("- Age: 27\n- Occupation: nurse")
    assert render_reply(Profile(), "Hi.") == "<profile>\n</profile>\n\n<response>\nHi.\n</response>"
    for profile in (AGE_JOB, Profile(), Profile((("Fact 1", "tea: green; 茶 – ½"),))):
        assert parse_reply(render_reply(profile, "Two\n\nlines – ☕")) == Reply(
            profile, "Two\n\nlines – ☕", True
        )


@pytest.mark.parametrize(
    "text",
    [
        "  \n<profile>\n- Age: 27\n</profile>\n\n<response>\nHi.\n</response>\n ",
        "<profile>\r\n- Age: 27\r\n</profile>\r\n\r\n<response>\r\nHi.\r\n</response>\r\n",
        "<profile>\n- Age:   27   \n</profile><response>Hi.</response>",
        "<profile>\n\n   - Age: 27\n\n</profile>\n<response>Hi.</response>",
    ],
)
def test_white_space_does_not_matter(text):
    assert parse_reply(text) == Reply(Profile((("Age", "27"),)), "Hi.", True)


def test_only_line_ends_end_a_line():
    reply = parse_reply(reply_text("- Others: one\u2028two\x85three"))
    assert reply.profile.items == (("Others", "one\u2028two\x85three"),)


BROKEN = {
    "missing value": (reply_text("- Age:  "), "Hi."),
    "no value at all": (reply_text("- Age:"), "Hi."),
    "missing key": (reply_text("- : 27"), "Hi."),
    "no dash": (reply_text("Age: 27"), "Hi."),
    "no colon": (reply_text("- Age 27"), "Hi."),
    "same item twice": (reply_text("- Age: 27\n- Age: 27"), "Hi."),
    "two values of one key": (reply_text("- Age: 27\n- age: 28"), "Hi."),
    "one bad line among good ones": (reply_text("- Age: 27\nand more"), "Hi."),
    "text before": ("Sure! " + reply_text("- Age: 27"), "Hi."),
    "text after": (reply_text("- Age: 27") + " Bye.", "Hi."),
    "text between": ("<profile>\n</profile>\nso\n<response>\nHi.\n</response>", "Hi."),
    "empty response": (reply_text("- Age: 27", " \n "), ""),
    "order swapped": ("<response>\nHi.\n</response>\n<profile>\n</profile>", "Hi."),
    "nested profile": (reply_text("<profile>\n- Age: 27\n</profile>"), "Hi."),
    "tag in the response": (reply_text("- Age: 27", "Hi <profile>you</profile>."), "Hi you."),
    "two profile blocks": ("<profile>\n</profile>\n" + reply_text("- Age: 27"), "Hi."),
    "two response blocks": (
        reply_text("- Age: 27") + "<response>Bye.</response>",
        "- Age: 27\n\n\n\nHi.\nBye.",
    ),
    "no profile block": ("<response>\nHi.\n</response>", "Hi."),
    "response cut off": ("<profile>\n- Age: 27\n</profile>\n\n<response>\nHi", "Hi"),
    "plain text": ("Hi there.", "Hi there."),
    "tags that join": ("<respo<profile>nse>Hi", "Hi"),
    "other case": (reply_text("- Age: 27").replace("<profile>", "<Profile>"), "Hi."),
    "nothing": ("", ""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_replies_keep_their_text_and_lose_their_profile(name):
    text, response = BROKEN[name]
    reply = parse_reply(text)
    assert reply.profile == Profile() and not reply.format_ok
    assert "".join(reply.response.split()) == "".join(response.split())


def test_parse_never_raises_and_a_salvaged_response_can_be_wrapped_again():
    rng = random.Random(0)
    parts = [
        "<profile>", "</profile>", "<response>", "</response>", "\n", "- Age: 27\n", "- Age:\n", "- : x\n",
        "Hi", " ", "\r\n", "é", "<",
    ]
    for _ in range(3000):
        reply = parse_reply("".join(rng.choices(parts, k=rng.randint(0, 12))))
        if reply.response:
            assert parse_reply(render_reply(reply.profile, reply.response)) == Reply(
                reply.profile, reply.response, True
            )
        else:
            assert not reply.format_ok


def test_profile_is_a_checked_ordered_list():
    profile = Profile((("Age", " 27 "), ("Occupation", "nurse")), frozenset({"Age"}))
    assert profile.get("Age") == "27" and profile.get("Location") is None
    assert len(profile) == 2 and profile.slots() == ("Age", "Occupation")
    assert profile.lines() == "- Age: 27\n- Occupation: nurse"
    assert Profile().lines() == "" and len(Profile()) == 0
    assert profile.replace("Age", "28") == Profile((("Age", "28"), ("Occupation", "nurse")))
    assert profile.replace("Location", "Rome").slots() == ("Age", "Occupation", "Location")
    assert Profile.from_json(profile.to_json()) == profile
    assert len(SLOTS) == 10


@pytest.mark.parametrize(
    "items",
    [
        (("Age", " "),), (("", "27"),), (("Age", "27"), ("age", "28")), (("Age", "2\n7"),),
        (("Age: x", "27"),), (("Age", "<response>"),),
    ],
)
def test_a_profile_that_would_not_survive_rendering_is_refused(items):
    with pytest.raises(ValueError):
        Profile(items)


def test_filled_names_slots_of_the_profile():
    with pytest.raises(ValueError):
        Profile((("Age", "27"),), frozenset({"Location"}))
