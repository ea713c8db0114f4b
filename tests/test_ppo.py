"""PPO arithmetic against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from rlpa_lib.rlpa import ppo
from rlpa_lib.settings.config import InputError


def approx(values):
    return pytest.approx(values, abs=1e-6)


def test_gae_by_hand():
    # deltas with gamma .5: 1 + .5*.6 - .5 = .8; 0 + .5*.2 - .6 = -.5; 2 - .2 = 1.8; lam .5, so gamma lam =
    # .25
    # A3 = 1.8; A2 = -.5 + .25*1.8 = -.05; A1 = .8 - .25*.05 = .7875
    assert ppo.gae([1, 0, 2], [0.5, 0.6, 0.2], 0.5, 0.5) == approx([0.7875, -0.05, 1.8])


@pytest.mark.parametrize("gamma", [0, 0.3, 1])
@pytest.mark.parametrize("lam", [0, 0.3, 1])
def test_gae_of_one_token_is_reward_minus_value(gamma, lam):
    assert ppo.gae([2.0], [0.5], gamma, lam) == approx([1.5])


def test_gae_edges():
    rewards, values = [0.1, -0.2, 1.0], [0.3, 0.4, 0.5]
    assert ppo.gae(rewards, values, 0, 0.7) == approx([-0.2, -0.6, 0.5])  # no future: reward - value
    # one-step errors
    assert ppo.gae(rewards, values, 1, 0) == approx([0.1 + 0.4 - 0.3, -0.2 + 0.5 - 0.4, 0.5])
    assert ppo.gae(rewards, values, 1, 1) == approx([0.9 - 0.3, 0.8 - 0.4, 1.0 - 0.5])  # return - value
    assert ppo.gae(rewards, values, 0.5, 1) == approx([0.1 - 0.1 + 0.25 - 0.3, -0.2 + 0.5 - 0.4, 0.5])
    assert len(ppo.gae([], [], 1, 1)) == 0


def test_gae_keeps_the_kind_of_its_input():
    rewards, values = [0.0, 1.0], [0.2, 0.1]
    want = ppo.gae(rewards, values, 0.9, 0.8)
    assert isinstance(want, np.ndarray)
    assert ppo.gae(np.array(rewards), np.array(values), 0.9, 0.8) == approx(want)
    tensor = ppo.gae(torch.tensor(rewards), torch.tensor(values), 0.9, 0.8)
    assert tensor.dtype == torch.float32 and tensor.tolist() == approx(want.tolist())
    assert ppo.gae([0, 1], [0, 0], 0.5, 1).tolist() == [0.5, 1.0]  # integers are not rounded


def test_gae_refuses_what_makes_no_sense():
    for bad in (
        ([1.0], [1.0, 2.0], 1, 1), ([[1.0]], [[1.0]], 1, 1), ([1.0], [1.0], 1.1, 1), ([1.0], [1.0], 1, -0.1),
    ):
        with pytest.raises(ValueError):
            ppo.gae(*bad)


def test_batched_gae_equals_gae_row_by_row():
    torch.manual_seed(0)
    rewards, values = torch.randn(5, 7), torch.randn(5, 7)
    sizes = [7, 1, 4, 6, 2]
    keep = torch.arange(7) < torch.tensor(sizes)[:, None]
    batch = ppo.gae_batch(rewards, values, keep, 0.9, 0.8)
    for row, size in enumerate(sizes):
        assert batch[row, :size].tolist() == approx(
            ppo.gae(rewards[row, :size], values[row, :size], 0.9, 0.8).tolist()
        )
        assert not batch[row, size:].any()


def test_token_rewards_by_hand():
    keep = torch.tensor([[True, True, True], [True, False, False]])
    kl = torch.tensor([[0.1, 0.2, -0.3], [0.5, 9.0, 9.0]])
    rewards = ppo.token_rewards(torch.tensor([2.0, 1.0]), kl, keep, kl_coef=0.1)
    assert rewards.flatten().tolist() == approx([-0.01, -0.02, 2.03, 0.95, 0.0, 0.0])


def test_kl_estimators_by_hand():
    now, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert ppo.kl_estimate(now, reference, "k1").item() == approx(math.log(2))
    assert ppo.kl_estimate(now, reference, "k2").item() == approx(math.log(2) ** 2 / 2)
    assert ppo.kl_estimate(now, reference, "k3").item() == approx(0.5 - 1 + math.log(2))
    with pytest.raises(InputError, match="kl_estimator"):
        ppo.kl_estimate(now, reference, "k4")


def test_kl_estimators_average_to_the_divergence():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.4, 0.2])
    exact = (p * (p / q).log()).sum()
    for name in ("k1", "k3"):
        assert (p * ppo.kl_estimate(p.log(), q.log(), name)).sum().item() == approx(exact.item())


def test_clipped_surrogate_by_hand():
    # ratios 1.5, 1.5, .5, .5 with advantages 1, -1, 1, -1 and clip .2:
    # min(1.5, 1.2) = 1.2; min(-1.5, -1.2) = -1.5; min(.5, .8) = .5; min(-.5, -.8) = -.8; the sum -0.6, so
    # loss .15
    ratio, advantages = torch.tensor([[1.5, 1.5, 0.5, 0.5, 7.0]]), torch.tensor([[1.0, -1.0, 1.0, -1.0, 5.0]])
    keep = torch.tensor([[True, True, True, True, False]])
    loss, clipped = ppo.policy_loss(ratio.log(), torch.zeros(1, 5), advantages, keep, 0.2)
    assert loss.item() == approx(0.15)
    assert clipped.item() == approx(0.5)


def test_clipped_tokens_and_padding_give_no_gradient():
    logprobs = torch.tensor([[1.5, 0.9, 3.0]]).log().requires_grad_()
    keep = torch.tensor([[True, True, False]])
    loss, _ = ppo.policy_loss(logprobs, torch.zeros(1, 3), torch.ones(1, 3), keep, 0.2)
    loss.backward()
    assert logprobs.grad[0].tolist() == approx([0.0, -0.9 / 2, 0.0])


def test_value_loss_by_hand():
    # value 1, old 0, return 2: free error 1; clipped value .2, error 3.24; half of the larger is 1.62
    one, zero, two = torch.tensor([[1.0, 8.0]]), torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
    keep = torch.tensor([[True, False]])
    assert ppo.value_loss(one, zero, two, keep, 0.2).item() == approx(1.62)
    assert ppo.value_loss(one, zero, two, keep, None).item() == approx(0.5)


def test_parts_of_a_batch_add_up():
    torch.manual_seed(1)
    now, old, advantages = torch.randn(3, 4, 5)
    keep = torch.rand(4, 5) > 0.4
    whole, _ = ppo.policy_loss(now, old, advantages, keep, 0.2)
    total = float(keep.sum())
    parts = [ppo.policy_loss(now[i], old[i], advantages[i], keep[i], 0.2, total)[0] for i in ([0, 3], [1, 2])]
    assert sum(p.item() for p in parts) == approx(whole.item())


def test_advantages_are_normalised_over_kept_tokens_of_a_block():
    advantages = torch.tensor([[1.0, 3.0, 99.0], [5.0, 5.0, 5.0], [7.0, 99.0, 99.0]])
    keep = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    normal = ppo.normalise_advantages(advantages, keep, torch.tensor([0, 1, 1]))
    assert normal[0].tolist() == approx([-1.0, 1.0, 0.0])
    # block 1: 5, 5, 5, 7, mean 5.5, deviation sqrt(.75)
    assert normal[1:].flatten().tolist() == approx([-0.5 / 0.75**0.5] * 3 + [1.5 / 0.75**0.5, 0.0, 0.0])
    assert not ppo.normalise_advantages(torch.ones(2, 2), torch.ones(2, 2).bool(), torch.zeros(2)).any()


def test_explained_variance():
    returns, keep = torch.tensor([[1.0, 2.0, 3.0, 50.0]]), torch.tensor([[True, True, True, False]])
    assert ppo.explained_variance(returns, returns, keep) == approx(1.0)
    assert ppo.explained_variance(torch.zeros(1, 4), returns, keep) == approx(0.0)
    assert math.isnan(ppo.explained_variance(returns, torch.ones(1, 4), keep))


def test_learning_rate_rises_then_falls_to_its_floor():
    scales = [ppo.lr_scale(step, 100, 0.03, 0.1) for step in range(100)]
    assert scales[:3] == approx([1 / 3, 2 / 3, 1.0])
    assert scales[3] == approx(1.0) and scales[-1] == approx(0.1)
    assert all(a >= b for a, b in zip(scales[3:], scales[4:], strict=False))
    assert ppo.lr_scale(0, 1, 0.0, 0.1) == 1.0 and ppo.lr_scale(500, 100, 0.03, 0.1) == approx(0.1)


def test_groups_are_never_cut():
    assert ppo.split_groups([4, 4, 4, 4], 8, [3, 0, 2, 1]) == [[3, 0], [2, 1]]
    assert ppo.split_groups([4, 3, 4, 2], 8, [0, 1, 2, 3]) == [[0, 1], [2, 3]]
    assert ppo.split_groups([9], 8, [0]) == [[0]]
    assert ppo.split_groups([], 8, []) == []


def test_adaptive_coefficient_by_hand():
    # KL 12 against a target of 10: error .2; 500 replies over a horizon of 10,000: times 1.01
    assert ppo.adapt_kl_coef(0.1, 12.0, 10.0, 10000, 500) == approx(0.101)
    assert ppo.adapt_kl_coef(0.1, 11.0, 10.0, 10000, 500) == approx(0.1005)
    assert ppo.adapt_kl_coef(0.1, 99.0, 10.0, 10000, 500) == approx(0.101)  # errors are cut to .2
    assert ppo.adapt_kl_coef(0.1, -3.0, 10.0, 10000, 500) == approx(0.099)
    assert ppo.adapt_kl_coef(0.1, 99.0, None, 10000, 500) == 0.1


def test_sampler_gap_by_hand():
    trainer, sampler = torch.tensor([[-1.0, -2.0, 5.0]]), torch.tensor([[-1.5, -1.9, -9.0]])
    gap = ppo.sampler_gap(trainer, sampler, torch.tensor([[True, True, False]]))
    assert gap == {"sampler_gap": approx(0.3), "sampler_max_ratio": approx(math.exp(0.5))}


def test_importance_is_truncated():
    weights = ppo.truncated_importance(
        torch.tensor([math.log(0.5), math.log(0.2)]), torch.tensor([math.log(0.1), math.log(0.4)]), 2.0
    )
    assert weights.tolist() == approx([2.0, 0.5])


def test_weights_scale_the_surrogate_of_each_token():
    advantages, keep = torch.tensor([[1.0, -2.0]]), torch.ones(1, 2).bool()
    loss, _ = ppo.policy_loss(
        torch.zeros(1, 2), torch.zeros(1, 2), advantages, keep, 0.2, weights=torch.tensor([[0.5, 2.0]])
    )
    assert loss.item() == approx((-0.5 + 4.0) / 2)


def test_other_estimators_in_the_reward():
    keep = torch.ones(1, 2).bool()
    now, reference = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.5, -0.5]])
    rewards = {
        k: ppo.token_rewards(torch.tensor([1.0]), ppo.kl_estimate(now, reference, k), keep, 0.1)[0].tolist()
        for k in ("k1", "k2", "k3")
    }
    assert rewards["k1"] == approx([-0.05, 1.05])
    assert rewards["k2"] == approx([-0.0125, 0.9875])
    assert rewards["k3"] == approx([-0.1 * (math.exp(-0.5) - 0.5), 1 - 0.1 * (math.exp(0.5) - 1.5)])
