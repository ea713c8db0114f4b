"""Two updates of PPO with rollouts from a real server: the trainer's adapter goes out, its samples come back."""

import torch

from rlpa_lib import checkpoints, config, experience, parties, prompts
from rlpa_lib.learner import Learner
from rlpa_lib.personas import load_personas
from rlpa_lib.rollout import Sampling, advance, start
from rlpa_lib.vllm_policy import VLLMPolicy


def test_each_rollout_is_sampled_by_the_weights_of_the_last_update(vllm_server_tiny, tmp_path):
    cfg = config.load("smoke", ["policy.lora_rank=8", "ppo.minibatch=8", "ppo.lr=0.001"])
    model, tokenizer = parties.load_model(cfg)
    learner = Learner(model, cfg, seed=0)
    policy = VLLMPolicy(tokenizer, [vllm_server_tiny.base_url])
    policy.load_adapter(checkpoints.save_adapter(learner, tmp_path / "v0"), 0)
    sampling = Sampling(4, "best", prompts.load("policy", "mini"), max_new_tokens=64)
    user, judge = parties.simulated_user(cfg, "train", 0), parties.reward_judge(cfg)
    cohort = start(load_personas(cfg.personas, "train", 4, 0), sampling)
    for version in range(2):
        groups, cohort = advance(cohort, policy, user, judge, sampling, seed=1)
        assert {s.completion.version for g in groups for s in g.samples} == {version}
        data = experience.gather_experience(learner, groups, elsewhere=True)
        print(f"\nafter {version} updates: {data.gap}")
        assert data.gap["sampler_gap"] < 1e-4
        before = {name: weight.detach().clone() for name, weight in learner.parameters("policy").items()}
        experience.update(learner, data, seed=version, scales=[1.0])
        assert any(not torch.equal(weight, before[name]) for name, weight in learner.parameters("policy").items())
        policy.load_adapter(checkpoints.save_adapter(learner, tmp_path / f"v{version + 1}"), version + 1)
    stale = [s.completion for g in groups for s in g.samples]
    [again], _ = advance(start(load_personas(cfg.personas, "train", 1, 0), sampling), policy, user, judge, sampling, seed=1)
    assert {s.completion.version for s in again.samples} == {2} and {c.version for c in stale} == {1}
