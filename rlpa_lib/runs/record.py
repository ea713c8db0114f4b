"""record.json of a run directory: settings, seed, code, packages and hardware, to repeat the run."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from rlpa_lib.runs.storage import hash_json, lock, sha256, write_bytes, write_json
from rlpa_lib.settings.config import InputError, flatten

SPENDING = frozenset({"endpoint.max_usd", "endpoint.max_requests", "endpoint.max_tokens"})
VECTORS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # what matrix products are fast with
PACKAGE_DIR = Path(__file__).resolve().parents[1]
REPOSITORY = PACKAGE_DIR.parent


def now() -> str:
    """UTC time, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read(directory: Path) -> dict[str, Any]:
    """The record of a run directory. InputError when it is missing or broken."""
    file = directory / "record.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None


def create(
    directory: Path, seed: int, settings: Mapping[str, Any], params_name: str, **measured: Any
) -> None:
    """Write the record of a new run, and dirty.diff when the code holds uncommitted changes. `measured`: what
    `auto` came to mean, if a setting says so."""
    code, diff = code_state()
    if diff:
        write_bytes(directory / "dirty.diff", diff)
    facts = {
        "params_name": params_name, "params": settings, "params_sha256": hash_json(settings), "seed": seed,
        "code": code, "hardware": hardware(), "packages": packages(), "start": now(), "end": None,
        "status": "open", "resumed": [],
        **({"measured": measured} if measured else {}),
    }
    write_json(directory / "record.json", facts)


def resume(directory: Path, settings: Mapping[str, Any]) -> None:
    """Note that a run is resumed, with which code, and what it may spend now if that is another amount."""
    code, diff = code_state()
    if diff and code["diff_sha256"] != read(directory)["code"]["diff_sha256"]:
        write_bytes(directory / f"dirty-{code['diff_sha256'][:8]}.diff", diff)
    session = {"start": now(), "code": code}
    capped = {k: v for k, v in flatten(settings).items() if k in SPENDING and v is not None}
    facts = {"status": "open"} | ({"spending": capped} if capped else {})
    amend(directory, lambda old: {"resumed": [*old["resumed"], session], **facts})


def amend(directory: Path, changes: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Update the record with `changes(record)`, under a lock, since notebooks may run side by side."""
    with lock(directory / "record.lock"):
        old = read(directory)
        write_json(directory / "record.json", {**old, **changes(old)})


def check_same(directory: Path, seed: int, settings: Mapping[str, Any]) -> None:
    """InputError: the run in `directory` has another seed or settings; names the first that differs. What it
    may spend (SPENDING) can be changed: it decides how far a run gets, not what comes out."""
    file, old = directory / "record.json", read(directory)
    before = {"seed": old.get("seed"), **flatten(old.get("params", {}))}
    after = {"seed": seed, **flatten(settings)}
    for key in {**after, **before}:
        if key in SPENDING:
            continue
        was, wanted = before.get(key, "absent"), after.get(key, "absent")
        if was != wanted:
            raise InputError(f"{file}: {key} was {was!r}, now {wanted!r}; use another run_dir")


def code_state() -> tuple[dict[str, Any], bytes]:
    """(commit, whether and by which hash the code differs from it, the library's hash; the diff itself).

    The commit is None outside a git repository (an unpacked archive) and before the first commit.
    """
    top = _git("rev-parse", "--show-toplevel").decode().strip()
    if not top or Path(top).resolve() != REPOSITORY:  # none, or an archive unpacked inside another one
        return {"commit": None, "dirty": None, "diff_sha256": None, "library_sha256": library_hash()}, b""
    commit = _git("rev-parse", "--verify", "HEAD").decode().strip() or None
    diff = _git("diff", "--no-ext-diff", "HEAD") if commit else b""
    listing = b""
    for name in sorted(filter(None, _git("ls-files", "--others", "--exclude-standard", "-z").split(b"\0"))):
        path = REPOSITORY / os.fsdecode(name)
        digest = sha256(path.read_bytes()) if path.is_file() else "not a file"
        listing += name + b" " + digest.encode() + b"\n"
    if listing:
        diff += b"\nUntracked files (name, sha256):\n" + listing
    state = {"commit": commit, "dirty": bool(diff), "diff_sha256": sha256(diff) if diff else None}
    return {**state, "library_sha256": library_hash()}, diff


@cache
def library_hash() -> str:
    """Digest of every file of the package (code, prompts, lexicon, weights), taken once per process."""
    parts: list[bytes] = []
    for path in sorted(PACKAGE_DIR.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            parts += [path.relative_to(PACKAGE_DIR).as_posix().encode(), path.read_bytes()]
    return sha256(*parts)


def packages() -> dict[str, str]:
    """Name and version of every installed distribution."""
    found = {dist.name: dist.version for dist in metadata.distributions() if dist.name}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def hardware() -> dict[str, Any]:
    """Processor, which of VECTORS it has, usable cores, memory in GB and graphics cards, without importing
    torch."""
    processors, told = (_read_facts(Path("/proc/cpuinfo"), name) for name in ("model name", "flags"))
    flags = set(told[0].split() if told else ())
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return {
        "system": f"{platform.system()} {platform.release()}", "python": sys.version.split()[0],
        "processor": processors[0] if processors else platform.processor() or platform.machine(),
        "instructions": [name for name in VECTORS if name in flags], "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": [model for card in cards for model in _read_facts(card, "Model")],
    }


def _read_facts(file: Path, name: str) -> list[str]:
    """What stands behind `name:` in a file of the kernel."""
    found = re.findall(rf"^{name}\s*:(.*)", file.read_text(), re.MULTILINE) if file.is_file() else []
    return [text.strip() for text in found]


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_mb() -> float | None:
    """Resident memory of this process in megabytes (10^6 bytes); None on systems other than Linux."""
    told = Path("/proc/self/statm")
    return int(told.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if told.is_file() else None


def _git(*arguments: str) -> bytes:
    """Output of a git command in the repository; empty when git or the repository is missing."""
    command = ["git", "-C", str(REPOSITORY), *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=30, env=environment)
    except (FileNotFoundError, subprocess.SubprocessError):
        return b""
    return done.stdout
