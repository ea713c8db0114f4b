"""One update: scored turns become training data (reference, values, token rewards, credit), then steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlpa_lib.dialogue.judging import JudgeFailed
from rlpa_lib.rlpa import ppo
from rlpa_lib.rlpa.learner import Learner, sample_indices
from rlpa_lib.rlpa.networks import CRITIC, POLICY, REFERENCE
from rlpa_lib.rlpa.packing import Group, Packed, pad_rows
from rlpa_lib.rlpa.rollout import Sample, TurnGroup
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import InputError


@dataclass(frozen=True, kw_only=True)
class Experience:
    """What an update learns from: groups of token ids, and the rest per sample and place [S, T] or [S, T, F].

    Places are a sample's tokens, marked by `keep`; with `ppo.turn_discount` > 0 one place follows them, the
    state after the turn. `taught` marks the values that have a target. `weights` and `gap` are there only
    where the sampler is not the trainer itself: importance weights, and how far apart the log-probabilities
    of the two were.
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
    shares: dict[str, float] | None = None

    def cut(self, samples: list[int], longest: int, device: torch.device) -> Experience:
        """The tensors of these samples, up to the longest completion among them, on a device."""
        tensors = {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **{name: x[samples, :longest].to(device) for name, x in tensors.items()})


def gather_experience(
    learner: Learner, turn_groups: Sequence[TurnGroup], kl_coef: float | None = None, elsewhere: bool = False
) -> Experience:
    """Run reference and critic once over all samples that have a reward and give credit (appendix B).

    The sampler's log-probabilities are the old ones, unless it samples `elsewhere` (a server, or in process
    in another precision than training's): then the trainer computes them anew, as the release always does.
    `kl_coef` defaults to the settings'. JudgeFailed: no sample has a reward. InputError: a sample has no
    token ids.
    """
    settings, last_turn = learner.cfg.ppo, learner.cfg.rollout.turns
    rewarded = [(g, i, s) for g in turn_groups for i, s in enumerate(g.samples) if s.reward is not None]
    samples = [s for _, _, s in rewarded]
    _check([s for g in turn_groups for s in g.samples], samples)
    ends = (0,) if settings.turn_discount > 0 else ()  # a dummy for the state after a turn, never learnt
    of_groups = [
        (g.prompt_ids, tuple((*s.completion.token_ids, *ends) for s in g.samples if s.reward is not None))
        for g in turn_groups
    ]
    groups = [(prompt, completions) for prompt, completions in of_groups if completions]
    sampled = pad_rows([(*s.completion.logprobs, *ends) for s in samples])
    keep = pad_rows([(*[1] * len(s.completion.logprobs), *ends) for s in samples]).bool()
    seen = learner.within_memory(lambda: _run_frozen(learner, groups, keep.shape, policy=elsewhere))
    old = seen["policy"] * keep if elsewhere else sampled
    kl = ppo.kl_estimate(old, seen["reference"], settings.kl_estimator)
    totals_S = torch.tensor([s.reward.total for s in samples])
    rewards = ppo.token_rewards(totals_S, kl, keep, settings.kl_coef if kl_coef is None else kl_coef)
    places = [ppo.Place(g.dialogue_id, g.turn, i == g.chosen, g.turn >= last_turn) for g, i, _ in rewarded]
    values = seen["values"]
    if settings.baseline == "samples":
        values = ppo.baseline_values(rewards, keep, places, settings.turn_discount, settings.gamma)
    advantages, returns, taught = ppo.assign_credit(rewards, values, keep, places, settings)
    shares = ppo.explain_advantages(advantages, keep, places, totals_S)
    if settings.advantage_norm != "none":
        blocks = torch.tensor([p.turn if settings.advantage_norm == "rollout" else 0 for p in places])
        advantages = ppo.normalise_advantages(advantages, keep, blocks)
    cap = settings.importance_cap if elsewhere else None
    return Experience(
        groups=groups, keep=keep, taught=taught, old_logprobs=old, reference=seen["reference"],
        values=values, advantages=advantages, returns=returns, features=seen.get("features"),
        weights=ppo.truncated_importance(old, sampled, cap) if cap else None,
        gap=ppo.sampler_gap(old, sampled, keep) if elsewhere else None, shares=shares,
    )


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


