"""The arithmetic of PPO (section 3.4, appendix B): advantages, losses, KL estimates, schedule. No models in here.

Axes: T tokens of one completion, B completions, S samples. `keep` is true on completion tokens, false on padding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from rlpa_lib.settings.config import InputError


def gae(rewards_T, values_T, gamma: float, lam: float):
    """Generalised advantage estimates of one finished episode, same length T as the input (appendix B).

    delta_t = r_t + gamma V_{t+1} - V_t with V_T = 0; A_t = delta_t + gamma lam A_{t+1}. Takes lists, arrays or
    tensors; gives a tensor for a tensor of rewards, else a float64 array. ValueError on shapes or on gamma, lam
    outside [0, 1].
    """
    _check_discounts(gamma, lam)
    rewards, values = (_vector(x) for x in (rewards_T, values_T))
    if rewards.shape != values.shape or rewards.ndim != 1:
        raise ValueError(f"gae needs two vectors of one length, got shapes {rewards.shape} and {values.shape}")
    advantages = np.zeros_like(rewards)
    following_value = following_advantage = 0.0
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t] + gamma * following_value - values[t]
        following_advantage = delta + gamma * lam * following_advantage
        advantages[t], following_value = following_advantage, values[t]
    if isinstance(rewards_T, torch.Tensor):
        dtype = rewards_T.dtype if rewards_T.is_floating_point() else torch.get_default_dtype()
        return torch.as_tensor(advantages, dtype=dtype, device=rewards_T.device)
    return advantages


def gae_batch(rewards_BT: torch.Tensor, values_BT: torch.Tensor, keep_BT: torch.Tensor, gamma: float, lam: float):
    """`gae` of each row of a batch padded on the right, [B, T]; zero on padding. Rewards or values there are ignored."""
    _check_discounts(gamma, lam)
    rewards, values = rewards_BT * keep_BT, values_BT * keep_BT
    advantages = torch.zeros_like(values)
    value = advantage = torch.zeros_like(values[:, 0])
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * value - values[:, t]
        advantage = (delta + gamma * lam * advantage) * keep_BT[:, t]
        advantages[:, t], value = advantage, values[:, t]
    return advantages


def _vector(values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.array(values, dtype=np.float64)


def _check_discounts(gamma: float, lam: float) -> None:
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma and lam must lie in [0, 1], got {gamma} and {lam}")


def masked_mean(values: torch.Tensor, keep: torch.Tensor, total: float | None = None) -> torch.Tensor:
    """Mean over kept entries; `total` replaces their number when the batch is one part of a larger one."""
    return (values * keep).sum() / max(float(keep.sum()) if total is None else total, 1.0)


def kl_estimate(logprobs: torch.Tensor, reference: torch.Tensor, estimator: str = "k1") -> torch.Tensor:
    """Per-token estimate of KL(policy || reference) from log-probabilities of tokens the policy sampled.

    With d = logprobs - reference: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. InputError on another name.
    """
    difference = logprobs - reference
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        return torch.exp(-difference) - 1 + difference
    raise InputError(f"ppo.kl_estimator: {estimator!r} is not one of k1, k2, k3")


def token_rewards(rewards_B: torch.Tensor, kl_BT: torch.Tensor, keep_BT: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """Rewards [B, T]: -kl_coef * kl on every kept token, plus the turn's reward on the last one (released scheme)."""
    rewards_BT = -kl_coef * kl_BT * keep_BT
    last_B = keep_BT.long().sum(dim=1) - 1
    rewards_BT[torch.arange(len(last_B), device=last_B.device), last_B] += rewards_B
    return rewards_BT


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    keep: torch.Tensor,
    clip: float,
    total: float | None = None,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(clipped surrogate loss as a mean over tokens, share of tokens where the clip binds), eq. 7 with its sign turned.

    `weights` correct for a sampler that is not the old policy (`truncated_importance`).
    """
    ratio = torch.exp(logprobs - old_logprobs)
    free, clipped = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    gained = torch.minimum(free, clipped)
    loss = masked_mean(-gained if weights is None else -gained * weights, keep, total)
    return loss, masked_mean((clipped < free).float(), keep, total)


def value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    keep: torch.Tensor,
    clip: float | None,
    total: float | None = None,
) -> torch.Tensor:
    """Half the squared error of values, the larger one of the free and the clipped value (`clip` None: free only)."""
    error = (values - returns).square()
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns).square())
    return masked_mean(0.5 * error, keep, total)


def normalise_advantages(advantages_BT: torch.Tensor, keep_BT: torch.Tensor, blocks_B: torch.Tensor) -> torch.Tensor:
    """Advantages with mean 0 and deviation 1 over the kept tokens of each block of rows; a block without spread becomes 0."""
    normal = torch.zeros_like(advantages_BT)
    for block in blocks_B.unique():
        keep = keep_BT & (blocks_B == block)[:, None]
        mean = masked_mean(advantages_BT, keep)
        spread = masked_mean((advantages_BT - mean).square(), keep).sqrt()
        normal = torch.where(keep, (advantages_BT - mean) / (spread + 1e-8), normal)
    return normal


def adapt_kl_coef(coef: float, kl: float, target: float | None, horizon: float, n: int) -> float:
    """The coefficient after n replies whose mean KL to the reference was `kl` nats a reply (Ziegler et al. 2019, section 2.2).

    It grows by the proportional error, cut to [-0.2, 0.2], times n / horizon; `target` None keeps it as it is.
    """
    if target is None:
        return coef
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * n / horizon)


def sampler_gap(trainer_ST: torch.Tensor, sampler_ST: torch.Tensor, keep_ST: torch.Tensor) -> dict[str, float]:
    """Mean |difference| in nats a token, and the largest probability ratio either way, between trainer and sampler."""
    apart = (trainer_ST - sampler_ST).abs()[keep_ST]
    return {"sampler_gap": float(apart.mean()), "sampler_max_ratio": float(apart.max().exp())}


def truncated_importance(trainer_ST: torch.Tensor, sampler_ST: torch.Tensor, cap: float) -> torch.Tensor:
    """Weights min(p_trainer / p_sampler, cap) a token, which turn an expectation under the sampler into one under the old policy."""
    return torch.exp(trainer_ST - sampler_ST).clamp(max=cap)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, keep: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over kept tokens; NaN when the returns do not vary."""
    returns, errors = returns[keep], (returns - values)[keep]
    variance = float(returns.var(unbiased=False))
    return 1 - float(errors.var(unbiased=False)) / variance if variance > 0 else math.nan


def lr_scale(step: int, total: int, warmup: float, floor: float) -> float:
    """Share of the learning rate at optimiser step 0..total-1: linear over the `warmup` share, then cosine to `floor`."""
    rising = max(1, math.ceil(warmup * total)) if warmup > 0 else 0
    if step < rising:
        return (step + 1) / rising
    done = min(1.0, (step - rising) / max(1, total - rising - 1))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def split_groups(sizes: Sequence[int], limit: int, order: Sequence[int]) -> list[list[int]]:
    """Indices of groups, taken in `order`, in batches of at most `limit` samples; a group is never cut in two."""
    batches: list[list[int]] = []
    filled = limit
    for index in order:
        if filled + sizes[index] > limit:
            batches.append([])
            filled = 0
        batches[-1].append(index)
        filled += sizes[index]
    return batches
