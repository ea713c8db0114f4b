"""What a lab runs in its first five minutes on a card: `make test-gpu`. Collected only if asked for by path.

RLPA_GPU_SCALE and RLPA_GPU_SET name the settings (default: paper, as it is), RLPA_GPU_SERVER a vLLM server
that runs already. Without a card everything is skipped; RLPA_GPU_DEVICE=cpu runs it all on the CPU, which
says nothing about a card and shows that this code works.
"""

import os
import platform
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/gpu is run by itself

from rlpa_lib.runs.record import REPOSITORY
from rlpa_lib.settings import config

DEVICE = torch.device(os.environ.get("RLPA_GPU_DEVICE", "cuda"))
SCALE, KEYS = os.environ.get("RLPA_GPU_SCALE", "paper"), os.environ.get("RLPA_GPU_SET", "").split()
ROWS = []  # of the table: what, what was found, what it was held against


def pytest_collection_modifyitems(items):
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        for item in items:
            item.add_marker(pytest.mark.skip(reason="torch sees no card here"))


@pytest.fixture(scope="session")
def cfg():
    return config.load_config(SCALE, KEYS)


@pytest.fixture
def tell():
    """`tell(what, found, against)` puts a row into the table."""
    return lambda what, found, against="": ROWS.append((what, found, against))


def table():
    """All rows as text, with the machine above them."""
    card = f"{platform.machine()} CPU, no card", ""
    if DEVICE.type == "cuda":
        size = torch.cuda.get_device_properties(0).total_memory / 2**30
        card = torch.cuda.get_device_name(), f"{size:.0f} GiB"
    facts = [
        ("card", *card), ("torch", torch.__version__, f"CUDA {torch.version.cuda}"),
        ("settings", SCALE, " ".join(KEYS)),
    ]
    lines = [("", "found", "held against"), *facts, *ROWS]
    widths = [max(len(line[i]) for line in lines) for i in range(2)]
    return "\n".join(f"{a.ljust(widths[0])}  {b.ljust(widths[1])}  {c}".rstrip() for a, b, c in lines)


def pytest_terminal_summary(terminalreporter):
    if not ROWS:
        return
    file = REPOSITORY / "runs" / "test-gpu.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text(table() + "\n", encoding="utf-8")
    terminalreporter.write_line(f"\nto send home ({file}):\n\n{table()}\n")