@torch.no_grad()
def _run_frozen(learner: Learner, groups: list[Group], shape: torch.Size, policy: bool) -> dict[str, Tensor]:
    """What the networks say about every sample before the update, [S, T] on the CPU: log-probabilities of
    `reference` and if asked `policy`, `values`, and for the critic's head `features` [S, T, F]."""
    learner.network.eval()
    with_features = learner.cfg.ppo.critic == "head"
    seen = {name: torch.zeros(shape) for name in ("reference", "values", *(["policy"] if policy else []))}
    if with_features:
        seen["features"] = torch.zeros(*shape, learner.network.head.width)
    for samples, packed, idle in learner.passes(groups, range(len(groups)), trained=False):
        run = learner.network(packed, REFERENCE, features=with_features)
        found = {"reference": run.logprobs_ST}
        if learner.cfg.ppo.baseline == "critic":
            found["values"] = learner.network(packed, CRITIC, run.features_STF)
        if with_features:
            found["features"] = run.features_STF.float()
        if policy:
            found["policy"] = learner.network(packed, POLICY).logprobs_ST
        for name, tensor in found.items() if not idle else ():
            seen[name][samples, : tensor.shape[1]] = tensor.cpu()
    learner.processes.add_up(seen.values())  # each process has filled in its own rows and left 0 elsewhere
    return seen


def update(learner: Learner, data: Experience, *, seed: int, scales: Sequence[float]) -> dict[str, float]:
    """`ppo.epochs` passes of minibatch steps, each at its entry of `scales` (shares of the learning rates).

    Returns measures of the data, then means over the steps; `sampler_gap`, the mean |difference| of the
    trainer's and the sampler's log-probabilities, is the first step's or what `data` brings. The last scale
    holds for steps beyond the list.
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
    return {**_measure(data), **means, **gap, **learner.budget.facts(), "optimizer_steps": len(steps)}


def accumulate_minibatch(learner: Learner, data: Experience, minibatch: list[int]) -> dict[str, float]:
    """Add the gradients of these groups, in as many passes as their samples and tokens need; numbers for the
    log. Where the device's memory runs out all is done again in smaller passes (`Budget.retry`)."""
    samples = sample_indices(data.groups, minibatch)
    totals = float(data.keep[samples].sum()), float(data.taught[samples].sum())

    def run() -> dict[str, float]:
        logged: dict[str, float] = {}
        for in_pass, packed, idle in learner.passes(data.groups, minibatch):
            part = data.cut(in_pass, packed.keep_ST.shape[1], learner.device)
            numbers = _accumulate(learner, packed, part, *((math.inf, math.inf) if idle else totals))
            logged = {name: logged.get(name, 0.0) + value for name, value in numbers.items()}
        return logged

    return learner.processes.add_up_numbers(learner.within_memory(run))


def _accumulate(
    learner: Learner, packed: Packed, part: Experience, n_tokens: float, n_values: float
) -> dict[str, float]:
    """Add one pass's gradients of both losses, means over `n_tokens` and `n_values`; its part of the log."""
    settings, keep, old = learner.cfg.ppo, part.keep, part.old_logprobs
    now = learner.network(packed, POLICY)
    loss, clipped = ppo.policy_loss(
        now.logprobs_ST, old, part.advantages, keep, settings.clip, n_tokens, part.weights
    )
    learner.network.backward(loss, POLICY)
    losses = {"policy_loss": float(loss.detach())}
    if settings.baseline == "critic":
        values = learner.network(packed, CRITIC, part.features)
        error = ppo.value_loss(values, part.values, part.returns, part.taught, settings.value_clip, n_values)
        learner.network.backward(error, CRITIC)
        losses["value_loss"] = float(error.detach())
    with torch.no_grad():
        means = {
            "entropy": now.entropy_ST,
            "kl_old": ppo.kl_estimate(old, now.logprobs_ST, "k3"),
            "sampler_gap": (now.logprobs_ST - old).abs(),
        }
        logged = {name: float(ppo.masked_mean(x, keep, n_tokens)) for name, x in means.items()}
    return {**losses, "clip_fraction": float(clipped), **logged}


def _measure(data: Experience) -> dict[str, float]:
    """KL to the reference (k1 and k3 in nats a token, k1 in nats a reply), return, explained variance."""
    apart, k3 = (ppo.kl_estimate(data.old_logprobs, data.reference, name) for name in ("k1", "k3"))
    return {
        "kl": float(ppo.masked_mean(apart, data.keep)),
        "kl_reply": float((apart * data.keep).sum() / len(data.keep)),
        "kl_k3": float(ppo.masked_mean(k3, data.keep)),
        "return": float(ppo.masked_mean(data.returns, data.keep)),
        **(data.shares or {}),
        "explained_variance": ppo.explained_variance(data.values, data.returns, data.keep),
    }
