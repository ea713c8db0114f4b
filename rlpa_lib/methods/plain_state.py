"""Checkpoints of TRL's trainers without pickles: tensors as safetensors, the rest as JSON.

transformers' Trainer (and accelerate's save_state) write optimiser, scheduler, random state and arguments
with pickle. `PlainState` replaces those hooks, and only those: where to go on in the data is the Trainer's
own business. Of several processes the main one writes, also the random states of the others; all read.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from rlpa_lib.runs import storage
from rlpa_lib.runs.run import Run
from rlpa_lib.settings.config import InputError

STATE, RANDOM, PROGRESS = "state.safetensors", "random.safetensors", "progress.json"
TRAINER_STATE = "trainer_state.json"  # the Trainer writes it last, so it marks a whole checkpoint


class PlainState:
    """Mixed in before a TRL trainer: `class T(PlainState, SFTTrainer)`."""

    def _do_nothing(self, *args, **kwargs) -> None:
        """`trainers.fit` writes a card of our own, `_save` all of the state, and a run talks to no server
        that its settings do not name."""

    create_model_card = _send_telemetry = _save_optimizer_and_scheduler = _do_nothing

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        optimizer = self.optimizer.state_dict()
        tensors = {f"weight|{name}": p for name, p in _list_trained(self.model).items()}
        for index, moments in optimizer["state"].items():
            tensors |= {f"optimizer|{index}|{key}": x for key, x in moments.items()}
        save_file({key: x.detach().cpu().contiguous() for key, x in tensors.items()}, folder / STATE)
        progress = {"param_groups": optimizer["param_groups"], "scheduler": self.lr_scheduler.state_dict()}
        # a counter that TRL logs and does not keep
        storage.write_json(folder / PROGRESS, {**progress, "tokens": getattr(self, "_total_train_tokens", 0)})

    def _save_rng_state(self, output_dir: str) -> None:
        """By every process, after `_save`. Neither these trainers nor our data draw from Python's or numpy's
        global generators."""
        own = {"cpu": torch.get_rng_state()}
        if self.args.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self.args.device)
        everyone = gather_object([own])
        if self.args.should_save:
            states = {f"{rank}|{kind}": x for rank, some in enumerate(everyone) for kind, x in some.items()}
            save_file(states, Path(output_dir) / RANDOM)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        load_weights(model or self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer(self.optimizer, Path(checkpoint))
            progress = _read_json(Path(checkpoint) / PROGRESS)
            self.lr_scheduler.load_state_dict(progress["scheduler"])
            self._total_train_tokens = progress["tokens"]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            states, rank = load_file(Path(checkpoint) / RANDOM), self.args.process_index
            torch.set_rng_state(states[f"{rank}|cpu"])
            if self.args.device.type == "cuda":
                torch.cuda.set_rng_state(states[f"{rank}|cuda"], self.args.device)


def load_weights(model, checkpoint: Path) -> None:
    """Put a checkpoint's trained weights into the model. InputError: the model trains others."""
    saved, own = _load(checkpoint, "weight"), _list_trained(model)
    if {name: x.shape for name, x in saved.items()} != {name: p.shape for name, p in own.items()}:
        raise InputError(f"{checkpoint / STATE}: holds other weights than this model trains")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


def load_optimizer(optimizer, checkpoint: Path) -> None:
    """Put a checkpoint's moments and learning rates into an optimiser of the same parameters."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, x in _load(checkpoint, "optimizer").items():
        index, _, name = key.partition("|")
        state.setdefault(int(index), {})[name] = x
    groups = _read_json(checkpoint / PROGRESS)["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def find_newest(folder: Path) -> Path | None:
    """The whole checkpoint with most steps among `checkpoint-<step>` of a folder; None when there is none."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1]))
    for checkpoint in found:
        with suppress(OSError, json.JSONDecodeError):
            _read_json(checkpoint / TRAINER_STATE)
            return checkpoint
    return None


class MetricsLog(TrainerCallback):
    """Every logged step becomes a line of metrics/<name>.jsonl, a point on tensorboard, and is said.

    Lines of steps behind the checkpoint are dropped first. `offset` counts the steps of earlier rounds.
    """

    def __init__(self, run: Run, name: str, say: Callable[[str], None], offset: int = 0):
        self.run, self.name, self.say, self.offset = run, name, say, offset
        self.writer, self.clock = None, 0.0

    def on_train_begin(self, args, state, control, **_) -> None:
        done = self.offset + state.global_step
        rows = self.run.read_metrics(self.name)
        kept = [row for row in rows if row["step"] <= done]
        if len(kept) < len(rows):
            self.run.write_jsonl(f"metrics/{self.name}.jsonl", kept)
        if self.run.cfg.run.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and a run may do without

            self.writer = SummaryWriter(self.run.path(f"tensorboard/{self.name}"), purge_step=done + 1)
        self.clock = time.perf_counter()

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **_) -> None:
        if not logs or "loss" not in logs:
            return  # the summary at the end
        now = time.perf_counter()
        row = {"step": self.offset + state.global_step}
        row |= {key.replace("/", "_"): float(value) for key, value in logs.items()}
        row["seconds"], self.clock = now - self.clock, now
        self.run.log_metrics(self.name, row)
        if self.writer:
            for key, value in row.items():
                self.writer.add_scalar(f"{self.name}/{key}", value, row["step"])
        self.say(f"{self.name} step {row['step']}/{self.offset + state.max_steps}: loss {row['loss']:.4f}")

    def on_train_end(self, args, state, control, **_) -> None:
        if self.writer:
            self.writer.close()


def _list_trained(model) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _load(checkpoint: Path, kind: str) -> dict[str, torch.Tensor]:
    """The tensors of a kind (weight, optimizer), by the rest of their names."""
    tensors = load_file(checkpoint / STATE)
    return {key.removeprefix(f"{kind}|"): x for key, x in tensors.items() if key.startswith(f"{kind}|")}


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))
