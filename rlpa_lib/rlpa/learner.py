"""The learner: the networks of a run, their optimisers, and one optimiser step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from rlpa_lib.rlpa import ppo
from rlpa_lib.rlpa.networks import CRITIC, HEAD, POLICY, Backbone, Pass
from rlpa_lib.rlpa.packing import Group, Packed, pack
from rlpa_lib.rlpa.processes import Processes
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import Config, InputError

ROLES = (POLICY, CRITIC)
FSDP, ZERO3 = "FSDP", "DEEPSPEED"  # as accelerate calls them
REPLICATED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


class Learner:
    """Policy, reference and critic (`Backbone`) with one AdamW for the policy and one for the critic.

    Under `accelerate launch` each process computes its share of every gradient, and the shares are added up before the step, so that all
    take the same one. Each holds all weights, or a part of every layer's: with an FSDP configuration by torch's fully_shard, with a
    DeepSpeed one by ZeRO-3.
    """

    def __init__(self, model, cfg: Config, *, seed: int, accelerator: Accelerator | None = None):
        self.cfg, self.seed = cfg, seed
        self.accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
        self.processes = Processes(self.accelerator)
        torch.manual_seed(derive_seed(seed, "adapters"))
        self.network = Backbone(model, cfg)
        self.device, self.dtype = self.accelerator.device, model.dtype
        self.network.to(self.device)
        spread = _asked_for(self.accelerator) if self.processes.world > 1 else None
        self.sharded = spread is not None
        weights, self.rates = {role: self.parameters(role) for role in ROLES}, {POLICY: cfg.ppo.lr, CRITIC: cfg.ppo.critic_lr}
        betas = {"betas": tuple(cfg.ppo.adam_betas), "weight_decay": 0.0}
        self.zero3 = _zero3(self.network, weights, self.rates, self.processes.world, **betas) if spread == ZERO3 else None
        if spread == FSDP:
            _shard(self.network)
        adamw = {} if self.zero3 else {role: torch.optim.AdamW(self.parameters(role).values(), lr=self.rates[role], **betas) for role in ROLES}
        self.optimizers: dict[str, torch.optim.Optimizer] = adamw

    @property
    def model(self):
        """The policy as a model of transformers or PEFT, for sampling and saving."""
        return self.network.model

    @property
    def head(self) -> nn.Module:
        """The critic's value head."""
        return self.network.head

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """Name -> trainable weights of the policy or of the critic."""
        return self.network.parameters_of(role)

    def pack(self, groups: list[Group]) -> Packed:
        """The groups as `ppo.packing` says, on the learner's device."""
        return pack(groups, self.cfg.ppo.packing, self.dtype, self.device)

    def run(self, packed: Packed, role: str, features: bool = False) -> Pass:
        """Log-probabilities (at the sampling temperature) and entropies under "policy" or "reference", see `Backbone.forward`."""
        return Pass(*self._networks(packed, role, features))

    def values(self, packed: Packed, features_STF: torch.Tensor | None) -> torch.Tensor:
        """Values [S, T] of the states before each completion token, from given features or from the critic's own adapter."""
        return self._networks(packed, CRITIC if self.network.own_critic else HEAD, features_STF)

    @property
    def _networks(self) -> nn.Module:
        return self.zero3.engine if self.zero3 else self.network

    def backward(self, loss: torch.Tensor) -> None:
        """Add this process's share to the gradients."""
        if self.zero3:
            self.zero3.backward(loss)
        else:
            loss.backward()  # accelerate's own would ask for an engine under a DeepSpeed configuration of one process

    def step(self, scale: float) -> dict[str, float]:
        """Clip both gradients to `ppo.grad_norm`, take one step at `scale` times the learning rates; return the norms."""
        if self.zero3:
            norms = {f"grad_norm_{role}": self.zero3.clip(list(self.parameters(role).values()), self.cfg.ppo.grad_norm) for role in ROLES}
            self.zero3.step([rate * scale for rate in self.rates.values()])
            return norms
        self._add_up_gradients()
        norms = {}
        for role, optimizer in self.optimizers.items():
            norm = nn.utils.clip_grad_norm_(list(self.parameters(role).values()), self.cfg.ppo.grad_norm)
            norms[f"grad_norm_{role}"] = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
            for group in optimizer.param_groups:
                group["lr"] = self.rates[role] * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norms

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within the context every process holds all weights, as a sampler in process needs them."""
        if self.zero3:
            with self.zero3.whole(self.network):
                yield
            return
        parts = [module for module in self.network.modules() if isinstance(module, FSDPModule)] if self.sharded else []
        for module in parts:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in parts:
                module.reshard()
                module.set_reshard_after_forward(module is not self.network, recurse=False)

    def _add_up_gradients(self) -> None:
        if self.processes.world == 1 or self.sharded:  # FSDP adds up in the backward pass
            return
        weights = [p for role in self.optimizers for p in self.parameters(role).values()]
        for weight in weights:
            if weight.grad is None:  # this process had no part in the minibatch
                weight.grad = torch.zeros_like(weight)
        self.processes.add_up(weight.grad for weight in weights)


def _asked_for(accelerator: Accelerator) -> str | None:
    """How the launch configuration spreads weights over processes, if it does. InputError: in a way that this code has no path for."""
    kind = accelerator.distributed_type
    if kind not in (*REPLICATED, DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise InputError(f"accelerate: {kind.value} is not supported; the fsdp2 and zero3 configurations spread weights, gradients and moments")
    # between CPUs accelerate leaves its own switches unread
    asked = {FSDP: kind == DistributedType.FSDP, ZERO3: kind == DistributedType.DEEPSPEED}
    found = [name for name, is_kind in asked.items() if is_kind or os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true"]
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    if found == [ZERO3] and stage != "3":
        raise InputError(f"accelerate: DeepSpeed's stage {stage} is not supported, only 3")
    return found[0] if found else None


def _zero3(*given, **options):
    """The engine of `zero3.Zero3`. InputError: DeepSpeed is not installed."""
    try:
        from rlpa_lib.rlpa.zero3 import Zero3
    except ImportError as error:
        raise InputError(f"run.accelerate: ZeRO-3 needs DeepSpeed: pip install -e '.[deepspeed]' ({error})") from error
    return Zero3(*given, **options)


def _shard(network: Backbone) -> None:
    """Spread the weights over the processes: each decoder layer by itself, the rest together. Gradients are sums, not means."""
    names = set(network.model.get_base_model()._no_split_modules if isinstance(network.model, PeftModel) else network.model._no_split_modules)
    layers = [module for module in network.modules() if type(module).__name__ in names]
    for layer in layers:
        fully_shard(layer, reshard_after_forward=True)
    fully_shard(network)
    for module in (*layers, network):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    # torch does this at the first forward pass of the whole; sampling runs the decoder alone before that
    network._get_fsdp_state()._lazy_init()


def accumulate(
    learner: Learner, packed: Packed, batch: dict[str, torch.Tensor | None], total: float, value_total: float | None = None
) -> dict[str, float]:
    """Add one forward pass's gradients of policy loss and value loss; means are over `total` tokens and `value_total` values.

    `batch` holds keep, taught, old_logprobs, advantages, values, returns [S, T], weights [S, T] or None and features [S, T, F] or None.
    Returns numbers for the log that add up over the passes of a minibatch.
    """
    settings, keep, old = learner.cfg.ppo, batch["keep"], batch["old_logprobs"]
    now = learner.run(packed, POLICY)
    loss, clipped = ppo.policy_loss(now.logprobs_ST, old, batch["advantages"], keep, settings.clip, total, batch["weights"])
    learner.backward(loss)
    values = learner.values(packed, batch["features"])
    value_total = total if value_total is None else value_total
    error = ppo.value_loss(values, batch["values"], batch["returns"], batch["taught"], settings.value_clip, value_total)
    learner.backward(error)
    with torch.no_grad():
        means = {
            "entropy": now.entropy_ST,
            "kl_old": ppo.kl_estimate(old, now.logprobs_ST, "k3"),
            "sampler_gap": (now.logprobs_ST - old).abs(),
        }
        logged = {name: float(ppo.masked_mean(x, keep, total)) for name, x in means.items()}
    return {"policy_loss": float(loss.detach()), "value_loss": float(error.detach()), "clip_fraction": float(clipped), **logged}
