"""The learner: the networks of a run, their optimisers, one optimiser step, and their state on disk.

On disk there are no pickles: weights and optimiser moments are safetensors, the rest is JSON.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rlpa_lib.agents.architecture import compare_with_model
from rlpa_lib.rlpa.networks import CRITIC, POLICY, REFERENCE, ROLES, Backbone
from rlpa_lib.rlpa.packing import Group, Packed, pack_groups
from rlpa_lib.rlpa.passes import Budget, Bundle, split_bundles
from rlpa_lib.rlpa.processes import Processes
from rlpa_lib.runs import storage
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import Config, InputError

Made = TypeVar("Made")
STATE, PROGRESS = "state.safetensors", "progress.json"


class Learner:
    """Policy, reference and critic (`Backbone`) with one AdamW for the policy and one for the critic.

    Under `accelerate launch` each process computes its share of every gradient, and all take the same step
    with the sum. Each holds all weights or, with an FSDP configuration, a part of every layer's (torch's
    fully_shard).
    """

    def __init__(self, model, cfg: Config, *, seed: int, processes: Processes | None = None):
        self.cfg, self.processes = cfg, processes or Processes()
        torch.manual_seed(derive_seed(seed, "adapters"))
        self.network = Backbone(model, cfg)
        self.model = self.network.model  # the policy as transformers or PEFT know it, to sample and save
        self.device, self.dtype = self.processes.device, self.network.dtype
        self.network.to(self.device)
        if self.processes.sharded:
            _shard(self.network)
        self.budget = Budget(cfg, self.processes, self.device)
        self.rates = {POLICY: cfg.ppo.lr, CRITIC: cfg.ppo.critic_lr}
        betas = tuple(cfg.ppo.adam_betas)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            role: torch.optim.AdamW(self.parameters(role).values(), lr=rate, betas=betas, weight_decay=0.0)
            for role, rate in self.rates.items()
        }

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """Name -> trainable weights of the policy or of the critic."""
        return self.network.parameters_of(role)

    def passes(
        self, groups: list[Group], indices: Sequence[int], trained: bool = True
    ) -> Iterator[tuple[list[int], Packed, bool]]:
        """This process's forward passes over the groups at `indices`: which samples, packed, whether idle.

        A pass has at most `ppo.micro_batch` samples and `ppo.pass_tokens` tokens. In trees those that begin
        alike go together, as rows those of like length. Passes that are not `trained` on keep no activations:
        in a tree all samples of an update's turns of a dialogue go together. Where weights are sharded all
        processes must make equally many: those that have fewer repeat one whose outcome counts for nothing.
        """
        settings, processes = self.cfg.ppo, self.processes
        limit = min(settings.micro_batch or settings.minibatch, -(-settings.minibatch // processes.world))
        if settings.packing == "tree":
            order = sorted(indices, key=lambda g: (groups[g][0], g))
            limit = limit if trained else max(limit, self._count_dialogue_samples())
        else:
            order = sorted(indices, key=lambda g: (len(groups[g][0]) + sum(map(len, groups[g][1])), g))
        bundles = [Bundle(tuple(sample_indices(groups, [g])), groups[g]) for g in order]
        tokens = self.budget.agree(self.model.config, self._bytes_to_come())
        parts = split_bundles(bundles, limit, tokens, settings.packing)
        own = [(part, False) for part in processes.share(parts)]
        wanted = -(-len(parts) // processes.world) if processes.sharded else len(own)
        for part, idle in own + [(parts[0], True)] * (wanted - len(own)):
            for piece in self.budget.split_further(part):
                samples = [sample for bundle in piece for sample in bundle.samples]
                yield samples, self.pack([bundle.group for bundle in piece]), idle

    def _count_dialogue_samples(self) -> int:
        """Samples of one dialogue that an update learns from."""
        rollout = self.cfg.rollout
        return rollout.samples * (rollout.turns if self.cfg.ppo.update_every == "dialogue" else 1)

    def check_passes(self) -> None:
        """InputError: training's passes give a few tokens other log-probabilities than the model's own
        forward pass. Not checked where weights are spread: such a pass is for all processes together."""
        if self.processes.sharded:
            return
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        prompt, *said = (tuple(k * i % vocabulary for i in range(1, 9)) for k in (7, 11, 13))
        self.network.eval()
        with torch.no_grad():
            found = self.network(self.pack([(prompt, tuple(said))]), REFERENCE).logprobs_ST.tolist()
        with self.network.activate(REFERENCE) as plain:
            for ids, logprobs in zip(said, found, strict=True):
                compare_with_model(plain, prompt, ids, logprobs, self.network.temperature, "trained")

    def within_memory(self, work: Callable[[], Made]) -> Made:
        """`work`, which runs over `passes`, as `Budget.retry` says; gradients it leaves half-made are
        forgotten."""
        return self.budget.retry(work, self._forget_gradients)

    def _forget_gradients(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def _bytes_to_come(self) -> int:
        """Of gradients, and of moments that are not there yet, on this device."""
        whole = sum(
            p.numel() * (4 + 8 * (p not in optimizer.state))
            for role, optimizer in self.optimizers.items()
            for p in self.parameters(role).values()
        )
        return whole // (self.processes.world if self.processes.sharded else 1)

    def pack(self, groups: list[Group]) -> Packed:
        """The groups as `ppo.packing` says, on the learner's device."""
        return pack_groups(groups, self.cfg.ppo.packing, self.dtype, self.device)

    def step(self, scale: float) -> dict[str, float]:
        """Clip each role's gradient to `ppo.grad_norm`, step at `scale` times the rates; return the norms."""
        roles = ROLES if self.cfg.ppo.baseline == "critic" else (POLICY,)
        if not self.processes.sharded and self.processes.world > 1:  # FSDP adds up in the backward pass
            weights = [p for role in roles for p in self.parameters(role).values()]
            for weight in weights:
                if weight.grad is None:  # this process had no part in the minibatch
                    weight.grad = torch.zeros_like(weight)
            self.processes.add_up(weight.grad for weight in weights)
        norms = {}
        for role in roles:
            optimizer = self.optimizers[role]
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
        parts = [m for m in self.network.modules() if self.processes.sharded and isinstance(m, FSDPModule)]
        for module in parts:
            module.set_reshard_after_forward(False, recurse=False)
            module.unshard()
        try:
            yield
        finally:
            for module in parts:
                module.reshard()
                module.set_reshard_after_forward(module is not self.network, recurse=False)

    def save_policy(self, folder: Path, tokenizer=None, dtype: torch.dtype | None = None) -> Path:
        """Write the adapter in PEFT format, or after full tuning the model with its tokenizer for
        `policy.model` (in `dtype`, by default as trained), replacing `folder` in one step."""
        full, named = self.network.full, self.model.named_parameters()
        weights = {name: gather_tensor(p) for name, p in named if full or f".{POLICY}." in name}
        if full and dtype:
            weights = {name: weight.to(dtype) for name, weight in weights.items()}
        if self.processes.main:
            # the backbone's embeddings are never trained; "auto" would ask the hub about them
            alone = {} if full else {"selected_adapters": [POLICY], "save_embedding_layers": False}
            with _replace(folder, inside="" if full else POLICY) as staged:
                self.model.save_pretrained(staged, state_dict=weights, **alone)
                if full:
                    tokenizer.save_pretrained(staged)
        return folder

    def save(self, folder: Path, progress: Any) -> None:
        """Write weights, optimiser state and `progress` (plain data), replacing `folder` in one step."""
        tensors = {}
        for role in ROLES:
            for name, parameter in self.parameters(role).items():
                kept = {"weight": parameter, **self.optimizers[role].state[parameter]}
                tensors |= {f"{role}|{name}|{kind}": gather_tensor(tensor) for kind, tensor in kept.items()}
        if self.processes.main:
            with _replace(folder) as staged:
                save_file(tensors, staged / STATE)
                storage.write_json(staged / PROGRESS, progress)

    def load(self, folder: Path) -> dict[str, Any] | None:
        """Take back a saved state and return its `progress`; None where there is none.

        Only the main process reads; the others need not see the folder. InputError: another model's state.
        """
        tensors: dict[str, Tensor] = {}

        def read() -> tuple[dict[str, Any], dict[str, tuple]] | None:
            previous = folder.with_name(f".{folder.name}.old")
            if not folder.exists() and previous.exists():
                previous.rename(folder)  # a crash came between the two renames of a swap
            if not folder.exists():
                return None
            tensors.update(load_file(folder / STATE))
            self._check(tensors, folder / STATE)
            progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
            return progress, {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

        found = self.processes.on_main(read)
        if found is None:
            return None
        progress, shapes = found
        for optimizer in self.optimizers.values():
            optimizer.state.clear()
        for name, (shape, dtype) in shapes.items():
            own = tensors[name] if self.processes.main else torch.empty(shape, dtype=dtype)
            self._put(*name.split("|"), self.processes.from_main(own))
        return progress

    def _check(self, tensors: dict[str, Tensor], file: Path) -> None:
        """InputError when the file's weights are not this model's."""
        own = {f"{role}|{n}|weight": p.shape for role in ROLES for n, p in self.parameters(role).items()}
        saved = {name: tensor.shape for name, tensor in tensors.items() if name.endswith("|weight")}
        for name in sorted(own.keys() | saved.keys()):
            if own.get(name) != saved.get(name):
                raise InputError(f"{file}: {name} is missing or has another shape than this model's")
        for name in tensors:
            if f"{name.rpartition('|')[0]}|weight" not in own:
                raise InputError(f"{file}: holds {name}, which this model does not have")

    def _put(self, role: str, name: str, kind: str, value: Tensor) -> None:
        """Set one weight, or one entry of its optimiser state, on this process."""
        parameter = self.parameters(role)[name]
        if value.ndim and isinstance(parameter, DTensor):
            value = distribute_tensor(value.to(self.device), parameter.device_mesh, parameter.placements)
        if kind == "weight":
            with torch.no_grad():
                parameter.copy_(value)
        else:  # AdamW keeps its step counters on the CPU
            value = value if kind == "step" else value.to(parameter.device)
            self.optimizers[role].state[parameter][kind] = value


def sample_indices(groups: Sequence[Group], indices: Sequence[int]) -> list[int]:
    """Indices of these groups' samples, in the order in which `pack_groups` puts them."""
    starts = [0, *itertools.accumulate(len(completions) for _, completions in groups)]
    return [sample for g in indices for sample in range(starts[g], starts[g + 1])]


def gather_tensor(tensor: Tensor) -> Tensor:
    """The full value on the CPU, also where processes hold parts of it (then all must ask)."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().contiguous()


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


@contextmanager
def _replace(folder: Path, inside: str = "") -> Iterator[Path]:
    """A new folder to write into, which then (or what is `inside` it) takes the place of `folder`; at every
    moment the old or the new one is there whole."""
    staged, previous = (folder.with_name(f".{folder.name}.{kind}") for kind in ("new", "old"))
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    yield staged
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.rename(previous)
    (staged / inside).rename(folder)
    for left in (staged, previous):
        shutil.rmtree(left, ignore_errors=True)
