"""The device of this process, and the memory that it has: every model that is loaded goes there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from rlpa_lib.settings.config import InputError

if TYPE_CHECKING:
    import torch

# where Linux tells a container how much memory it may use (version 2 and 1); a huge number means no limit
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def choose_device() -> torch.device:
    """The device of this process. InputError: there are more processes on this machine than GPUs in sight."""
    import torch  # here, so that what loads no model stays quick to start

    if not torch.cuda.is_available():
        return torch.device("cpu")
    number, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= there:
        why = f"process {number} of this machine has no GPU, {there} can be seen (CUDA_VISIBLE_DEVICES)"
        raise InputError(f"run.accelerate: {why}; use a configuration of {there} processes")
    return torch.device("cuda", number)


def find_memory(device: torch.device) -> int:
    """Bytes that this process can have: of a GPU what nobody else holds, of a CPU all that the machine (or
    the container) has."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    told = [file.read_text().strip() for file in map(Path, CGROUP_LIMITS) if file.is_file()]
    return min([psutil.virtual_memory().total, *(int(text) for text in told if text.isdigit())])
