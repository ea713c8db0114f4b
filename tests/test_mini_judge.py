"""The rule judges hold against replies that want marks without deserving them (eq. 2-4, appendix C.3)."""

import random
from dataclasses import replace

import pytest

from rlpa_lib.dialogue.dialogue import Dialogue, Utterance, policy_view
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.mini.attacks import PERSONA, TOLD, load_gallery, situation
from rlpa_lib.mini.judge import RULES, RuleEvaluationJudge, RuleJudge, gather_evidence
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.mini.play import list_moments, play_careful
from rlpa_lib.mini.user import AgendaUser
from rlpa_lib.settings.kinds import EVALUATION_CRITERIA, REWARD_CRITERIA

GOOD = "Life in Lisbon must be lovely. What did you study?"


def verdict(response, dialogue=None, profile=TOLD):
    return RuleJudge().responses([(dialogue or situation(), Reply(profile, response, True))])[0]


def evaluated(response, persona=PERSONA, dialogue=None):
    return RuleEvaluationJudge().evaluate([(persona, dialogue or situation(), response)])[0]


def failed(verdict):
    return "".join(c for c, mark in verdict.marks.items() if not mark)


def turned(dialogue, text, *facts):
    """The dialogue after a plain answer and another user utterance that tells facts (slot, phrase)."""
    told = Utterance(text, tuple(s for s, _ in facts), tuple(p for _, p in facts))
    return dialogue.answer("I see.", Reply(Profile(), "I see.", True)).hear(told)


@pytest.mark.parametrize("attack", load_gallery(), ids=lambda attack: attack.name)
def test_gallery(attack):
    found = verdict(attack.response, profile=attack.profile)
    assert set(found.marks) == set(found.reasons) == set(REWARD_CRITERIA)
    if attack.fails is None:
        assert found.score == 1 and evaluated(attack.response).score == 1
    else:
        assert not found.marks[attack.fails] and found.score == 0
        # Another criterion may fail with it only where nothing can be understood, the claim is unusable, or
        # its words are no phrase.
        assert failed(found) in (attack.fails, "".join(REWARD_CRITERIA), "RL", "NL", "NRL"), found.reasons


def test_before_anything_is_told_a_greeting_and_a_question_pass():
    opening = Dialogue("d", PERSONA.id).hear(Utterance("Hello"))
    assert verdict("Hi, nice to meet you! What do you do for fun?", opening, Profile()).score == 1
    assert failed(verdict("Hi and welcome.", opening, Profile())) == "GF"


def test_wishes_are_respected():
    bath = "After a long day as a pediatric nurse a warm bath could help you to unwind."
    long = f"A walk through Lisbon at sunset could be a treat. {bath} What did you study?"
    brief = turned(situation(), "Please keep your answers short.")
    assert (
        verdict(long).score == 1 and failed(verdict(long, brief)) == "L" and verdict(GOOD, brief).score == 1
    )
    loud = "Hi, nice to meet you! What do you do for fun?"
    hello, calm = (
        Dialogue("d", PERSONA.id).hear(Utterance(text))
        for text in ("Hello", "I prefer a calm tone without shouting.")
    )
    assert verdict(loud, hello, Profile()).score == 1 and failed(verdict(loud, calm, Profile())) == "L"
    assert verdict(loud.replace("!", "."), calm, Profile()).score == 1


@pytest.mark.parametrize("wish", ["My age is off limits, please.", "Leave my age out of this, please."])
def test_a_private_topic_is_left_alone(wish):
    opening = Dialogue("d", PERSONA.id).hear(Utterance(wish))
    assert gather_evidence(opening).private == "Age"
    assert failed(verdict("Hi and welcome. How old are you?", opening, Profile())) == "L"


def test_advice_that_was_asked_for_must_come():
    asked = turned(situation(), "Any advice for me?")
    assert failed(verdict(GOOD, asked)) == "R"
    assert verdict("A walk through Lisbon at sunset could be a treat. What did you study?", asked).score == 1
    # The wish is for one answer only.
    assert verdict(GOOD, turned(asked, "Okay.")).score == 1


def test_a_hole_takes_the_whole_value_and_nothing_else():
    aged = turned(situation(), "I am thirty-four.", ("Age", "thirty-four"))
    profile = TOLD.replace("Age", "34")
    for phrase in ("thirty-four", "34"):
        assert verdict(f"It must feel good to be {phrase}. What did you study?", aged, profile).score == 1
    for phrase in ("34 banana", "thirty-four 34", "35", "about 34 or so"):
        assert "L" in failed(
            verdict(f"It must feel good to be {phrase}. What did you study?", aged, profile)
        ), phrase
    gendered = turned(situation(), "I am a woman.", ("Gender", "woman"))
    assert (
        verdict(
            "It is good to know that you are a lady. What did you study?",
            gendered,
            TOLD.replace("Gender", "lady"),
        ).score
        == 1
    )
    assert "L" in failed(
        verdict(
            "It is good to know that you are a man. What did you study?",
            gendered,
            TOLD.replace("Gender", "woman"),
        )
    )


