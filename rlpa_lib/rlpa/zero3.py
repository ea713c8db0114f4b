"""ZeRO-3 by DeepSpeed: weights, gradients and moments spread over the processes, as the released code trains.

DeepSpeed comes with the extra `deepspeed`. Its engine owns the weights, so whatever touches them goes through here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import deepspeed
import torch
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_get_local_grad,
    safe_set_local_fp32_param,
    safe_set_local_grad,
    safe_set_local_optimizer_state,
)
from torch import nn
from trl.models.utils import add_hooks, remove_hooks

SETTINGS = {
    "train_micro_batch_size_per_gpu": 1,  # DeepSpeed asks; batches are made here, and each process says when it steps
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 0.0,  # `Zero3.clip` does it, role by role
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {"stage": 3, "overlap_comm": False, "stage3_param_persistence_threshold": 0},
}
MOMENTS = ("exp_avg", "exp_avg_sq")


class Zero3:
    """The networks of a run inside a DeepSpeed engine with one AdamW, a group of weights a role. All processes make all calls."""

    def __init__(self, network: nn.Module, weights: Mapping[str, Mapping[str, nn.Parameter]], rates: Mapping[str, float], world: int, **options):
        self.world = world
        deepspeed.init_distributed(torch.distributed.get_backend(), auto_mpi_discovery=False)
        groups = [{"params": list(weights[role].values()), "lr": rate} for role, rate in rates.items()]
        optimizer = torch.optim.AdamW(groups, **options)
        self.engine, self._optimizer, _, _ = deepspeed.initialize(model=network, optimizer=optimizer, config=SETTINGS)
        self._trained = [p for of_role in weights.values() for p in of_role.values()]
        for part in self._optimizer.fp32_partitioned_groups_flat:  # else the first step makes them, and a checkpoint could not be loaded before
            moments = {name: torch.zeros_like(part) for name in MOMENTS}
            self._optimizer.optimizer.state[part] = {"step": torch.tensor(0.0), **moments}

    def backward(self, loss: torch.Tensor) -> None:
        """Add this process's share to the gradients, which are sums over the processes (DeepSpeed takes means)."""
        self.engine.backward(loss * self.world, scale_wrt_gas=False)

    def clip(self, weights: list[nn.Parameter], limit: float) -> float:
        """Scale the gradients of these weights to a norm of at most `limit`; the norm they had. Parts are padded with zeros."""
        parts = [safe_get_local_grad(p) for p in weights]
        squares = torch.stack([part.square().sum() for part in parts]).sum()
        torch.distributed.all_reduce(squares)
        norm = float(squares.sqrt())
        if (scale := limit / (norm + 1e-6)) < 1:  # as torch's clip_grad_norm_
            for p, part in zip(weights, parts, strict=True):
                safe_set_local_grad(p, part * scale)
        return norm

    def step(self, rates: list[float]) -> None:
        """One step at these learning rates, one a role; gradients are zero afterwards."""
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.engine.step()
        for p in self._trained:  # the engine would add to the old ones wherever the first pass does not reach
            safe_set_local_grad(p, torch.zeros_like(p.ds_tensor))

    @contextmanager
    def whole(self, network: nn.Module) -> Iterator[None]:
        """Within the context every process holds all weights and nothing is gathered or let go of."""
        with deepspeed.zero.GatheredParameters(list(network.parameters())):
            remove_hooks(self.engine)
            try:
                yield
            finally:
                add_hooks(self.engine)

    def weight(self, parameter: nn.Parameter) -> torch.Tensor:
        """The whole value of a weight."""
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def moments(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        """The optimiser's whole state of a weight, under AdamW's names."""
        return {name: safe_get_full_optimizer_state(parameter, name).clone() for name in MOMENTS} | {"step": torch.tensor(self._steps())}

    def put(self, parameter: nn.Parameter, kind: str, value: torch.Tensor) -> None:
        """Set a weight ("weight") or one entry of its optimiser state from its whole value."""
        if kind == "step":
            self._set_steps(float(value))
            return
        size = parameter.ds_tensor.numel()
        flat = nn.functional.pad(value.to(parameter.ds_tensor).flatten(), (0, size * self.world - value.numel()))
        part = flat.narrow(0, size * torch.distributed.get_rank(), size)
        if kind == "weight":
            parameter.ds_tensor.data.copy_(part)
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, kind)

    def _steps(self) -> float:
        return float(next(iter(self._optimizer.optimizer.state.values()))["step"])

    def _set_steps(self, steps: float) -> None:
        for state in self._optimizer.optimizer.state.values():
            state["step"] = torch.tensor(steps)
