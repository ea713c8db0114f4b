"""Several processes that are one run (accelerate): how they start, who does what, how all get to know it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list, gather_object
from torch import distributed

from rlpa_lib import runs
from rlpa_lib.agents import devices, own_servers
from rlpa_lib.dialogue.protocols import Completion, Message, Policy
from rlpa_lib.runs import record
from rlpa_lib.runs.run import Run
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

Item = TypeVar("Item")
CONFIGURATIONS = config.PARAMS_DIR / "accelerate"
PATIENCE = timedelta(hours=3)  # how long a process waits for the others: a user model's server may be slow
REPLICATED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
RESUME = "the same command again goes on from the last checkpoint"
NETWORK_SIGNS = ("gloo", "nccl", "connection", "socket")  # in what torch says when another process has gone


class ProcessLost(RuntimeError):
    """Another process of the run has ended or cannot be reached."""


class MainFailed(RuntimeError):
    """The main process met an error while the others waited for its answer; the message is the error's."""


class Processes:
    """This process among the W of a run. The main one (rank 0) talks to users, judges, servers and the disk.

    Alone (W = 1) nothing travels. A process that is gone is noticed within `watched`. `sharded`: weights are
    spread over the processes.
    """

    def __init__(self, accelerator: Accelerator | None = None):
        patience, cpu = InitProcessGroupKwargs(timeout=PATIENCE), devices.choose_device().type == "cpu"
        self.accelerator = accelerator or Accelerator(cpu=cpu, kwargs_handlers=[patience])
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.main, self.device = self.rank == 0, self.accelerator.device
        self.sharded = self.world > 1 and _asks_for_shards(self.accelerator)

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's part of a list: every W-th item, from its own rank on."""
        return list(items[self.rank :: self.world])

    def on_main(self, work: Callable[[], Item]) -> Item:
        """What `work()` gives, which only the main process does. MainFailed in the others where it raises."""
        if self.world == 1:
            return work()
        value, failure = None, None
        if self.main:
            try:
                value = work()
            except Exception as error:  # the others wait: tell them before it is raised
                failure = error
        reason = failure and f"{type(failure).__name__}: {failure}"
        value, reason = broadcast_object_list([value, reason])
        if failure is not None:
            raise failure
        if reason is not None:
            raise MainFailed(f"the main process stopped: {reason}; {RESUME}")
        return value

    def gather(self, value: Item) -> list[Item]:
        """One value from each process, by rank."""
        return gather_object([value])

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes, in place; all are sent as one."""
        tensors = list(tensors)
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.to(self.device).flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def add_up_numbers(self, numbers: dict[str, float]) -> dict[str, float]:
        """Sums over the processes, name by name; a name that only some have counts as 0 elsewhere."""
        if self.world == 1:
            return numbers
        rows = self.gather(numbers)
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: sum(row.get(name, 0.0) for row in rows) for name in names}

    def from_main(self, tensor: torch.Tensor) -> torch.Tensor:
        """The main process's tensor, of the same shape as the given one."""
        if self.world == 1:
            return tensor
        there = tensor.to(self.device)
        distributed.broadcast(there, 0)
        return there.to(tensor.device)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the context the end of another process is ProcessLost: when communication breaks, or when
        the launcher, if first to notice, sends SIGTERM to those that are left."""
        if self.world == 1:
            yield
            return

        def stop(*_) -> None:
            told = f"process {self.rank} of {self.world} was told to stop, as happens when another has ended"
            raise ProcessLost(f"{told}; {RESUME}")

        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        except BaseException as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's must not come before the message
            ours = isinstance(error, (ProcessLost, MainFailed)) or not isinstance(error, RuntimeError)
            if ours or not any(sign in str(error).lower() for sign in NETWORK_SIGNS):
                raise
            who, reason = f"process {self.rank} of {self.world}", str(error).strip().splitlines()[0]
            raise ProcessLost(f"{who} lost touch with the others ({reason}); {RESUME}") from error
        signal.signal(signal.SIGTERM, before)


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


class MainOnly:
    """A user, judge or served policy that only the main process asks: budgets and records have one writer."""

    def __init__(self, party: Any, processes: Processes):
        self.party, self.processes = party, processes

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **options: self.processes.on_main(
            lambda: getattr(self.party, name)(*args, **options)
        )


class SharedPolicy:
    """A policy in process, of which each process samples its share of the prompts.

    What is sampled does not depend on how many share it: a completion's random numbers come from its prompt.
    """

    def __init__(self, policy: Policy, processes: Processes):
        self.policy, self.processes = policy, processes

    def generate(self, messages: Sequence[list[Message]], n: int, **options: Any) -> list[list[Completion]]:
        """n completions a message list, in order."""
        own = self.processes.share(range(len(messages)))
        answers = self.policy.generate(messages, n, own=own, **options) if own else []
        parts = self.processes.gather(dict(zip(own, answers, strict=True)))
        found = {i: completions for part in parts for i, completions in part.items()}
        return [found[i] for i in range(len(messages))]


def find_configuration(name: str) -> Path:
    """A file of params/accelerate by its name, or any other by its path. InputError: there is none."""
    for file in (CONFIGURATIONS / f"{name}.yaml", Path(name)):
        if file.is_file():
            return file
    known = ", ".join(sorted(path.stem for path in CONFIGURATIONS.glob("*.yaml")))
    raise InputError(f"run.accelerate: no such file, and none of {known}: {name}")


def count_processes(name: str) -> int:
    """Processes of a configuration of accelerate. InputError: it is not there, or does not say."""
    file = find_configuration(name)
    told = yaml.safe_load(file.read_text(encoding="utf-8"))
    count = told.get("num_processes") if isinstance(told, dict) else None
    if not isinstance(count, int) or count < 1:
        raise InputError(f"run.accelerate: {file}: num_processes: wants a number, got {count!r}")
    return count


def work(
    scale: str, seed: int, run_dir: Path, overrides: Sequence[str], act: Callable[..., Any], *,
    shards: bool = True,
) -> int:
    """What each process under `accelerate launch` does: open the run, which only the main one does, and
    `act(run, processes=..., say=...)`; 0 at the end. `shards`: whether an FSDP configuration spreads
    weights."""
    if not shards:
        os.environ["ACCELERATE_USE_FSDP"] = "false"
    processes, say = Processes(), partial(print, flush=True)  # a notebook reads it through a pipe
    with processes.watched():
        run = processes.on_main(lambda: runs.open_run(scale, seed, run_dir, overrides))
        if not processes.main:  # on another machine the folder may be another, and nothing is written there
            run = Run(cfg := run.cfg, seed, (record.REPOSITORY / run_dir.expanduser()).resolve())
            runs.set_threads(cfg.run.threads)
            runs.set_matmul_precision(cfg.run.matmul_precision)
            runs.set_seed(seed)
        act(run, processes=processes, say=say)
        processes.accelerator.wait_for_everyone()
    processes.accelerator.end_training()
    return 0


def launch(
    run: Run, params: str, overrides: Sequence[str], *, stage: str = "ppo", name: str | None = None,
    changes: Sequence[str] = (), until: int | None = None, say: Callable[[str], None],
) -> None:
    """Run `python -m rlpa_lib train` under `accelerate launch`, pass its lines on. RuntimeError: failed."""
    file = find_configuration(run.cfg.run.accelerate)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", file, "-m", "rlpa_lib"]
    command += ["train", "--scale", params, "--seed", run.seed, "--run-dir", run.dir, "--stage", stage]
    command += [] if name is None else ["--name", name]
    command += [] if until is None else ["--until", until]
    command += [part for text in config.anchor_paths(overrides) for part in ("--set", text)]
    command += [part for text in changes for part in ("--change", text)]
    lines: list[str] = []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    pipes["env"] = os.environ | own_servers.trainer_environment(run.cfg)
    with subprocess.Popen(list(map(str, command)), cwd=record.REPOSITORY, **pipes) as process:
        for line in process.stdout:
            lines.append(line.rstrip())
            say(lines[-1])
    if process.returncode:
        # our own last words if there are any; the launcher's report says which process ended
        told = [line for line in lines if line.startswith("rlpa_lib: ")] or lines[-5:]
        reason = " | ".join(dict.fromkeys(told))
        raise RuntimeError(f"training ended with exit code {process.returncode}: {reason}")
