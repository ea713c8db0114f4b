"""Training state on disk, without pickles: adapters and optimiser moments as safetensors, the rest as JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from rlpa_lib.rlpa.learner import ROLES, Learner
from rlpa_lib.rlpa.networks import POLICY
from rlpa_lib.runs import storage
from rlpa_lib.settings.config import InputError

STATE, PROGRESS = "state.safetensors", "progress.json"


def whole(learner: Learner, tensor: torch.Tensor) -> torch.Tensor:
    """A weight's or moment's full value, also where processes hold parts of it."""
    if learner.zero3 and isinstance(tensor, torch.nn.Parameter):
        tensor = learner.zero3.weight(tensor)
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().contiguous()


def _moments(learner: Learner, role: str, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    state = learner.zero3.moments(parameter) if learner.zero3 else learner.optimizers[role].state[parameter]
    return {key: whole(learner, value) for key, value in state.items()}


def save_adapter(learner: Learner, folder: Path, role: str = POLICY) -> Path:
    """Write one adapter in PEFT format (adapter_config.json, adapter_model.safetensors) to `folder`, replacing it in one step."""
    weights = {name: whole(learner, p) for name, p in learner.model.named_parameters() if f".{role}." in name}
    if learner.processes.main:
        staged = _staging(folder)
        # the backbone's embeddings are never trained; "auto" would ask the hub about them
        learner.model.save_pretrained(staged, selected_adapters=[role], save_embedding_layers=False, state_dict=weights)
        _swap(staged / role, folder)
        shutil.rmtree(staged)
    return folder


def save_model(learner: Learner, tokenizer, folder: Path) -> Path:
    """Write a fully tuned policy and its tokenizer to `folder` in transformers' format, replacing it in one step; `policy.model` may name it."""
    weights = {name: whole(learner, p) for name, p in learner.model.named_parameters()}
    if learner.processes.main:
        staged = _staging(folder)
        learner.model.save_pretrained(staged, state_dict=weights)
        tokenizer.save_pretrained(staged)
        _swap(staged, folder)
    return folder


def save(learner: Learner, folder: Path, progress: dict[str, Any]) -> Path:
    """Write weights and optimiser state of policy and critic, and `progress` (JSON types), replacing `folder` in one step."""
    tensors = {}
    for role in ROLES:
        for name, parameter in learner.parameters(role).items():
            tensors[f"{role}|{name}|weight"] = whole(learner, parameter)
            tensors |= {f"{role}|{name}|{key}": value for key, value in _moments(learner, role, parameter).items()}
    if learner.processes.main:
        staged = _staging(folder)
        staged.mkdir(parents=True)
        save_file(tensors, staged / STATE)
        storage.write_json(staged / PROGRESS, progress)
        _swap(staged, folder)
    return folder


def load(learner: Learner, folder: Path) -> dict[str, Any] | None:
    """Put a saved state back into the learner and return its `progress`; None when there is none. InputError when it does not fit.

    Only the main process reads; the others need not see the folder.
    """
    tensors: dict[str, torch.Tensor] = {}

    def read() -> dict[str, Any] | None:
        previous = _previous(folder)
        if not folder.exists() and previous.exists():
            previous.rename(folder)  # a crash came between the two renames of a swap
        if not folder.exists():
            return None
        tensors.update(load_file(folder / STATE))
        _check(learner, tensors, folder / STATE)
        shapes = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in tensors.items()}
        return {"progress": json.loads((folder / PROGRESS).read_text(encoding="utf-8")), "shapes": shapes}

    found = learner.processes.on_main(read)
    if found is None:
        return None
    for optimizer in learner.optimizers.values():
        optimizer.state.clear()
    for name, (shape, dtype) in found["shapes"].items():
        tensor = tensors[name] if learner.processes.main else torch.empty(shape, dtype=getattr(torch, dtype))
        learner.processes.from_main([tensor])
        _put(learner, *name.split("|"), tensor)
    return found["progress"]


def _check(learner: Learner, tensors: dict[str, torch.Tensor], file: Path) -> None:
    """InputError when the file's weights are not this model's."""
    own = {f"{role}|{name}|weight": getattr(p, "ds_shape", p.shape) for role in ROLES for name, p in learner.parameters(role).items()}
    for name, shape in own.items():
        if name not in tensors or tensors[name].shape != shape:
            raise InputError(f"{file}: {name} is missing or has another shape than this model's")
    for name in tensors:
        if f"{name.rpartition('|')[0]}|weight" not in own:
            raise InputError(f"{file}: holds {name}, which this model does not have")


def _put(learner: Learner, role: str, name: str, kind: str, value: torch.Tensor) -> None:
    """Set one weight, or one entry of its optimiser state, on this process."""
    parameter = learner.parameters(role)[name]
    if learner.zero3:
        learner.zero3.put(parameter, kind, value)
        return
    if value.ndim and isinstance(parameter, DTensor):
        value = distribute_tensor(value.to(learner.device), parameter.device_mesh, parameter.placements)
    if kind == "weight":
        with torch.no_grad():
            parameter.copy_(value)
    else:  # AdamW keeps its step counters on the CPU
        learner.optimizers[role].state[parameter][kind] = value if kind == "step" else value.to(parameter.device)


def _staging(folder: Path) -> Path:
    staged = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return staged


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _swap(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`; at every moment the old or the new one is there whole."""
    previous = _previous(folder)
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.rename(previous)
    new.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)
