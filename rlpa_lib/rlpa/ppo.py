"""The arithmetic of PPO (section 3.4, eq. 1, 6-7, appendix B): credit, losses, KL, schedule. No models here.

Axes: S samples or B completions, T places: the tokens of a completion and, with credit across turns, the
state after its last one. `keep` is true on tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.schema import PPO


def gae(rewards_T, values_T, gamma: float, lam: float):
    """Generalised advantage estimates of one finished episode, same length T as the input (appendix B).

    delta_t = r_t + gamma V_{t+1} - V_t with V_T = 0; A_t = delta_t + gamma lam A_{t+1}. Takes lists, arrays
    or tensors; gives a tensor for a tensor of rewards, else a float64 array. ValueError on shapes or on
    gamma, lam outside [0, 1].
    """
    rewards, values = (
        torch.from_numpy(np.array(x.detach().cpu().numpy() if isinstance(x, Tensor) else x, dtype=np.float64))
        for x in (rewards_T, values_T)
    )
    if rewards.shape != values.shape or rewards.ndim != 1:
        shapes = f"{tuple(rewards.shape)} and {tuple(values.shape)}"
        raise ValueError(f"gae needs two vectors of one length, got shapes {shapes}")
    keep = torch.ones(1, len(rewards), dtype=torch.bool)
    advantages = gae_batch(rewards[None], values[None], keep, gamma, lam)[0]
    if not isinstance(rewards_T, Tensor):
        return advantages.numpy()
    dtype = rewards_T.dtype if rewards_T.is_floating_point() else torch.get_default_dtype()
    return advantages.to(rewards_T.device, dtype)


def gae_batch(rewards_BT: Tensor, values_BT: Tensor, keep_BT: Tensor, gamma: float, lam: float) -> Tensor:
    """`gae` of each row of a batch padded on the right, [B, T]; 0 on padding, whatever stands there."""
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma and lam must lie in [0, 1], got {gamma} and {lam}")
    rewards, values = rewards_BT * keep_BT, values_BT * keep_BT
    advantages = torch.zeros_like(values)
    value = advantage = values.new_zeros(len(values))
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * value - values[:, t]
        advantage = (delta + gamma * lam * advantage) * keep_BT[:, t]
        advantages[:, t], value = advantage, values[:, t]
    return advantages


@dataclass(frozen=True)
class Place:
    """Where a sample stands: dialogue, turn (from 1), whether the dialogue went on with it or ended there."""

    dialogue: str
    turn: int
    continued: bool
    at_limit: bool = False


class Credit(NamedTuple):
    """Advantages and value targets [S, T]; `taught_ST` marks tokens and states after a turn with a target."""

    advantages_ST: Tensor
    returns_ST: Tensor
    taught_ST: Tensor


def assign_credit(
    rewards_ST: Tensor, values_ST: Tensor, keep_ST: Tensor, places: Sequence[Place], settings: PPO
) -> Credit:
    """Which later rewards the tokens of a turn answer for (eq. 1, section 2.1), as `ppo.turn_discount` says.

    0, as in the released code: a turn is an episode of its own (a bandit), which ends with value 0. Above 0,
    as in the paper's MDP: GAE along the turns of a dialogue (`look_ahead`), then along the tokens of each
    turn, whose last one is followed by what the dialogue still brings; each row then holds one value more
    than tokens, that of the state after the turn.
    """
    if settings.turn_discount == 0:
        advantages = gae_batch(rewards_ST, values_ST, keep_ST, settings.gamma, settings.lam)
        return Credit(advantages, advantages + values_ST, keep_ST)
    sizes_S = keep_ST.sum(dim=1)
    rows = torch.arange(len(sizes_S), device=sizes_S.device)
    powers_T = settings.gamma ** torch.arange(keep_ST.shape[1], dtype=torch.float64)
    futures_S, worths_S = look_ahead(
        places, rewards_S=((rewards_ST * keep_ST).double().cpu() * powers_T).sum(1).tolist(),
        spans_S=powers_T[sizes_S.cpu() - 1].tolist(), before_S=values_ST[:, 0].tolist(),
        after_S=values_ST[rows, sizes_S].tolist(), settings=settings,
    )
    led_to = rewards_ST.clone()
    led_to[rows, sizes_S - 1] += torch.tensor(futures_S, dtype=led_to.dtype, device=led_to.device)
    advantages = gae_batch(led_to, values_ST, keep_ST, settings.gamma, settings.lam)
    returns, taught = advantages + values_ST * keep_ST, keep_ST.clone()
    known = [row for row, worth in enumerate(worths_S) if worth is not None]
    worths = torch.tensor([worths_S[row] for row in known], dtype=returns.dtype, device=returns.device)
    returns[known, sizes_S[known]] = worths
    taught[known, sizes_S[known]] = True
    return Credit(advantages, returns, taught)


def baseline_values(
    rewards_ST: Tensor, keep_ST: Tensor, places: Sequence[Place], turn_discount: float, gamma: float = 1.0
) -> Tensor:
    """Values [S, T] made of rewards alone, in place of a critic's (leave-one-out; Kool et al. 2019).

    V(k) is the mean over all samples of turn k of R + G V(k+1), with G the turn's discount and nothing behind
    the last turn. A sample's last token has G V(k+1) plus the mean R of its siblings (alone: of the turn's
    other samples), the state after it has V(k+1); `gamma` discounts to earlier tokens, in V(k) to the first
    one. So a reward is compared with what the same prompt brought otherwise, and what follows a turn with
    what follows it in other dialogues.
    """
    totals_S, turns_S = (rewards_ST * keep_ST).sum(1).double(), torch.tensor([p.turn for p in places])
    places_T = torch.arange(keep_ST.shape[1], device=keep_ST.device)
    to_come_ST = (keep_ST.sum(1, keepdim=True) - 1 - places_T).clamp_min(0)
    powers_ST = gamma ** to_come_ST.double()
    worth = {}
    for turn in sorted(set(turns_S.tolist()), reverse=True):
        first = powers_ST[turns_S == turn, 0]
        mean = float((totals_S[turns_S == turn] * first).mean())
        worth[turn] = mean + turn_discount * worth.get(turn + 1, 0.0) * float(first.mean())
    values_ST = torch.zeros_like(rewards_ST)
    for place in dict.fromkeys((p.dialogue, p.turn) for p in places):
        rows = [row for row, p in enumerate(places) if (p.dialogue, p.turn) == place]
        peers = totals_S[rows if len(rows) > 1 else turns_S == place[1]]
        after = worth.get(place[1] + 1, 0.0)
        others_S = (peers.sum() - totals_S[rows]) / max(len(peers) - 1, 1)
        before_ST = (others_S + turn_discount * after)[:, None] * powers_ST[rows]
        values_ST[rows] = torch.where(keep_ST[rows], before_ST, after).to(values_ST.dtype)
    return values_ST


def explain_advantages(
    advantages_ST: Tensor, keep_ST: Tensor, places: Sequence[Place], rewards_S: Tensor
) -> dict[str, float]:
    """Shares of the variance of the samples' mean advantages that are explained by their own rewards, and by
    their turn and whether the dialogue went on with them, which is a coin's doing."""
    means_S, rewards = (advantages_ST * keep_ST).sum(1).double() / keep_ST.sum(1), rewards_S.double()
    spread = float(means_S.var(correction=0))
    if not spread:
        return {}
    varied = len(rewards) > 1 and float(rewards.var()) > 0
    slope = float(torch.corrcoef(torch.stack([means_S, rewards]))[0, 1]) if varied else 0.0
    cells: dict[tuple[int, bool], list[int]] = {}
    for row, place in enumerate(places):
        cells.setdefault((place.turn, place.continued), []).append(row)
    between = sum(len(rows) * float(means_S[rows].mean() - means_S.mean()) ** 2 for rows in cells.values())
    return {"advantage_by_reward": slope**2, "advantage_by_coin": between / len(places) / spread}


