"""Users, judges and models from a config: what is not part of this version is refused by name."""

import pytest

from rlpa_lib.agents import models, parties
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

LLM = [
    "user.kind=llm", "user.model=m", "judge.kind=llm", "judge.model=m", "evaluator.kind=llm",
    "evaluator.model=m", "policy.kind=endpoint", "policy.model=m",
    "evaluation.methods=[base, rlpa_prompting]",
]
LOCAL = [f"{section}.base_url=http://127.0.0.1:9/v1" for section in ("user", "judge", "evaluator", "policy")]


@pytest.mark.parametrize(
    "make",
    [
        lambda c, run: parties.make_user(c, "train", 0, run), parties.make_reward_judge,
        parties.make_evaluation_judge, parties.make_policy,
    ],
)
def test_parties_behind_a_server_need_the_run(make, tmp_path):
    cfg = config.load_config("smoke", LLM + LOCAL)
    with pytest.raises(InputError, match="needs the run"):
        make(cfg, None)
    assert type(make(cfg, tmp_path)).__name__ in (
        "LLMUser", "LLMJudge", "LLMEvaluationJudge", "EndpointPolicy",
    )


def test_a_missing_key_is_named_before_anything_is_asked(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(
        InputError, match="judge.api_key_env: the environment variable OPENAI_API_KEY is not set"
    ):
        parties.make_reward_judge(config.load_config("smoke", LLM), tmp_path)


def test_the_miniatures_prompts_are_for_its_own_model_alone(tmp_path):
    """With prompt_set mini, parties behind a server get the English prompts."""
    judge = parties.make_reward_judge(config.load_config("smoke", LLM + LOCAL), tmp_path)
    assert (
        judge.replies.prompt.system
        == prompt_files.load_prompt("judge_criteria", "en").partition("\n---\n")[0]
    )


def test_offline_parties_need_no_run():
    cfg = config.load_config("smoke")
    made = (
        parties.make_user(cfg, "train", 0), parties.make_reward_judge(cfg),
        parties.make_evaluation_judge(cfg), parties.make_policy(cfg),
    )
    assert [type(party).__name__ for party in made] == [
        "AgendaUser", "RuleJudge", "RuleEvaluationJudge", "LocalPolicy",
    ]


def test_a_missing_model_is_named():
    with pytest.raises(InputError, match="policy.model"):
        models.load_model(config.load_config("smoke", ["policy.model=./no-such-model"]))


def test_a_missing_adapter_names_the_notebook_that_makes_it(tmp_path):
    with pytest.raises(InputError, match="20_ppo"):
        models.attach_adapter(None, tmp_path)


def test_test_users_speak_other_frames_than_training_users():
    cfg = config.load_config("smoke", [])
    assert parties.make_user(cfg, "train", 0).speech != parties.make_user(cfg, "vanilla", 0).speech


def test_own_prompts_win_and_missing_ones_are_named(tmp_path):
    (tmp_path / "policy.txt").write_text("# mine\nBe kind.\n")
    assert prompt_files.load_prompt("policy", "en", str(tmp_path)) == "Be kind."
    assert "<profile>" in prompt_files.load_prompt(
        "policy", "en"
    ) and "<profile>" in prompt_files.load_prompt("policy", "zh")
    with pytest.raises(InputError, match="nothing"):
        prompt_files.load_prompt("nothing", "en")
    with pytest.raises(InputError, match="prompt_dir"):
        prompt_files.load_prompt("policy", "en", str(tmp_path / "gone"))
