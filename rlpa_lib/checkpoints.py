"""Training state on disk, without pickles: adapters and optimiser moments as safetensors, the rest as JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rlpa_lib import storage
from rlpa_lib.config import InputError
from rlpa_lib.learner import POLICY, Learner

STATE, PROGRESS = "state.safetensors", "progress.json"


def save_adapter(learner: Learner, folder: Path, role: str = POLICY) -> Path:
    """Write one adapter in PEFT format (adapter_config.json, adapter_model.safetensors) to `folder`, replacing it in one step."""
    staged = _staging(folder)
    # the backbone's embeddings are never trained; "auto" would ask the hub about them
    learner.model.save_pretrained(staged, selected_adapters=[role], save_embedding_layers=False)
    _swap(staged / role, folder)
    shutil.rmtree(staged)
    return folder


def save(learner: Learner, folder: Path, progress: dict[str, Any]) -> Path:
    """Write weights and optimiser state of policy and critic, and `progress` (JSON types), replacing `folder` in one step."""
    staged = _staging(folder)
    staged.mkdir(parents=True)
    tensors = {}
    for role, optimizer in learner.optimizers.items():
        for name, parameter in learner.parameters(role).items():
            tensors[f"{role}|{name}|weight"] = parameter
            tensors |= {f"{role}|{name}|{key}": value for key, value in optimizer.state[parameter].items()}
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, staged / STATE)
    storage.write_json(staged / PROGRESS, progress)
    _swap(staged, folder)
    return folder


def load(learner: Learner, folder: Path) -> dict[str, Any] | None:
    """Put a saved state back into the learner and return its `progress`; None when there is none. InputError when it does not fit."""
    previous = _previous(folder)
    if not folder.exists() and previous.exists():
        previous.rename(folder)  # a crash came between the two renames of a swap
    if not folder.exists():
        return None
    tensors = load_file(folder / STATE)
    for role, optimizer in learner.optimizers.items():
        for name, parameter in learner.parameters(role).items():
            prefix = f"{role}|{name}|"
            own = {key[len(prefix) :]: tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
            if "weight" not in own or own["weight"].shape != parameter.shape:
                raise InputError(f"{folder / STATE}: {prefix}weight is missing or has another shape than this model's")
            with torch.no_grad():
                parameter.copy_(own.pop("weight"))
            optimizer.state[parameter] = {key: _placed(key, value, parameter) for key, value in own.items()}
            if not own:
                del optimizer.state[parameter]
    if tensors:
        raise InputError(f"{folder / STATE}: holds {sorted(tensors)[0]}, which this model does not have")
    return json.loads((folder / PROGRESS).read_text(encoding="utf-8"))


def _placed(key: str, value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    return value if key == "step" else value.to(parameter.device)  # AdamW keeps its step counters on the CPU


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
