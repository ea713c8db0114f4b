"""Turn rewards on hand-computed examples."""

import pytest

from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.judging import DIMENSIONS, Verdict
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, parse_reply, render_reply
from rlpa_lib.dialogue.protocols import Completion
from rlpa_lib.rlpa.rewards import Reward, score, score_replies
from rlpa_lib.rlpa.rollout import Sample, TurnGroup, reward_metrics, sample_rows
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import REWARD_CRITERIA

TRUE = Profile((("Age", "31"), ("Occupation", "baker"), ("Location", "Oslo"), ("Interests", "chess")))
GUESS = Profile((("Age", "31"), ("Occupation", "nurse"), ("Location", "Oslo")))


def verdict(**marks):
    return Verdict(
        {name: marks.get(name, True) for name in REWARD_CRITERIA}, dict.fromkeys(REWARD_CRITERIA, "")
    )


def reply(profile=GUESS, response="Good evening."):
    return parse_reply(render_reply(profile, response))


class ListJudge:
    """Matches equal items, likes a response unless it is in `bad`, cannot read one in `unreadable`; keeps
    what it was asked."""

    def __init__(self, bad=(), unreadable=()):
        self.bad, self.unreadable, self.asked = bad, unreadable, []

    def matches(self, pairs):
        self.asked.append(("matches", pairs))
        return [tuple((i, t.items.index(x)) for i, x in enumerate(p.items) if x in t.items) for p, t in pairs]

    def responses(self, cases):
        self.asked.append(("responses", cases))
        return [
            None if r.response in self.unreadable else verdict(G=r.response not in self.bad) for _, r in cases
        ]


def test_every_part_by_hand():
    # 3 inferred, 4 true, 2 matched: precision 2/3, recall 2/4, F1 = 4/7; only Age has been revealed
    reward = score(reply(), TRUE, frozenset({"Age"}), ((0, 0), (2, 2)), verdict())
    assert (reward.precision, reward.recall) == (pytest.approx(2 / 3), 0.5)
    assert reward.profile == pytest.approx(4 / 7) and reward.response == 1.0
    assert reward.total == pytest.approx(4 / 7 + 1)
    assert (reward.n_inferred, reward.n_unrevealed_guesses, reward.n_unrevealed_matched) == (3, 2, 1)
    assert reward.criteria == dict.fromkeys(REWARD_CRITERIA, 1)


def test_the_four_dimensions_are_kept_and_earn_nothing():
    """Section 3.3: on record beside the criteria, where a judge marks them."""
    marked = Verdict(verdict().marks, {}, {name: name != "goal_alignment" for name in DIMENSIONS})
    plain, given = (score(reply(), TRUE, frozenset(), (), v) for v in (verdict(), marked))
    assert plain.dimensions == {} and given.dimensions == {
        name: int(name != "goal_alignment") for name in DIMENSIONS
    }
    assert given.total == plain.total == 1.0
    group = TurnGroup(
        "d", 1, (1,),
        tuple(Sample(Completion((1,), (2,), (0.0,), "", True), reply(), r) for r in (plain, given)), 0,
    )
    assert (
        reward_metrics([group])["goal_alignment"] == 0.0
        and reward_metrics([group])["style_consistency"] == 1.0
    )
    assert [row["reward"]["dimensions"] for row in sample_rows([group])] == [{}, given.dimensions]


def test_one_failed_criterion_is_a_failed_response():
    reward = score(reply(), TRUE, frozenset(), (), verdict(F=False))
    assert reward.response == 0.0 and reward.criteria == {**dict.fromkeys(REWARD_CRITERIA, 1), "F": 0}
    assert reward.total == reward.profile == 0.0


@pytest.mark.parametrize(("parts", "total"), [("PRR", 4 / 7 + 1), ("PR", 4 / 7), ("RR", 1.0)])
def test_parts_change_the_total_and_nothing_else(parts, total):
    reward = score(reply(), TRUE, frozenset(), ((0, 0), (2, 2)), verdict(), parts)
    assert reward.total == pytest.approx(total)
    assert (reward.profile, reward.response) == (pytest.approx(4 / 7), 1.0)


def test_unknown_parts_are_refused():
    with pytest.raises(InputError, match="reward_parts"):
        score(reply(), TRUE, frozenset(), (), verdict(), "RP")


def test_broken_format_is_zero_even_with_matches():
    broken = parse_reply("<profile>\n- Age: 31\n</profile> hello")
    assert score(broken, TRUE, frozenset(), (), verdict()) == Reward(format_ok=False)
    zero = Reward(format_ok=False)
    assert not zero.format_ok and zero.total == zero.profile == zero.response == zero.n_inferred == 0
    assert zero.criteria == dict.fromkeys(REWARD_CRITERIA, 0)


def test_an_empty_profile_earns_the_response_reward_alone():
    reward = score(reply(Profile()), TRUE, frozenset(), (), verdict())
    assert (reward.profile, reward.response, reward.total, reward.n_inferred) == (0.0, 1.0, 1.0, 0)


def test_a_batch_asks_the_judge_once_a_kind_and_not_about_broken_replies():
    persona = Persona("p", "", "", TRUE)
    dialogue = Dialogue("d", "p").hear(Utterance("I am 31.", ("Age",)))
    judge = ListJudge(bad=("Bye.",), unreadable=("Hm.",))
    replies = [reply(), parse_reply("no tags"), reply(response="Bye."), reply(response="Hm.")]
    rewards = score_replies(judge, [persona] * 4, [dialogue] * 4, replies)
    assert [kind for kind, _ in judge.asked] == ["matches", "responses"]
    assert judge.asked[0][1] == [(GUESS, TRUE)] * 3
    assert [r and r.total for r in rewards] == [pytest.approx(4 / 7 + 1), 0.0, pytest.approx(4 / 7), None]
    assert rewards[0].n_unrevealed_guesses == 2
    assert rewards[2].criteria["G"] == 0
