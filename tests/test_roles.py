"""Profile judge and response judge are two sections: a model, a server and a key each."""

import json

import pytest
from scripted_server import ScriptedServer

from rlpa_lib import runs
from rlpa_lib.agents import parties
from rlpa_lib.client.endpoint import endpoint_for
from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.plan import plan
from rlpa_lib.rlpa.rewards import score_replies
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

JUDGE = ["judge.kind=llm", "judge.model=m", "judge.verdict=holistic"]


def test_each_judge_asks_its_own_server_with_its_own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "key-a")
    monkeypatch.setenv("B_KEY", "key-b")
    known = Profile((("Age", "34"),))
    answers = '{"pairs": [{"inferred": 1, "true": 1}]}', '{"reason": "fine", "mark": 1}'
    with ScriptedServer(lambda body: answers[0]) as a, ScriptedServer(lambda body: answers[1]) as b:
        keys = [*JUDGE, f"judge.base_url={b.url}", "judge.api_key_env=B_KEY", "profile_judge.model=small"]
        keys += [f"profile_judge.base_url={a.url}", "profile_judge.api_key_env=A_KEY"]
        cfg = config.load_config("smoke", keys)
        run = runs.claim(cfg, 0, tmp_path / "run", "smoke")
        judge = parties.make_reward_judge(cfg, run)
        talk = Dialogue("d", "p").hear(Utterance("I am 34."))
        [reward] = score_replies(judge, [Persona("p", "", "", known)], [talk], [Reply(known, "Oh!", True)])
        servers = [endpoint_for(cfg, role, run).server for role in ("profile_judge", "response_judge")]
    assert (reward.profile, reward.response) == (1.0, 1.0)
    assert [[body["model"] for body in server.bodies] for server in (a, b)] == [["small"], ["m"]]
    assert (a.key, b.key) == ("key-a", "key-b")
    assert [(s.section, s.base_url, s.api_key_env) for s in servers] == [
        ("profile_judge", a.url, "A_KEY"), ("judge", b.url, "B_KEY"),
    ]  # fmt: skip
    assert run.record["params"]["profile_judge"]["model"] == "small"
    asked = {party for load in plan.plan(cfg) for party in load.asked}
    assert ("profile_judge", "small", a.url) in asked and ("response_judge", "m", b.url) in asked


def test_without_a_model_the_judge_judges_profiles_too():
    cfg = config.load_config("smoke", [*JUDGE, "judge.base_url=http://127.0.0.1:9/v1"])
    asked = {(role, model) for load in plan.plan(cfg) for role, model, _ in load.asked}
    assert {("profile_judge", "m"), ("response_judge", "m")} <= asked


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("judge.profile_model=small", "judge.profile_model: has gone: write profile_judge.model"),
        ("profile_judge.base_url=http://x/v1", "base_url: is only read beside profile_judge.model"),
        ("profile_judge.verdict=holistic", "profile_judge.verdict: unknown key"),
        ("study.profile_judges={a: {kind: llm, profile_model: x}}", "a.profile_model: unknown key"),
    ],
)
def test_a_wrong_key_is_named(more, told):
    with pytest.raises(InputError) as error:
        config.load_config("smoke", [*JUDGE, more])
    assert told in str(error.value)


def test_the_release_has_two_models_and_the_paper_one():
    for scale, models in (("released", ("gpt-4o-mini", "deepseek-v3")), ("paper", ("gpt-4o-mini",) * 2)):
        cfg = config.load_config(scale)
        assert (cfg.profile_judge.model, cfg.judge.model) == models
        assert json.dumps(config.dump_config(cfg)["profile_judge"])
