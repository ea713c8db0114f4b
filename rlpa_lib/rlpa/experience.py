"""From scored turn groups to training data (reference, values, token rewards, credit), then the update."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpa_lib.dialogue.judging import JudgeFailed
from rlpa_lib.rlpa import ppo
from rlpa_lib.rlpa.credit import Place, assign_credit
from rlpa_lib.rlpa.learner import Learner, accumulate
from rlpa_lib.rlpa.networks import POLICY, REFERENCE
from rlpa_lib.rlpa.packing import Group, Packed, pad_rows
from rlpa_lib.rlpa.rollout import Sample, TurnGroup
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import InputError

PER_TOKEN = ("keep", "taught", "old_logprobs", "advantages", "values", "returns", "weights", "features")


@dataclass(frozen=True, kw_only=True)
class Experience:
    """What an update learns from: groups of token ids, and the rest per sample and place [S, T] or [S, T, F].

    Places are a sample's tokens, marked by `keep`; with `ppo.turn_discount` > 0 one place follows them, the
    state after the turn. `taught` marks the values that have a target. `starts` is the index of each group's
    first sample. `weights` and `gap` are there for a sampler of its own only: importance weights, and how far
    its log-probabilities were from the trainer's.
    """

    groups: list[Group]
    keep: Tensor
    taught: Tensor
    old_logprobs: Tensor
    reference: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    features: Tensor | None
    weights: Tensor | None = None
    gap: dict[str, float] | None = None


def gather_experience(
    learner: Learner, turn_groups: Sequence[TurnGroup], *, kl_coef: float | None = None,
    elsewhere: bool = False,
) -> Experience:  # fmt: skip
    """Run reference and critic once over all samples that have a reward and give credit (appendix B).

    The sampler's log-probabilities are the old ones, unless it samples `elsewhere` (a server): then the
    trainer computes them anew. `kl_coef` defaults to the settings'. JudgeFailed: no sample has a reward.
    InputError: a sample has no token ids.
    """
    settings, last_turn = learner.cfg.ppo, learner.cfg.rollout.turns
    rewarded = [(g, i, s) for g in turn_groups for i, s in enumerate(g.samples) if s.reward is not None]
    samples = [s for _, _, s in rewarded]
    _check([s for g in turn_groups for s in g.samples], samples)
    ends = (0,) if settings.turn_discount > 0 else ()  # a dummy for the state after a turn, never learnt
    groups = _token_groups(turn_groups, ends)
    sampled = pad_rows([(*s.completion.logprobs, *ends) for s in samples])
    keep = pad_rows([(*[True] * len(s.completion.logprobs), *ends) for s in samples]).bool()
    seen = _run_frozen(learner, groups, keep.shape, policy=elsewhere)
    old = seen["policy"] * keep if elsewhere else sampled
    kl = ppo.kl_estimate(old, seen["reference"], settings.kl_estimator)
    totals_S = torch.tensor([s.reward.total for s in samples])
    rewards = ppo.token_rewards(totals_S, kl, keep, settings.kl_coef if kl_coef is None else kl_coef)
    places = [Place(g.dialogue_id, g.turn, i == g.chosen, g.turn >= last_turn) for g, i, _ in rewarded]
    given = assign_credit(rewards, seen["values"], keep, places, settings)
    advantages = given.advantages_ST
    if settings.advantage_norm != "none":
        blocks = torch.tensor([p.turn if settings.advantage_norm == "rollout" else 0 for p in places])
        advantages = ppo.normalise_advantages(advantages, keep, blocks)
    cap = settings.importance_cap if elsewhere else None
    return Experience(
        groups=groups, keep=keep, taught=given.taught_ST, old_logprobs=old,
        reference=seen["reference"], values=seen["values"], advantages=advantages, returns=given.returns_ST,
        features=seen.get("features"), weights=ppo.truncated_importance(old, sampled, cap) if cap else None,
        gap=ppo.sampler_gap(old, sampled, keep) if elsewhere else None,
    )  # fmt: skip


def _check(samples: Sequence[Sample], rewarded: Sequence[Sample]) -> None:
    """Refuse what an update can learn nothing from, before any network runs."""
    if not rewarded:
        raise JudgeFailed(
            f"the judge gave no readable answer to any of the {len(samples)} samples of this update, so "
            "there is nothing to learn from; look at judgements/ and at section judge of the settings"
        )
    if not all(s.completion.token_ids and s.completion.logprobs for s in samples):
        raise InputError(
            "policy.kind: a sample has no token ids (a chat endpoint gives none), so it cannot be trained "
            "on; use local or vllm"
        )


def _token_groups(turn_groups: Sequence[TurnGroup], ends: tuple[int, ...]) -> list[Group]:
    """Token ids of the samples with a reward, each with `ends` behind it."""
    of_groups = [
        (g.prompt_ids, tuple((*s.completion.token_ids, *ends) for s in g.samples if s.reward is not None))
        for g in turn_groups
    ]
    return [group for group in of_groups if group[1]]


def sample_indices(groups: Sequence[Group], indices: Sequence[int]) -> list[int]:
    """Indices of these groups' samples, in the order in which `pack_groups` puts them."""
    starts = [0, *itertools.accumulate(len(completions) for _, completions in groups)]
    return [sample for g in indices for sample in range(starts[g], starts[g + 1])]