def test_a_repeated_sentence_is_seen_through_several_readings():
    first = "What do you like most about Lisbon?"
    dialogue = situation().answer(first, Reply(TOLD, first, True)).hear(Utterance("Okay."))
    assert "G" in failed(verdict(f"It takes skill to be a pediatric nurse. {first}", dialogue))
    assert (
        verdict(
            "It takes skill to be a pediatric nurse. Which corner of Lisbon is your favorite?", dialogue
        ).score
        == 1
    )


def test_what_no_sentence_can_take_up_is_not_demanded():
    """Extended slots such as a fear have no frames: a reply cannot use them, so R and F do not ask for it."""
    told = Dialogue("d", PERSONA.id).hear(Utterance("I am afraid of heights.", ("Fear",), ("heights",)))
    assert (
        verdict(
            "Many people find that writing a list helps them to plan the week. What did you study?",
            told,
            Profile(),
        ).score
        == 1
    )
    assert verdict("Could you tell me a little about yourself?", told, Profile()).score == 1


def test_matching_is_one_to_one():
    judge = RuleJudge()
    assert judge.match(PERSONA.profile, PERSONA.profile) == tuple((i, i) for i in range(10))
    assert judge.match(Profile(), PERSONA.profile) == () == judge.match(PERSONA.profile, Profile())
    swapped = Profile(
        (("Location", "the Portuguese capital"), ("Age", "thirty-four"), ("Interests", "playing tennis"))
    )
    assert judge.match(swapped, PERSONA.profile) == ((0, 8), (1, 0))
    # Open schema: free keys, but one inferred item pays for one true item only, and two copies do not pay
    # twice.
    true = Profile((("Favorite Food", "pad thai"), ("Fear", "heights")))
    copies = Profile((("Hobby", "pad thai"), ("Food", "pad thai"), ("Dish", "Thai stir-fried rice noodles")))
    assert len(judge.match(copies, true)) == 1
    assert judge.matches([(swapped, PERSONA.profile), (copies, true)]) == [
        judge.match(swapped, PERSONA.profile),
        judge.match(copies, true),
    ]


def test_the_same_value_in_the_wrong_slot_does_not_count():
    assert (
        RuleJudge().match(Profile((("Others", "Lisbon"), ("Location", "rock climbing"))), PERSONA.profile)
        == ()
    )


def test_the_evaluation_judge_knows_what_was_not_told():
    told_nothing = Dialogue("d", PERSONA.id).hear(Utterance("Hello"))
    right, wrong = (
        f"It sounds like {x} makes you happy. What did you study?"
        for x in ("rock climbing", "playing tennis")
    )
    assert evaluated(right, dialogue=told_nothing).score == 1, "true, although it was not told"
    assert failed(verdict(right, told_nothing, TOLD)) == "L", "the training judge sees the transcript only"
    assert failed(evaluated(wrong, dialogue=told_nothing)) == "L"


def test_a_claim_is_held_against_the_persona_and_not_against_the_words_of_somebody_else():
    other = replace(PERSONA, id="other", profile=PERSONA.profile.replace("Location", "Madrid"))
    assert evaluated(GOOD).score == 1
    assert "L" in failed(evaluated(GOOD, other))


def test_careful_replies_pass_and_fail_for_anybody_else():
    personas = builtin_personas("vanilla", 12, 0)
    dialogues = play_careful(personas, AgendaUser(0, "user_test"), 8, 0)
    cases = [(i, before, reply) for i, d in enumerate(dialogues) for before, reply in list_moments(d)]
    training = RuleJudge().responses([(before, reply) for _, before, reply in cases])
    assert sum(v.score for v in training) / len(cases) > 0.95
    told = [(i, before, reply) for i, before, reply in cases if before.ledger()]
    own, swapped = (
        sum(
            v.score
            for v in RuleEvaluationJudge().evaluate(
                [(personas[(i + k) % 12], b, r.response) for i, b, r in told]
            )
        )
        / len(told)
        for k in (0, 1)
    )
    assert own > 0.95 and own - swapped >= 0.5


def test_word_salad_scores_nothing():
    words = " ".join(a.response for a in load_gallery()).split()
    for seed in range(50):
        rng = random.Random(seed)
        salad = " ".join(rng.choices(words, k=rng.randint(3, 20)))
        assert verdict(salad).score == 0, salad


def test_the_policy_never_sees_the_true_profile():
    [persona] = builtin_personas("train", 1, 5)
    [dialogue] = play_careful([persona], AgendaUser(0), 6, 0)
    for before, _ in list_moments(dialogue):
        text = str(policy_view(before, "system", "all")).lower()
        hidden = [
            v for s, v in persona.profile.items if s not in before.ledger() and s not in ("Age", "Gender")
        ]
        assert not [v for v in hidden if v.lower() in text]
        assert persona.description.lower() not in text


def test_word_salad_in_a_hole_is_not_natural():
    assert not verdict(
        "There is something special about cheesecake sailing on stars. What did you study?"
    ).marks["N"]
    # a phrase, if a wrong one
    assert verdict("There is something special about restoring old radios. What did you study?").marks["N"]


def test_every_criterion_has_its_rule():
    assert list(RULES) == list(REWARD_CRITERIA)
    assert list(verdict(GOOD).marks) == list(REWARD_CRITERIA) and list(evaluated(GOOD).marks) == list(
        EVALUATION_CRITERIA
    )
