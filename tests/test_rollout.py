"""Lockstep rollouts with a scripted policy, user and judge."""

import pytest

from rlpa_lib.dialogue.dialogue import Utterance
from rlpa_lib.dialogue.judging import Verdict
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, render_reply
from rlpa_lib.dialogue.protocols import Completion
from rlpa_lib.rlpa.rollout import Sample, Sampling, advance, choose, start
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import REWARD_CRITERIA

FACTS = (("Age", "40"), ("Location", "Rome"), ("Interests", "opera"))
PERSONAS = [Persona(f"p{i}", "secret description", "secret personality", Profile(FACTS)) for i in range(3)]


class FactUser:
    """Says hello, then one fact a turn; keeps the responses it heard."""

    def __init__(self):
        self.hear = []

    def reply(self, personas, dialogues):
        self.hear.append([d.turns[-1].reply.response if d.turns else None for d in dialogues])
        return [self._say(p, len(d.turns)) for p, d in zip(personas, dialogues, strict=True)]

    def _say(self, persona, turn):
        if turn == 0:
            return Utterance("Hello")
        slot, value = persona.profile.items[turn - 1]
        return Utterance(f"My {slot} is {value}.", (slot,))


class LadderPolicy:
    """Sample i infers the first i facts; sample 0 breaks the format. Keeps the views and seeds it was
    given."""

    def __init__(self):
        self.views, self.seeds = [], []

    def generate(self, messages, n, *, seed, temperature, max_new_tokens):
        self.views.append(messages)
        self.seeds.append(seed)
        return [[self._one(len(m), i) for i in range(n)] for m in messages]

    def _one(self, prompt, i):
        text = render_reply(Profile(FACTS[:i]), f"answer {i}") if i else "broken"
        return Completion((prompt,), (i, 2), (-0.5, -0.5), text, True)


class EqualityJudge:
    """Matches equal items; every response is fine."""

    def matches(self, pairs):
        return [tuple((i, t.items.index(x)) for i, x in enumerate(p.items) if x in t.items) for p, t in pairs]

    def responses(self, cases):
        assert all(d.pending is not None for d, _ in cases)
        return [
            Verdict(dict.fromkeys(REWARD_CRITERIA, True), dict.fromkeys(REWARD_CRITERIA, "")) for _ in cases
        ]


def run(continuation, samples=3, turns=3, seed=0, policy=None, user=None):
    """Groups of whole dialogues under fixed weights, ordered by turn, then dialogue."""
    sampling = Sampling(samples, continuation, "You are an assistant.")
    cohort, groups, parties = start(PERSONAS, sampling), [], (policy or LadderPolicy(), user or FactUser())
    for _ in range(turns):
        done, cohort = advance(cohort, *parties, EqualityJudge(), sampling, seed=seed)
        groups += done
    return groups


def test_shape_and_order_of_groups():
    groups = run("best")
    assert [(g.turn, g.dialogue_id) for g in groups] == [
        (t, f"{i:04d}-p{i}") for t in (1, 2, 3) for i in range(3)
    ]
    assert all(len(g.samples) == 3 for g in groups)
    assert [s.reward.total for s in groups[0].samples] == [
        0.0, pytest.approx(1 + 2 / 4), pytest.approx(1 + 4 / 5),
    ]


def test_the_best_sample_continues():
    user = FactUser()
    groups = run("best", user=user)
    assert {g.chosen for g in groups} == {2}
    assert user.hear == [[None] * 3, ["answer 2"] * 3, ["answer 2"] * 3]


def test_among_equals_the_first_is_best():
    completion, reply = Completion((1,), (2,), (0.0,), "", True), None
    groups = run("best", samples=2, turns=1)
    same = groups[0].samples[1]
    assert choose([groups[0].samples[0], same, same], "best", 0) == 1
    assert choose([Sample(completion, reply, None), groups[0].samples[0]], "best", 0) == 1
    assert choose([Sample(completion, reply, None)] * 2, "best", 0) == 0


def test_random_continuation_is_seeded():
    chosen = [[g.chosen for g in run("random", seed=s)] for s in range(6)]
    assert chosen[0] == [g.chosen for g in run("random", seed=0)]
    assert len({tuple(c) for c in chosen}) > 1 and {i for c in chosen for i in c} == {0, 1, 2}


def test_independent_dialogues_go_their_own_ways():
    policy = LadderPolicy()
    groups = run("independent", turns=2, policy=policy)
    assert len(groups) == 2 * 9 and all(len(g.samples) == 1 and g.chosen == 0 for g in groups)
    assert len({g.dialogue_id for g in groups}) == 9
    assert [len(views) for views in policy.views] == [9, 9]


def test_a_broken_reply_continues_rewrapped():
    policy = LadderPolicy()
    run("best", samples=1, turns=2, policy=policy)
    history = policy.views[1][0]
    assert [m["role"] for m in history] == ["system", "user", "assistant", "user"]
    assert history[2]["content"] == render_reply(Profile(), "broken")


def test_with_a_fallback_nobody_hears_a_broken_reply():
    user, policy = FactUser(), LadderPolicy()
    sampling = Sampling(1, "best", "Be kind.", fallback="Tell me more.")
    _, cohort = advance(start(PERSONAS, sampling), policy, user, EqualityJudge(), sampling, seed=0)
    groups, cohort = advance(cohort, policy, user, EqualityJudge(), sampling, seed=0)
    assert user.hear[1] == ["Tell me more."] * 3 and "broken" not in str(policy.views[1])
    assert [g.samples[0].completion.text for g in groups] == ["broken"] * 3, (
        "what was sampled is what is trained on"
    )
    assert all(g.samples[0].reward.total == 0 for g in groups)


def test_nothing_of_the_persona_reaches_the_policy_but_what_the_user_said():
    policy = LadderPolicy()
    run("random", samples=1, turns=3, policy=policy)
    words = " ".join(m["content"] for views in policy.views for view in views for m in view)
    assert "My Location is Rome." in words and "secret" not in words and "opera" not in words


def test_each_turn_samples_with_another_seed():
    policy = LadderPolicy()
    run("best", policy=policy)
    assert len(set(policy.seeds)) == 3


def test_advance_moves_one_turn_and_leaves_its_input_alone():
    sampling = Sampling(samples=3, continuation="best", system_prompt="S")
    before = start(PERSONAS, sampling)
    groups, after = advance(before, LadderPolicy(), FactUser(), EqualityJudge(), sampling, seed=1)
    assert (before.turn, after.turn) == (0, 1) and len(groups) == 3
    assert all(not d.turns for d in before.dialogues) and all(len(d.turns) == 1 for d in after.dialogues)


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="continuation"):
        Sampling(samples=2, continuation="worst", system_prompt="")
    with pytest.raises(InputError, match="samples"):
        Sampling(samples=0, continuation="best", system_prompt="")
