"""Training state on disk, without pickles: weights and optimiser moments as safetensors, the rest as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.rlpa.learner import Learner, gather_tensor
from rlpa_lib.rlpa.networks import POLICY, ROLES
from rlpa_lib.rlpa.rollout import TurnGroup
from rlpa_lib.runs import storage
from rlpa_lib.settings.config import InputError

STATE, PROGRESS = "state.safetensors", "progress.json"


def save_adapter(learner: Learner, folder: Path, role: str = POLICY) -> Path:
    """Write one adapter in PEFT format to `folder`, replacing it in one step."""
    weights = {n: gather_tensor(p) for n, p in learner.model.named_parameters() if f".{role}." in n}
    if learner.processes.main:
        # the backbone's embeddings are never trained; "auto" would ask the hub about them
        options = {"save_embedding_layers": False, "state_dict": weights}
        with _replace(folder, inside=role) as staged:
            learner.model.save_pretrained(staged, selected_adapters=[role], **options)
    return folder


def save_model(learner: Learner, tokenizer, folder: Path) -> Path:
    """Write a fully tuned policy and its tokenizer to `folder`, for `policy.model` to name, in one step."""
    weights = {name: gather_tensor(p) for name, p in learner.model.named_parameters()}
    if learner.processes.main:
        with _replace(folder) as staged:
            learner.model.save_pretrained(staged, state_dict=weights)
            tokenizer.save_pretrained(staged)
    return folder


def save(learner: Learner, folder: Path, progress: Any) -> Path:
    """Write weights, optimiser state and `progress` (plain data), replacing `folder` in one step."""
    tensors = {}
    for role in ROLES:
        for name, parameter in learner.parameters(role).items():
            kept = {"weight": parameter, **learner.optimizers[role].state[parameter]}
            tensors |= {f"{role}|{name}|{kind}": gather_tensor(tensor) for kind, tensor in kept.items()}
    if learner.processes.main:
        with _replace(folder) as staged:
            save_file(tensors, staged / STATE)
            storage.write_json(staged / PROGRESS, progress)
    return folder


def load(learner: Learner, folder: Path) -> dict[str, Any] | None:
    """Put a saved state back into the learner and return its `progress`; None where there is none.

    Only the main process reads; the others need not see the folder. InputError: another model's state.
    """
    tensors: dict[str, torch.Tensor] = {}

    def read() -> tuple[dict[str, Any], dict[str, tuple]] | None:
        previous = _previous(folder)
        if not folder.exists() and previous.exists():
            previous.rename(folder)  # a crash came between the two renames of a swap
        if not folder.exists():
            return None
        tensors.update(load_file(folder / STATE))
        _check(learner, tensors, folder / STATE)
        progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        return progress, {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}

    found = learner.processes.on_main(read)
    if found is None:
        return None
    progress, shapes = found
    for optimizer in learner.optimizers.values():
        optimizer.state.clear()
    for name, (shape, dtype) in shapes.items():
        own = tensors[name] if learner.processes.main else torch.empty(shape, dtype=dtype)
        _put(learner, *name.split("|"), learner.processes.from_main(own))
    return progress


def _check(learner: Learner, tensors: dict[str, torch.Tensor], file: Path) -> None:
    """InputError when the file's weights are not this model's."""
    own = {f"{role}|{name}|weight": p.shape for role in ROLES for name, p in learner.parameters(role).items()}
    saved = {name: tensor.shape for name, tensor in tensors.items() if name.endswith("|weight")}
    for name in sorted(own.keys() | saved.keys()):
        if own.get(name) != saved.get(name):
            raise InputError(f"{file}: {name} is missing or has another shape than this model's")
    for name in tensors:
        if f"{name.rpartition('|')[0]}|weight" not in own:
            raise InputError(f"{file}: holds {name}, which this model does not have")


def _put(learner: Learner, role: str, name: str, kind: str, value: torch.Tensor) -> None:
    """Set one weight, or one entry of its optimiser state, on this process."""
    parameter = learner.parameters(role)[name]
    if value.ndim and isinstance(parameter, DTensor):
        value = distribute_tensor(value.to(learner.device), parameter.device_mesh, parameter.placements)
    if kind == "weight":
        with torch.no_grad():
            parameter.copy_(value)
    else:  # AdamW keeps its step counters on the CPU
        value = value if kind == "step" else value.to(parameter.device)
        learner.optimizers[role].state[parameter][kind] = value


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


@contextmanager
def _replace(folder: Path, inside: str = "") -> Iterator[Path]:
    """A new folder to write into, which then (or what is `inside` it) takes the place of `folder`; at every
    moment the old or the new one is there whole."""
    staged, previous = folder.with_name(f".{folder.name}.new"), _previous(folder)
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    yield staged
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.rename(previous)
    (staged / inside).rename(folder)
    for left in (staged, previous):
        shutil.rmtree(left, ignore_errors=True)


@dataclass(frozen=True)
class KeptTurn:
    """One turn of a cohort that waits for its update: groups, dialogues after it, number of prompts cut."""

    groups: list[TurnGroup]
    dialogues: tuple[Dialogue, ...]
    prompts_cut: int


def save_turn(folder: Path, update: int, turn: KeptTurn) -> None:
    """Keep a turn that update `update` (from 0) will learn from: it is not to be sampled and judged twice."""
    storage.write_jsonl(folder / f"turn-{turn.groups[0].turn:03d}.jsonl", [{"update": update, **vars(turn)}])


def load_turns(folder: Path, update: int) -> list[KeptTurn]:
    """The turns kept for this update, in order. Those of another are deleted: their weights are no more."""
    rows = [storage.read_jsonl(file)[0] for file in sorted(folder.glob("turn-*.jsonl"))]
    if any(row.pop("update", None) != update for row in rows):
        shutil.rmtree(folder)
        return []
    return TypeAdapter(list[KeptTurn]).validate_python(rows)