def look_ahead(
    places: Sequence[Place], *, rewards_S: Sequence[float], spans_S: Sequence[float],
    before_S: Sequence[float], after_S: Sequence[float], settings: PPO,
) -> tuple[list[float], list[float | None]]:
    """What follows each sample's turn, discounted to its last token; what the state after it is worth.

    Turn-level GAE with G, L the turn's discount and lambda (eq. 1): delta_t = R_t + span_t G V_{t+1} - V_t,
    A_t = delta_t + span_t G L A_{t+1}.
    R_t are the turn's token rewards discounted to its first token, V_t the value `before` that token, `span`
    the token-level discount from the first token to the last (1 for gamma 1). A turn that went on leads to G
    (V_{t+1} + L A_{t+1}) of the next turn of the same dialogue. Where a dialogue is cut (a sample it did not
    go on with, a next turn without any readable verdict, the turn limit) the turn leads to G times the
    critic's value `after` it; nothing follows the limit when `ppo.turn_limit` is "end". What a continued turn
    led to is the target of its value `after`. ValueError: a turn of a dialogue went on with two samples.
    """
    rows = {(p.dialogue, p.turn): row for row, p in enumerate(places) if p.continued}
    if len(rows) < sum(p.continued for p in places):
        raise ValueError("a turn of a dialogue went on with two samples")
    futures, worths, advantages = [0.0] * len(places), [None] * len(places), {}
    for row in sorted(range(len(places)), key=lambda row: -places[row].turn):
        place, following = places[row], rows.get((places[row].dialogue, places[row].turn + 1))
        if place.continued and following is not None:
            worths[row] = worth = before_S[following] + settings.turn_lam * advantages[following]
        else:
            worth = 0.0 if place.at_limit and settings.turn_limit == "end" else after_S[row]
        futures[row] = settings.turn_discount * worth
        advantages[row] = rewards_S[row] + spans_S[row] * futures[row] - before_S[row]
    return futures, worths