@torch.no_grad()
def _run_frozen(learner: Learner, groups: list[Group], shape: torch.Size, policy: bool) -> dict[str, Tensor]:
    """What the networks say about every sample before the update, [S, T] on the CPU: log-probabilities of
    `reference` and if asked `policy`, `values`, and for the critic's head `features` [S, T, F]."""
    learner.network.eval()
    with_features = learner.cfg.ppo.critic == "head"
    seen = {name: torch.zeros(shape) for name in ("reference", "values", *(["policy"] if policy else []))}
    if with_features:
        seen["features"] = torch.zeros(*shape, learner.network.head.width)
    for part, idle in plan_passes(learner, groups, range(len(groups))):
        packed = learner.pack([groups[g] for g in part])
        run = learner.run(packed, REFERENCE, features=with_features)
        found = {"reference": run.logprobs_ST, "values": learner.values(packed, run.features_STF)}
        if with_features:
            found["features"] = run.features_STF.float()
        if policy:
            found["policy"] = learner.run(packed, POLICY).logprobs_ST
        where, longest = sample_indices(groups, part), packed.keep_ST.shape[1]
        for name, tensor in found.items() if not idle else ():
            seen[name][where, :longest] = tensor.cpu()
    learner.processes.add_up(seen.values())  # each process has filled in its own rows and left 0 elsewhere
    return seen


def data_metrics(data: Experience) -> dict[str, float]:
    """KL to the reference (k1 and k3 in nats a token, k1 in nats a reply), return, explained variance."""
    apart, k3 = (ppo.kl_estimate(data.old_logprobs, data.reference, name) for name in ("k1", "k3"))
    return {
        "kl": float(ppo.masked_mean(apart, data.keep)),
        "kl_reply": float((apart * data.keep).sum() / len(data.keep)),
        "kl_k3": float(ppo.masked_mean(k3, data.keep)),
        "return": float(ppo.masked_mean(data.returns, data.keep)),
        "explained_variance": ppo.explained_variance(data.values, data.returns, data.keep),
    }


def update(learner: Learner, data: Experience, *, seed: int, scales: Sequence[float]) -> dict[str, float]:
    """`ppo.epochs` passes of minibatch steps, each at its entry of `scales` (shares of the learning rates).

    Returns means over the steps; `sampler_gap`, the mean |difference| of the trainer's and the sampler's
    log-probabilities, is the first step's or what `data` brings. The last scale holds for steps beyond the
    list.
    """
    learner.network.train()
    rank = learner.processes.rank
    torch.manual_seed(derive_seed(seed, "dropout", *([rank] if rank else [])))
    order = torch.Generator().manual_seed(derive_seed(seed, "order"))
    sizes = [len(completions) for _, completions in data.groups]
    steps: list[dict[str, float]] = []
    for _ in range(learner.cfg.ppo.epochs):
        shuffled = torch.randperm(len(sizes), generator=order).tolist()
        for minibatch in ppo.split_groups(sizes, learner.cfg.ppo.minibatch, shuffled):
            logged = accumulate_minibatch(learner, data, minibatch)
            scale = scales[min(len(steps), len(scales) - 1)]
            steps.append({**logged, **learner.step(scale), "lr_scale": scale})
    means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
    gap = data.gap or {"sampler_gap": steps[0]["sampler_gap"]}
    return {**means, **gap, "optimizer_steps": len(steps)}


def accumulate_minibatch(learner: Learner, data: Experience, minibatch: list[int]) -> dict[str, float]:
    """Add the gradients of these groups, in as many passes as micro-batches ask for; numbers for the log."""
    samples = sample_indices(data.groups, minibatch)
    totals = float(data.keep[samples].sum()), float(data.taught[samples].sum())
    logged: dict[str, float] = {}
    for part, idle in plan_passes(learner, data.groups, minibatch):
        packed = learner.pack([data.groups[g] for g in part])
        batch = token_batch(learner, data, part, packed)
        numbers = accumulate(learner, packed, batch, *((math.inf, math.inf) if idle else totals))
        logged = {name: logged.get(name, 0.0) + value for name, value in numbers.items()}
    return learner.processes.add_up_numbers(logged)


def plan_passes(
    learner: Learner, groups: list[Group], indices: Sequence[int]
) -> list[tuple[list[int], bool]]:
    """This process's forward passes over the groups at `indices`, and whether each is idle.

    A pass has at most `ppo.micro_batch` samples, short ones together. Where weights are sharded all processes
    must make equally many passes, so those that have fewer repeat one whose outcome counts for nothing.
    """
    settings, processes = learner.cfg.ppo, learner.processes
    order = sorted(indices, key=lambda g: (len(groups[g][0]) + sum(map(len, groups[g][1])), g))
    limit = min(settings.micro_batch or settings.minibatch, -(-settings.minibatch // processes.world))
    parts = ppo.split_groups([len(completions) for _, completions in groups], limit, order)
    own = [(part, False) for part in processes.share(parts)]
    wanted = -(-len(parts) // processes.world) if learner.sharded else len(own)
    return own + [(parts[0], True)] * (wanted - len(own))


def token_batch(
    learner: Learner, data: Experience, part: list[int], packed: Packed
) -> dict[str, Tensor | None]:
    """The data's per-token tensors for these groups, cut to the packed length, on the learner's device."""
    where, longest = sample_indices(data.groups, part), packed.keep_ST.shape[1]
    tensors = {name: getattr(data, name) for name in PER_TOKEN}
    return {name: None if x is None else x[where, :longest].to(learner.device) for name, x in tensors.items()}
