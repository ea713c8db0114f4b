"""GRPO: the moments that it trains on, the reward that it is given, and the reference of its KL term."""

import json

import pytest
from baseline_world import PERSONAS, SYSTEM, EchoUser, VowelJudge, open_run, settings, train
from conftest import byte_tokenizer, random_model

from rlpa_lib.agents.local_policy import LocalPolicy
from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.judging import JudgeFailed
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.methods import grpo
from rlpa_lib.methods.prompting import Prompted
from rlpa_lib.rlpa.processes import Processes
from rlpa_lib.rlpa.rewards import Reward
from rlpa_lib.rlpa.silence import SilentTraining


@pytest.fixture
def any_text_is_well_formed(monkeypatch):
    """A random model never writes the reply format; here its whole text is the response."""
    for module in ("grpo", "prompting"):
        name = f"rlpa_lib.methods.{module}.parse_reply"
        monkeypatch.setattr(name, lambda text: Reply(Profile(), text, True))


def test_moments_are_those_of_the_dialogues(any_text_is_well_formed):
    policy = LocalPolicy(random_model(), byte_tokenizer(), max_prompt_tokens=400)
    assistant = Prompted("grpo", policy, SYSTEM, True, max_new_tokens=6)
    moments = grpo.collect_moments(assistant, EchoUser(), PERSONAS[:3], 2, 1)
    assert [(persona.id, len(d.turns), d.pending.text) for persona, d in moments] == [
        ("p0", 0, "Hello"), ("p1", 0, "Hello"), ("p2", 0, "Hello"), ("p0", 1, "I am 20."),
        ("p1", 1, "I am 21."), ("p2", 1, "I am 22."),
    ]
    assert moments == grpo.collect_moments(assistant, EchoUser(), PERSONAS[:3], 2, 1)
    assert moments != grpo.collect_moments(assistant, EchoUser(), PERSONAS[:3], 2, 2)


def test_the_reward_is_ppos_reward():
    """Profile F1 plus the product of the criteria: 1 of 2 true items, 1 inferred: 2/3; the second reply
    breaks the format."""

    class Matches(VowelJudge):
        def matches(self, pairs):
            return [((0, 0),) for _ in pairs]

    moments = [(PERSONAS[0], Dialogue("d", "p0").hear(Utterance("Hello")))]
    logged = {}
    reward = grpo.make_reward_function(Matches(), moments, "PRR", 2, 0.0, Processes())
    good = "<profile>\n- Age: 20\n</profile>\n\n<response>\nHey\n</response>"
    totals = reward(
        [[{"content": good}], [{"content": "Hi"}]], moment=[0, 0], log_metric=logged.__setitem__, prompts=None
    )
    assert totals == [pytest.approx(2 / 3 + 1), 0.0]
    assert logged["turn_format_ok"] == 0.5 and logged["turn_response"] == 0.5


def test_a_judge_failure_is_neither_0_nor_1():
    class Total:
        def __init__(self, total):
            self.total = total

    assert grpo.fill_rewards([Total(2.0), None, Total(1.0), None, None, None], 3) == [
        2.0, 1.5, 1.0, 0.0, 0.0, 0.0,
    ]
    assert grpo.fill_rewards([Reward(format_ok=False)] * 2, 2) == [0.0, 0.0]

    class Silent(VowelJudge):
        def responses(self, cases):
            return [None for _ in cases]

    moments = [(PERSONAS[0], Dialogue("d", "p0").hear(Utterance("Hello")))]
    good = "<profile>\n</profile>\n\n<response>\nHi\n</response>"
    with pytest.raises(RuntimeError, match="2 of 2"):
        grpo.make_reward_function(Silent(), moments, "PRR", 2, 0.1, Processes())(
            [[{"content": good}]] * 2, moment=[0, 0], log_metric=lambda *_: None
        )
    # all failures allowed: still nothing to learn from
    with pytest.raises(JudgeFailed, match="any of the 2 samples"):
        grpo.make_reward_function(Silent(), moments, "PRR", 2, 1.0, Processes())(
            [[{"content": good}]] * 2, moment=[0, 0], log_metric=lambda *_: None
        )


def test_steps_without_one_good_reply_stop_the_training():
    class Never:
        def matches(self, pairs):
            return []

        responses = matches

    moments = [(PERSONAS[0], Dialogue("d", "p0").hear(Utterance("Hello")))]
    reward = grpo.make_reward_function(Never(), moments, "PRR", 2, 0.0, Processes(), end_ids={2}, patience=2)
    step = {"moment": [0, 0], "log_metric": lambda *_: None, "completion_ids": [[5, 2], [5, 6]]}
    assert reward([[{"content": "Hi"}]] * 2, **step) == [0.0, 0.0]
    with pytest.raises(SilentTraining, match="grpo: no reply of the last 2 .*begins 'Hi': 50% of them"):
        reward([[{"content": "Hi"}]] * 2, **step)


@pytest.mark.parametrize(
    ("given", "patience"), [({"rounds": 1}, 9), ({"rounds": 3, "users": 1, "batch": 2}, 3)]
)
def test_a_training_without_one_good_reply_stops_whatever_its_rounds(tmp_path, given, patience):
    """Fewer steps than the patience in all, or a step a round; the same again does not pass as finished."""
    cfg = settings(policy={"lora_dropout": 0.0}, grpo=given, ppo={"format_patience": patience})
    for _ in range(2):
        with pytest.raises(SilentTraining, match="grpo: no reply of the last [23] updates"):
            train("grpo", open_run(tmp_path, cfg))
    assert (tmp_path / "adapters/grpo").exists() == (given["rounds"] > 1), "earlier rounds have left theirs"


def test_grpo_measures_its_kl_to_the_base_model_in_every_round(tmp_path, any_text_is_well_formed):
    rows = train("grpo", open_run(tmp_path, settings(policy={"lora_dropout": 0.0})))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert abs(rows[0]["kl"]) < 1e-6 and rows[2]["kl"] > 1e-4, "round 2 starts away from the reference"
    assert {"reward", "turn_profile", "turn_response", "turn_format_ok"} <= rows[0].keys()
    saved = json.loads((tmp_path / "adapters/grpo/adapter_config.json").read_text())
    assert saved["r"] == 4 and {p.name for p in (tmp_path / "adapters/grpo").iterdir()} >= {
        "README.md",
        "adapter_model.safetensors",
    }
