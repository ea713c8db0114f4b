"""From scored turn groups to training data: reference pass, values, token rewards, credit; then minibatch updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlpa_lib.dialogue.judging import JudgeFailed
from rlpa_lib.rlpa import credit, ppo
from rlpa_lib.rlpa.credit import Place
from rlpa_lib.rlpa.learner import Learner, accumulate
from rlpa_lib.rlpa.networks import POLICY, REFERENCE
from rlpa_lib.rlpa.packing import Group, Packed, with_end
from rlpa_lib.rlpa.rollout import TurnGroup
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import InputError

PER_TOKEN = ("keep", "taught", "old_logprobs", "advantages", "values", "returns", "weights", "features")


@dataclass(frozen=True)
class Experience:
    """What an update learns from: groups of token ids, and per sample and place [S, T] (features [S, T, F]) the rest.

    Places are a sample's tokens, marked by `keep`; with `ppo.turn_discount` > 0 one place follows them, the state after the turn. `taught`
    marks the values that have a target. `starts` is the index of each group's first sample. `weights` and `gap` are there for
    a sampler of its own only: importance weights, and how far its log-probabilities were from the trainer's.
    """

    groups: list[Group]
    starts: list[int]
    keep: torch.Tensor
    taught: torch.Tensor
    old_logprobs: torch.Tensor
    reference: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    features: torch.Tensor | None
    weights: torch.Tensor | None = None
    gap: dict[str, float] | None = None

    def samples(self, group_indices: Sequence[int]) -> list[int]:
        """Sample indices of these groups, in the order in which `pack` puts them."""
        return [self.starts[g] + i for g in group_indices for i in range(len(self.groups[g][1]))]


def gather_experience(
    learner: Learner, turn_groups: Sequence[TurnGroup], *, kl_coef: float | None = None, elsewhere: bool = False
) -> Experience:
    """Run reference and critic once over all samples that have a reward and give credit (appendix B).

    The sampler's log-probabilities are the old ones, unless it samples `elsewhere` (a server): then the trainer computes them anew. `kl_coef`
    defaults to the settings'. `ppo.advantage_norm`: "rollout" normalises each turn of the cohort by itself, "cohort" all that
    one update sees. JudgeFailed: no sample has a reward. InputError: a sample has no token ids.
    """
    settings = learner.cfg.ppo
    scored = [(g, [i for i, s in enumerate(g.samples) if s.reward is not None]) for g in turn_groups]
    scored = [(g, indices) for g, indices in scored if indices]
    flat = [(g, i) for g, indices in scored for i in indices]
    _check(turn_groups, flat)
    groups, starts = _token_groups(scored, with_ends=settings.turn_discount > 0)
    sampled, keep = _pad([g.samples[i].completion.logprobs for g, i in flat], ends=settings.turn_discount > 0)
    seen = _frozen_passes(learner, groups, starts, keep.shape, policy=elsewhere)
    old = seen.policy * keep if elsewhere else sampled
    rewards_S = torch.tensor([g.samples[i].reward.total for g, i in flat])
    kl = ppo.kl_estimate(old, seen.reference, settings.kl_estimator)
    rewards = ppo.token_rewards(rewards_S, kl, keep, settings.kl_coef if kl_coef is None else kl_coef)
    places = [Place(g.dialogue_id, g.turn, i == g.chosen, g.turn >= learner.cfg.rollout.turns) for g, i in flat]
    given = credit.assign(rewards, seen.values, keep, places, settings)
    advantages = given.advantages_ST
    if settings.advantage_norm != "none":
        turns = torch.tensor([g.turn if settings.advantage_norm == "rollout" else 0 for g, _ in flat])
        advantages = ppo.normalise_advantages(advantages, keep, turns)
    cap = settings.importance_cap if elsewhere else None
    weights = ppo.truncated_importance(old, sampled, cap) if cap else None
    gap = ppo.sampler_gap(old, sampled, keep) if elsewhere else None
    return Experience(
        groups, starts, keep, given.taught_ST, old, seen.reference, seen.values, advantages, given.returns_ST, seen.features, weights, gap
    )


def _check(turn_groups: Sequence[TurnGroup], flat: Sequence[tuple[TurnGroup, int]]) -> None:
    """Refuse what an update can learn nothing from, before any network runs."""
    samples = [s for g in turn_groups for s in g.samples]
    if not flat:
        raise JudgeFailed(
            f"the judge gave no readable answer to any of the {len(samples)} samples of this update, so there is nothing to learn from; "
            "look at judgements/ and at section judge of the settings"
        )
    if not all(s.completion.token_ids and s.completion.logprobs for s in samples):
        raise InputError("policy.kind: a sample has no token ids (a chat endpoint gives none), so it cannot be trained on; use local or vllm")


def _token_groups(scored, with_ends: bool) -> tuple[list[Group], list[int]]:
    """Token ids of (group, indices of its samples that count), and the index of each group's first sample."""
    groups = [(g.prompt_ids, tuple(g.samples[i].completion.token_ids for i in indices)) for g, indices in scored]
    starts = [0]
    for _, completions in groups[:-1]:
        starts.append(starts[-1] + len(completions))
    return [with_end(g) for g in groups] if with_ends else groups, starts


