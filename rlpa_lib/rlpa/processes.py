"""Several processes that are one run (accelerate): who does what, and how all get to know it. JSON and tensors travel, never pickles."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import distributed

Item = TypeVar("Item")
RESUME = "the same command again goes on from the last checkpoint"
NETWORK_SIGNS = ("gloo", "nccl", "connection", "socket")  # in what torch says when another process has gone


class ProcessLost(RuntimeError):
    """Another process of the run has ended or cannot be reached."""


class MainFailed(RuntimeError):
    """The main process met an error while the others waited for its answer; the message is the error's."""


class Processes:
    """This process among the W of a run. The main one (rank 0) talks to users, judges, servers and the disk. Alone (W = 1) nothing travels."""

    def __init__(self, accelerator: Accelerator):
        self.rank, self.world, self.device = accelerator.process_index, accelerator.num_processes, accelerator.device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's part of a list: every W-th item, from its own rank on."""
        return list(items[self.rank :: self.world])

    def on_main(self, work: Callable[[], Any]) -> Any:
        """The JSON value of `work()`, which only the main process does. MainFailed elsewhere when it raises there; ProcessLost."""
        if self.world == 1:
            return work()
        failure, told = None, {}
        if self.main:
            try:
                told = {"value": work()}
            except Exception as error:  # told to those who wait, then raised again
                failure, told = error, {"error": f"{type(error).__name__}: {error}"}
        told = json.loads(self._broadcast(json.dumps(told).encode() if self.main else b""))
        if failure is not None:
            raise failure
        if "error" in told:
            raise MainFailed(f"the main process stopped: {told['error']}; {RESUME}")
        return told["value"]

    def gather(self, value: Any) -> list[Any]:
        """One JSON value from each process, by rank."""
        if self.world == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        with self._talking():
            sizes = [torch.zeros(1, dtype=torch.long, device=self.device) for _ in range(self.world)]
            distributed.all_gather(sizes, torch.tensor([len(own)], device=self.device))
            longest = int(max(sizes))
            made = [torch.zeros(longest, dtype=torch.uint8, device=self.device) for _ in range(self.world)]
            distributed.all_gather(made, torch.nn.functional.pad(own, (0, longest - len(own))))
        return [json.loads(row[: int(size)].cpu().numpy().tobytes()) for row, size in zip(made, sizes, strict=True)]

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the processes, in place; all are sent as one. The same shapes everywhere."""
        tensors = list(tensors)
        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.to(self.device).flatten() for tensor in tensors])
        with self._talking():
            distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def add_up_numbers(self, numbers: dict[str, float]) -> dict[str, float]:
        """Sums over the processes, name by name; a name that only some have counts as 0 elsewhere."""
        if self.world == 1:
            return numbers
        rows = self.gather(numbers)
        return {name: sum(row.get(name, 0.0) for row in rows) for name in dict.fromkeys(name for row in rows for name in row)}

    def from_main(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite each tensor with the main process's."""
        if self.world > 1:
            with self._talking():
                for tensor in tensors:
                    there = tensor.to(self.device)
                    distributed.broadcast(there, 0)
                    tensor.copy_(there)

    def wait(self) -> None:
        """Go on when all have come here."""
        self.gather(None)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the context the end of another process is ProcessLost, also in communication that is torch's own (FSDP), and when the
        launcher is the first to notice: it then sends SIGTERM to those that are left."""
        if self.world == 1:
            yield
            return

        def stop(*_) -> None:
            raise ProcessLost(f"process {self.rank} of {self.world} was told to stop, as happens when another has ended; {RESUME}")

        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        except BaseException as error:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's signal must not come before the message
            said = str(error).lower()
            if not isinstance(error, RuntimeError) or isinstance(error, (ProcessLost, MainFailed)) or not any(s in said for s in NETWORK_SIGNS):
                raise
            raise self._lost(error) from error
        signal.signal(signal.SIGTERM, before)

    def _lost(self, error: RuntimeError) -> ProcessLost:
        reason = str(error).strip().splitlines()[0]
        return ProcessLost(f"process {self.rank} of {self.world} lost touch with the others ({reason}); {RESUME}")

    def _broadcast(self, data: bytes) -> bytes:
        with self._talking():
            size = torch.tensor([len(data)], device=self.device)
            distributed.broadcast(size, 0)
            sent = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(self.device) if self.main else None
            sent = torch.zeros(int(size), dtype=torch.uint8, device=self.device) if sent is None else sent
            distributed.broadcast(sent, 0)
        return sent.cpu().numpy().tobytes()

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except ProcessLost:  # told to stop while talking
            raise
        except RuntimeError as error:
            raise self._lost(error) from error
