"""Users, judges and models from a config: what is not part of this version is refused by name."""

import pytest

from rlpa_lib import config, parties, prompts
from rlpa_lib.config import InputError


@pytest.mark.parametrize("section, make", [
    ("user", lambda c: parties.simulated_user(c, "train", 0)), ("judge", parties.reward_judge), ("evaluator", parties.evaluation_judge)])
def test_endpoint_kinds_are_refused_for_now(section, make):
    cfg = config.load("smoke", [f"{section}.kind=llm", f"{section}.model=m"])
    with pytest.raises(InputError, match=f"{section}.kind"):
        make(cfg)


def test_a_missing_model_is_named():
    with pytest.raises(InputError, match="policy.model"):
        parties.load_model(config.load("smoke", ["policy.model=./no-such-model"]))


def test_a_missing_adapter_names_the_notebook_that_makes_it(tmp_path):
    with pytest.raises(InputError, match="20_ppo"):
        parties.with_adapter(None, tmp_path)


def test_test_users_speak_other_frames_than_training_users():
    cfg = config.load("smoke", [])
    assert parties.simulated_user(cfg, "train", 0).speech != parties.simulated_user(cfg, "vanilla", 0).speech


def test_own_prompts_win_and_missing_ones_are_named(tmp_path):
    (tmp_path / "policy.txt").write_text("# mine\nBe kind.\n")
    assert prompts.load("policy", "en", str(tmp_path)) == "Be kind."
    assert "<profile>" in prompts.load("policy", "en") and "<profile>" in prompts.load("policy", "zh")
    with pytest.raises(InputError, match="nothing"):
        prompts.load("nothing", "en")
    with pytest.raises(InputError, match="prompt_dir"):
        prompts.load("policy", "en", str(tmp_path / "gone"))