@dataclass(frozen=True)
class _Seen:
    """What the networks say about every sample before the update, [S, T] on the CPU; features [S, T, F] for the critic's head."""

    reference: torch.Tensor
    values: torch.Tensor
    policy: torch.Tensor
    features: torch.Tensor | None


@torch.no_grad()
def _frozen_passes(learner: Learner, groups: list[Group], starts: list[int], shape: torch.Size, policy: bool) -> _Seen:
    """Reference log-probabilities, values, features, and with `policy` the policy's own log-probabilities."""
    learner.network.eval()
    with_features = learner.cfg.ppo.critic == "head"
    made = _Seen(
        *(torch.zeros(shape) for _ in range(3)), torch.zeros(*shape, learner.head.width) if with_features else None
    )
    for part, idle in share_passes(learner, plan_passes(learner, groups, range(len(groups)))):
        packed = learner.pack([groups[g] for g in part])
        where = [starts[g] + i for g in part for i in range(len(groups[g][1]))]
        seen = learner.run(packed, REFERENCE, features=with_features)
        longest = packed.keep_ST.shape[1]
        made.reference[where, :longest] = seen.logprobs_ST.cpu()
        made.values[where, :longest] = learner.values(packed, seen.features_STF).cpu()
        if with_features:
            made.features[where, :longest] = seen.features_STF.float().cpu()
        if policy:
            made.policy[where, :longest] = learner.run(packed, POLICY).logprobs_ST.cpu()
        if idle:
            for tensor in vars(made).values():
                if tensor is not None:
                    tensor[where] = 0
    # each process has filled in its own rows and left 0 elsewhere
    learner.processes.add_up(tensor for tensor in vars(made).values() if tensor is not None)
    return made


def update(learner: Learner, data: Experience, *, seed: int, scales: Sequence[float]) -> dict[str, float]:
    """`ppo.epochs` passes of minibatch steps over the data, each step at its entry of `scales` (shares of the learning rates).

    Returns means over the steps; `sampler_gap` is the mean |difference| between the trainer's log-probabilities and the sampler's: that
    of the first step, or the one that `data` brings. Steps beyond the length of `scales` use its last entry.
    """
    learner.network.train()
    torch.manual_seed(derive_seed(seed, "dropout", *([learner.processes.rank] if learner.processes.rank else [])))
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
    return {**means, "sampler_gap": steps[0]["sampler_gap"], **(data.gap or {}), "optimizer_steps": len(steps)}


def _minibatch(learner: Learner, data: Experience, minibatch: list[int]) -> dict[str, float]:
    samples = data.samples(minibatch)
    total, value_total = float(data.keep[samples].sum()), float(data.taught[samples].sum())
    logged: dict[str, float] = {}
    for part, idle in share_passes(learner, plan_passes(learner, data.groups, minibatch)):
        packed = learner.pack([data.groups[g] for g in part])
        totals = (math.inf, math.inf) if idle else (total, value_total)
        numbers = accumulate(learner, packed, token_batch(learner, data, part, packed), *totals)
        logged = {name: logged.get(name, 0.0) + value for name, value in numbers.items()}
    return learner.processes.add_up_numbers(logged)


def plan_passes(learner: Learner, groups: list[Group], indices: Sequence[int]) -> list[list[int]]:
    """The groups at `indices` in forward passes of at most `ppo.micro_batch` samples, short ones together; enough for all processes."""
    settings, world = learner.cfg.ppo, learner.processes.world
    order = sorted(indices, key=lambda g: (len(groups[g][0]) + sum(map(len, groups[g][1])), g))
    limit = min(settings.micro_batch or settings.minibatch, -(-settings.minibatch // world))
    return ppo.split_groups([len(c) for _, c in groups], limit, order)


def share_passes(learner: Learner, parts: list[list[int]]) -> list[tuple[list[int], bool]]:
    """This process's passes, each with whether it is idle: where weights are spread over processes all must make as many passes, so
    those that have fewer repeat one whose outcome counts for nothing."""
    own = [(part, False) for part in learner.processes.share(parts)]
    wanted = -(-len(parts) // learner.processes.world) if learner.sharded else len(own)
    return own + [(parts[0], True)] * (wanted - len(own))


def _pad(rows: Sequence[Sequence[float]], ends: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows padded with zeros on the right, [S, T], and which entries are real; `ends` leaves room for one place behind each."""
    longest = max(map(len, rows)) + ends
    padded = torch.tensor([[*row, *[0.0] * (longest - len(row))] for row in rows])
    keep = torch.arange(longest)[None, :] < torch.tensor([len(row) for row in rows])[:, None]
    return padded, keep


def token_batch(learner: Learner, data: Experience, part: list[int], packed: Packed) -> dict[str, torch.Tensor | None]:
    """The data's per-token tensors for these groups, cut to the packed length, on the learner's device."""
    where, longest = data.samples(part), packed.keep_ST.shape[1]
    tensors = {name: getattr(data, name) for name in PER_TOKEN}
    return {name: None if x is None else x[where, :longest].to(learner.device) for name, x in tensors.items()}
