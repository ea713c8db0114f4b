"""From scored turn groups to training data: reference pass, values, token rewards, advantages; then minibatch updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlpa_lib import ppo
from rlpa_lib.learner import Learner, accumulate
from rlpa_lib.packing import Group, Packed
from rlpa_lib.policies import derive_seed
from rlpa_lib.rollout import TurnGroup

PER_TOKEN = ("old_logprobs", "advantages", "values", "returns", "features")


@dataclass(frozen=True)
class Experience:
    """What an update learns from: groups of token ids, and per sample and token [S, T] (features [S, T, F]) the rest.

    `starts` is the index of each group's first sample.
    """

    groups: list[Group]
    starts: list[int]
    keep: torch.Tensor
    old_logprobs: torch.Tensor
    reference: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    features: torch.Tensor | None

    def samples(self, group_indices: Sequence[int]) -> list[int]:
        """Sample indices of these groups, in the order in which `pack` puts them."""
        return [self.starts[g] + i for g in group_indices for i in range(len(self.groups[g][1]))]


def gather_experience(learner: Learner, turn_groups: Sequence[TurnGroup]) -> Experience:
    """Run reference and critic once over all samples that have a reward and compute advantages (appendix B).

    The sampler's log-probabilities are the old ones. `ppo.advantage_norm`: "rollout" normalises each turn of the
    cohort by itself, "cohort" all that one update sees.
    """
    settings = learner.cfg.ppo
    scored = [(g, [s for s in g.samples if s.reward is not None]) for g in turn_groups]
    scored = [(g, samples) for g, samples in scored if samples]
    groups = [(g.prompt_ids, tuple(s.completion.token_ids for s in samples)) for g, samples in scored]
    flat = [s for _, samples in scored for s in samples]
    starts = [0]
    for _, completions in groups[:-1]:
        starts.append(starts[-1] + len(completions))
    old, keep = _pad([s.completion.logprobs for s in flat])
    reference, values, features = _frozen_passes(learner, groups, starts, keep)
    rewards_S = torch.tensor([s.reward.total for s in flat])
    kl = ppo.kl_estimate(old, reference, settings.kl_estimator)
    rewards = ppo.token_rewards(rewards_S, kl, keep, settings.kl_coef)
    advantages = ppo.gae_batch(rewards, values, keep, settings.gamma, settings.lam)
    returns = advantages + values
    if settings.advantage_norm != "none":
        turns = torch.tensor([g.turn if settings.advantage_norm == "rollout" else 0 for g, ss in scored for _ in ss])
        advantages = ppo.normalise_advantages(advantages, keep, turns)
    return Experience(groups, starts, keep, old, reference, values, advantages, returns, features)


@torch.no_grad()
def _frozen_passes(learner: Learner, groups: list[Group], starts: list[int], keep: torch.Tensor):
    """Reference log-probabilities, values and (for the critic's head) features of every sample, [S, T] on the CPU."""
    learner.model.eval()
    with_features = learner.cfg.ppo.critic == "head"
    reference, values = torch.zeros(keep.shape), torch.zeros(keep.shape)
    features = torch.zeros(*keep.shape, learner.head.width) if with_features else None
    for part in _passes(learner, groups, range(len(groups))):
        packed = learner.pack([groups[g] for g in part])
        where = [starts[g] + i for g in part for i in range(len(groups[g][1]))]
        seen = learner.run(packed, "reference", features=with_features)
        longest = packed.keep_ST.shape[1]
        reference[where, :longest] = seen.logprobs_ST.cpu()
        values[where, :longest] = learner.values(packed, seen.features_STF).cpu()
        if with_features:
            features[where, :longest] = seen.features_STF.float().cpu()
    return reference, values, features


def update(learner: Learner, data: Experience, *, seed: int, scales: Sequence[float]) -> dict[str, float]:
    """`ppo.epochs` passes of minibatch steps over the data, each step at its entry of `scales` (shares of the learning rates).

    Returns means over the steps; `sampler_gap` is the first step's mean |difference| between recomputed and
    sampled log-probabilities. Steps beyond the length of `scales` use its last entry.
    """
    learner.model.train()
    torch.manual_seed(derive_seed(seed, "dropout"))
    order = torch.Generator().manual_seed(derive_seed(seed, "order"))
    sizes = [len(completions) for _, completions in data.groups]
    steps: list[dict[str, float]] = []
    for _ in range(learner.cfg.ppo.epochs):
        shuffled = torch.randperm(len(sizes), generator=order).tolist()
        for minibatch in ppo.split_groups(sizes, learner.cfg.ppo.minibatch, shuffled):
            logged = _minibatch(learner, data, minibatch)
            scale = scales[min(len(steps), len(scales) - 1)]
            steps.append({**logged, **learner.step(scale), "lr_scale": scale})
    means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
    return {**means, "sampler_gap": steps[0]["sampler_gap"], "optimizer_steps": len(steps)}


def _minibatch(learner: Learner, data: Experience, minibatch: list[int]) -> dict[str, float]:
    total = float(data.keep[data.samples(minibatch)].sum())
    logged: dict[str, float] = {}
    for part in _passes(learner, data.groups, minibatch):
        packed = learner.pack([data.groups[g] for g in part])
        numbers = accumulate(learner, packed, token_batch(learner, data, part, packed), total)
        logged = {name: logged.get(name, 0.0) + value for name, value in numbers.items()}
    return logged


def _passes(learner: Learner, groups: list[Group], indices: Sequence[int]) -> list[list[int]]:
    """The groups at `indices` in forward passes of at most `ppo.micro_batch` samples, short ones together."""
    settings = learner.cfg.ppo
    order = sorted(indices, key=lambda g: (len(groups[g][0]) + sum(map(len, groups[g][1])), g))
    return ppo.split_groups([len(c) for _, c in groups], settings.micro_batch or settings.minibatch, order)


def _pad(rows: Sequence[Sequence[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded with zeros on the right, [S, T], and which entries are real."""
    longest = max(map(len, rows))
    padded = torch.tensor([[*row, *[0.0] * (longest - len(row))] for row in rows])
    keep = torch.arange(longest)[None, :] < torch.tensor([len(row) for row in rows])[:, None]
    return padded, keep


def token_batch(learner: Learner, data: Experience, part: list[int], packed: Packed) -> dict[str, torch.Tensor | None]:
    """The data's per-token tensors for these groups, cut to the packed length, on the learner's device."""
    where, longest = data.samples(part), packed.keep_ST.shape[1]
    tensors = {name: getattr(data, name) for name in PER_TOKEN}
    return {name: None if x is None else x[where, :longest].to(learner.device) for name, x in tensors.items()}
