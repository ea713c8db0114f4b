"""The learner: the networks of a run, their optimisers, and one optimiser step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from rlpa_lib.rlpa import ppo
from rlpa_lib.rlpa.networks import CRITIC, HEAD, POLICY, ROLES, Backbone, Pass
from rlpa_lib.rlpa.packing import Group, Packed, pack_groups
from rlpa_lib.rlpa.processes import Processes
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import Config, InputError

REPLICATED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)


class Learner:
    """Policy, reference and critic (`Backbone`) with one AdamW for the policy and one for the critic.

    Under `accelerate launch` each process computes its share of every gradient, and all take the same step
    with the sum. Each holds all weights or, with an FSDP configuration, a part of every layer's (torch's
    fully_shard).
    """

    def __init__(self, model, cfg: Config, *, seed: int, accelerator: Accelerator | None = None):
        self.cfg = cfg
        accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
        self.processes = Processes(accelerator)
        torch.manual_seed(derive_seed(seed, "adapters"))
        self.network = Backbone(model, cfg)
        self.model = self.network.model  # the policy as transformers or PEFT know it, to sample and save
        self.device, self.dtype = accelerator.device, model.dtype
        self.network.to(self.device)
        self.sharded = self.processes.world > 1 and _asks_for_shards(accelerator)
        if self.sharded:
            _shard(self.network)
        self.rates = {POLICY: cfg.ppo.lr, CRITIC: cfg.ppo.critic_lr}
        betas = tuple(cfg.ppo.adam_betas)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            role: torch.optim.AdamW(self.parameters(role).values(), lr=rate, betas=betas, weight_decay=0.0)
            for role, rate in self.rates.items()
        }

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """Name -> trainable weights of the policy or of the critic."""
        return self.network.parameters_of(role)

    def pack(self, groups: list[Group]) -> Packed:
        """The groups as `ppo.packing` says, on the learner's device."""
        return pack_groups(groups, self.cfg.ppo.packing, self.dtype, self.device)

    def run(self, packed: Packed, role: str, features: bool = False) -> Pass:
        """Log-probabilities and entropies of policy or reference, see `Backbone.forward`."""
        return Pass(*self.network(packed, role, features))

    def values(self, packed: Packed, features_STF: Tensor | None) -> Tensor:
        """Values [S, T] of the states before completion tokens, from features or by the critic's adapter."""
        return self.network(packed, CRITIC if self.network.own_critic else HEAD, features_STF)

    def step(self, scale: float) -> dict[str, float]:
        """Clip each role's gradient to `ppo.grad_norm`, step at `scale` times the rates; return the norms."""
        if not self.sharded and self.processes.world > 1:  # FSDP adds up in the backward pass
            weights = [p for role in ROLES for p in self.parameters(role).values()]
            for weight in weights:
                if weight.grad is None:  # this process had no part in the minibatch
                    weight.grad = torch.zeros_like(weight)
            self.processes.add_up(weight.grad for weight in weights)
        norms = {}
        for role, optimizer in self.optimizers.items():
            norm = nn.utils.clip_grad_norm_(list(self.parameters(role).values()), self.cfg.ppo.grad_norm)
            norms[f"grad_norm_{role}"] = float(gather_tensor(norm))
            for group in optimizer.param_groups:
                group["lr"] = self.rates[role] * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norms

    @contextmanager
    def gather_weights(self) -> Iterator[None]:
        """Within the context every process holds all weights, as a sampler in process needs them."""
        parts = [m for m in self.network.modules() if isinstance(m, FSDPModule)] if self.sharded else []
        for module in parts:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in parts:
                module.reshard()
                module.set_reshard_after_forward(module is not self.network, recurse=False)


def gather_tensor(tensor: Tensor) -> Tensor:
    """The full value on the CPU, also where processes hold parts of it (then all must ask)."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().contiguous()


def _asks_for_shards(accelerator: Accelerator) -> bool:
    """Whether the launch configuration spreads weights (FSDP). InputError: it asks for another way."""
    kind = accelerator.distributed_type
    # between CPUs accelerate leaves its own switches unread
    switches = {name: os.environ.get(f"ACCELERATE_USE_{name}", "false") for name in ("FSDP", "DEEPSPEED")}
    asked = {name for name, value in switches.items() if value.lower() == "true"}
    asked |= set() if kind in REPLICATED else {kind.value}
    if asked - {"FSDP"}:
        names = ", ".join(sorted(asked))
        raise InputError(f"accelerate: {names} is not supported; the fsdp2 configurations spread the weights")
    return bool(asked)


def _shard(network: Backbone) -> None:
    """Spread the weights over processes, each decoder layer by itself, then the rest; gradients are sums."""
    model = network.model.get_base_model() if isinstance(network.model, PeftModel) else network.model
    layers = [module for module in network.modules() if type(module).__name__ in set(model._no_split_modules)]
    for layer in layers:
        fully_shard(layer, reshard_after_forward=True)
    fully_shard(network)
    for module in (*layers, network):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    # torch does this at the first forward pass of the whole; sampling runs the decoder alone before that
    network._get_fsdp_state()._lazy_init()


def accumulate(
    learner: Learner, packed: Packed, batch: dict[str, Tensor | None], total: float, value_total: float
) -> dict[str, float]:
    """Add one pass's gradients of policy and value loss, means over `total` tokens and `value_total` values.

    `batch` holds keep, taught, old_logprobs, advantages, values, returns [S, T], weights [S, T] or None and
    features [S, T, F] or None. Returns numbers for the log that add up over the passes of a minibatch.
    """
    settings, keep, old = learner.cfg.ppo, batch["keep"], batch["old_logprobs"]
    now = learner.run(packed, POLICY)
    loss, clipped = ppo.policy_loss(
        now.logprobs_ST, old, batch["advantages"], keep, settings.clip, total, batch["weights"]
    )
    loss.backward()
    values = learner.values(packed, batch["features"])
    error = ppo.value_loss(
        values, batch["values"], batch["returns"], batch["taught"], settings.value_clip, value_total
    )
    error.backward()
    with torch.no_grad():
        means = {
            "entropy": now.entropy_ST,
            "kl_old": ppo.kl_estimate(old, now.logprobs_ST, "k3"),
            "sampler_gap": (now.logprobs_ST - old).abs(),
        }
        logged = {name: float(ppo.masked_mean(x, keep, total)) for name, x in means.items()}
    losses = {"policy_loss": float(loss.detach()), "value_loss": float(error.detach())}
    return {**losses, "clip_fraction": float(clipped), **logged}
