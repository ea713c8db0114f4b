"""No knob is dead: a short training under each other value of a setting ends with other weights, and packing
alone changes nothing."""

from functools import cache

import pytest
import torch
from conftest import byte_tokenizer, random_model
from test_trainer import PERSONAS, EchoUser, VowelJudge

from rlpa_lib import runs
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.rlpa import rollout
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.rlpa.training import Trainer
from rlpa_lib.settings.config import Config

BANDIT = {
    "policy": {"lora_rank": 2, "lora_alpha": 4},
    "rollout": {"users": 2, "turns": 3, "samples": 2, "max_new_tokens": 6, "max_prompt_tokens": 400},
    "ppo": {"iterations": 1, "minibatch": 2, "lr": 1e-2, "critic_lr": 1e-2, "epochs": 2},
    "run": {"tensorboard": False},
}
MDP = {
    "ppo.turn_discount": 0.9, "ppo.update_every": "dialogue", "rollout.continuation": "random",
    "ppo.iterations": 2,
}

OTHER = [  # key, value; defaults are in schema.py
    ("ppo.lr", 2e-2),
    ("ppo.critic_lr", 2e-2),
    ("ppo.clip", 0.01),
    ("ppo.value_clip", 0.001),
    ("ppo.value_clip", None),
    ("ppo.kl_coef", 0.5),
    ("ppo.kl_estimator", "k2"),
    ("ppo.kl_estimator", "k3"),
    ("ppo.gamma", 0.5),
    ("ppo.lam", 0.5),
    ("ppo.epochs", 1),
    ("ppo.minibatch", 4),
    ("ppo.advantage_norm", "none"),
    ("ppo.reward_parts", "PR"),
    ("ppo.reward_parts", "RR"),
    ("ppo.warmup", 0.5),
    ("ppo.lr_floor", 1.0),
    ("ppo.grad_norm", 0.01),
    ("ppo.adam_betas", (0.5, 0.9)),
    ("ppo.critic", "lora"),
    ("ppo.baseline", "samples"),
    ("ppo.history_profiles", "all"),
    ("ppo.history_profiles", "none"),
    ("ppo.update_every", "dialogue"),
    ("rollout.continuation", "random"),
    ("rollout.continuation", "independent"),
    ("rollout.temperature", 0.5),
    ("rollout.max_new_tokens", 4),
    ("rollout.max_prompt_tokens", 150),
    ("policy.lora_alpha", 8),
    ("policy.lora_dropout", 0.2),
]
OTHER_MDP = [
    ("ppo.turn_discount", 0.5), ("ppo.turn_lam", 0.1), ("ppo.turn_limit", "end"),
    ("ppo.advantage_norm", "cohort"),
]


class FlatteredJudge(VowelJudge):
    """Also matches profile items, by the length of what was written."""

    def matches(self, pairs):
        return [((0, 0),) if len(inferred.items[0][1]) % 3 == 0 else () for inferred, _ in pairs]


def written(text):
    """In place of `parse_reply`: a random model never writes the format."""
    kept = "".join(sign for sign in text if sign.isalnum())
    return Reply(Profile((("Age", kept or "x"),)), text, True)


@cache
def trained(folder, *changes):
    """Flat vector of all weights after a training; `changes` are (key, value) on top of `BANDIT`."""
    tree = {section: dict(values) for section, values in BANDIT.items()}
    for key, value in changes:
        section, name = key.split(".")
        tree[section][name] = value
    cfg = Config.model_validate(tree)
    run = runs.claim(cfg, 5, folder / str(abs(hash(changes))), "test")
    learner = Learner(random_model(), cfg, seed=5)
    trainer = Trainer(
        run, learner, byte_tokenizer(), EchoUser(), FlatteredJudge(), PERSONAS, system_prompt="Be kind."
    )
    trainer.train(say=lambda line: None)
    return torch.cat(
        [
            p.detach().flatten()
            for role in learner.optimizers
            for _, p in sorted(learner.parameters(role).items())
        ]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "parse_reply", written)
        yield tmp_path_factory.mktemp("knobs")


@pytest.mark.slow
@pytest.mark.parametrize(("key", "value"), OTHER)
def test_another_value_trains_other_weights(folder, key, value):
    usual, other = trained(folder), trained(folder, (key, value))
    assert usual.shape != other.shape or not torch.equal(usual, other)


@pytest.mark.slow
@pytest.mark.parametrize(("key", "value"), OTHER_MDP)
def test_another_value_trains_other_weights_across_turns(folder, key, value):
    base = tuple(MDP.items())
    assert not torch.equal(trained(folder, *base), trained(folder, *base, (key, value)))


@pytest.mark.slow
def test_an_adaptive_coefficient_trains_other_weights(folder):
    assert not torch.equal(
        trained(folder), trained(folder, ("ppo.kl_target", 0.001), ("ppo.kl_horizon", 10.0))
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        ("ppo.packing", "rows"), ("ppo.micro_batch", 2), ("ppo.pass_tokens", 300),
        ("policy.gradient_checkpointing", True),
    ],
)
def test_how_the_work_is_cut_up_changes_nothing(folder, change):
    base = (("ppo.minibatch", 4), ("ppo.lr", 1e-3), ("ppo.critic_lr", 1e-3))
    assert torch.allclose(trained(folder, *base), trained(folder, *base, change), atol=1e-5)