def masked_mean(values: Tensor, keep: Tensor, total: float | None = None) -> Tensor:
    """Mean over kept entries; `total` replaces their number when the batch is one part of a larger one."""
    return (values * keep).sum() / max(float(keep.sum()) if total is None else total, 1.0)


def kl_estimate(logprobs: Tensor, reference: Tensor, estimator: str = "k1") -> Tensor:
    """Estimate of KL(policy || reference) at each sampled token, from its log-probabilities (eq. 6).

    With d = logprobs - reference: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. InputError on another name.
    """
    d = logprobs - reference
    estimates = {"k1": d, "k2": d.square() / 2, "k3": torch.exp(-d) - 1 + d}
    if estimator not in estimates:
        raise InputError(f"ppo.kl_estimator: {estimator!r} is not one of {', '.join(estimates)}")
    return estimates[estimator]


def token_rewards(rewards_B: Tensor, kl_BT: Tensor, keep_BT: Tensor, kl_coef: float) -> Tensor:
    """Rewards [B, T]: -kl_coef * kl on every kept token, plus the turn's reward on the last (as released)."""
    rewards_BT = -kl_coef * kl_BT * keep_BT
    last_B = keep_BT.long().sum(dim=1) - 1
    rewards_BT[torch.arange(len(last_B), device=last_B.device), last_B] += rewards_B
    return rewards_BT


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, keep: Tensor, clip: float,
    total: float | None = None, weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate loss, a mean over tokens (eq. 7 with its sign turned), and the clipped share.

    `weights` correct for a sampler that is not the old policy (`truncated_importance`).
    """
    ratio = torch.exp(logprobs - old_logprobs)
    free, clipped = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    gained = torch.minimum(free, clipped)
    loss = masked_mean(-gained if weights is None else -gained * weights, keep, total)
    return loss, masked_mean((clipped < free).float(), keep, total)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, keep: Tensor, clip: float | None,
    total: float | None = None,
) -> Tensor:
    """Half the squared error, the larger one of the free and the clipped value (`clip` None: free only)."""
    error = (values - returns).square()
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns).square())
    return masked_mean(0.5 * error, keep, total)


def normalise_advantages(advantages_BT: Tensor, keep_BT: Tensor, blocks_B: Tensor) -> Tensor:
    """Advantages with mean 0 and deviation 1 over the kept tokens of each block of rows (0 if all equal)."""
    normal = torch.zeros_like(advantages_BT)
    for block in blocks_B.unique():
        keep = keep_BT & (blocks_B == block)[:, None]
        mean = masked_mean(advantages_BT, keep)
        spread = masked_mean((advantages_BT - mean).square(), keep).sqrt()
        normal = torch.where(keep, (advantages_BT - mean) / (spread + 1e-8), normal)
    return normal


def adapt_kl_coef(coef: float, kl: float, target: float | None, horizon: float, n: int) -> float:
    """The coefficient after n replies with a mean KL of `kl` nats a reply (Ziegler et al. 2019, section 2.2).

    It grows by the proportional error, cut to [-0.2, 0.2], times n / horizon; `target` None leaves it.
    """
    if target is None:
        return coef
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * n / horizon)


def sampler_gap(trainer_ST: Tensor, sampler_ST: Tensor, keep_ST: Tensor) -> dict[str, float]:
    """Between trainer and sampler: mean |difference| in nats a token, and the largest probability ratio."""
    apart = (trainer_ST - sampler_ST).abs()[keep_ST]
    return {"sampler_gap": float(apart.mean()), "sampler_max_ratio": float(apart.max().exp())}


def truncated_importance(trainer_ST: Tensor, sampler_ST: Tensor, cap: float) -> Tensor:
    """Weights min(p_trainer / p_sampler, cap) a token, for a sampler that is not the old policy."""
    return torch.exp(trainer_ST - sampler_ST).clamp(max=cap)


def explained_variance(values: Tensor, returns: Tensor, keep: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over kept tokens; NaN when the returns do not vary."""
    returns, errors = returns[keep], (returns - values)[keep]
    variance = float(returns.var(unbiased=False))
    return 1 - float(errors.var(unbiased=False)) / variance if variance > 0 else math.nan


def lr_scale(step: int, total: int, warmup: float, floor: float) -> float:
    """Share of the learning rate at step 0..total-1: linear over `warmup`, then cosine to `floor`."""
    rising = max(1, math.ceil(warmup * total)) if warmup > 0 else 0
    if step < rising:
        return (step + 1) / rising
    done = min(1.0, (step - rising) / max(1, total - rising - 1))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def split_groups(sizes: Sequence[int], limit: int, order: Sequence[int]) -> list[list[int]]:
    """Indices of groups, taken in `order`, in batches of at most `limit` samples; no group is cut in two."""
    batches: list[list[int]] = []
    n_samples = limit
    for index in order:
        n_samples += sizes[index]
        if n_samples > limit:
            batches.append([])
            n_samples = sizes[index]
        batches[-1].append(index)
    return batches
