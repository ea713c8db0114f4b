"""Several processes that are one run (accelerate): who does what, and how all get to know it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import distributed

from rlpa_lib.dialogue.protocols import Completion, Message, Policy

Item = TypeVar("Item")
RESUME = "the same command again goes on from the last checkpoint"
NETWORK_SIGNS = ("gloo", "nccl", "connection", "socket")  # in what torch says when another process has gone


class ProcessLost(RuntimeError):
    """Another process of the run has ended or cannot be reached."""


class MainFailed(RuntimeError):
    """The main process met an error while the others waited for its answer; the message is the error's."""


class Processes:
    """This process among the W of a run. The main one (rank 0) talks to users, judges, servers and the disk.

    Alone (W = 1) nothing travels. A process that is gone is noticed within `watched`.
    """

    def __init__(self, accelerator: Accelerator):
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.main, self.device = self.rank == 0, accelerator.device

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
        told = [value, failure and f"{type(failure).__name__}: {failure}"]
        value, reason = broadcast_object_list(told)
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


class MainOnly:
    """A user, judge or served policy that only the main process asks: budgets and records have one writer."""

    def __init__(self, party: Any, processes: Processes):
        self.party, self.processes = party, processes

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*args: Any, **options: Any) -> Any:
            return self.processes.on_main(lambda: getattr(self.party, name)(*args, **options))

        return ask


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
        found: dict[int, list[Completion]] = {}
        for part in self.processes.gather(dict(zip(own, answers, strict=True))):
            found |= part
        return [found[i] for i in range(len(messages))]
