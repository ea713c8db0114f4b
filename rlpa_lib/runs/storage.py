"""Files that are complete or absent: atomic writes, JSON and JSONL, and library data as plain JSON."""

import dataclasses
import fcntl
import hashlib
import json
import math
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlpa_lib.settings.config import InputError


def write_bytes(path: Path, data: bytes) -> Path:
    """Replace `path` in one step, so that a reader or a crash never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Indented JSON, atomically."""
    return write_bytes(path, (json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n").encode())


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """One JSON value a line, atomically."""
    return write_bytes(path, "".join(map(_line, rows)).encode())


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Exclusive lock among processes and threads on a file, which stays behind empty."""
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # freed with the file, however the process ends
        yield


def is_locked(path: Path) -> bool:
    """Whether somebody else is inside `lock` with this file now."""
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def append_jsonl(path: Path, row: Any) -> None:
    """Add one line under a lock; a torn last line left by a crash is first cut off with a warning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
                warnings.warn(f"{path}: torn last line dropped", stacklevel=2)
        file.write(_line(row).encode())


def read_jsonl(path: Path, appended: bool = False) -> list[Any]:
    """Rows of a JSONL file; `appended` drops a torn end with a warning. InputError names file and line."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace" if appended else "strict").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if appended and number == len(lines):
            warnings.warn(f"{path}, line {number}: torn last line dropped", stacklevel=2)
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not JSON: {error}") from None
    return rows


def plain(value: Any) -> Any:
    """Dataclasses, sets, paths, numpy or torch scalars and arrays as JSON types; NaN, infinities as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return list(map(plain, value))
    if isinstance(value, (set, frozenset)):
        return sorted(map(plain, value))
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def sha256(*parts: bytes) -> str:
    """Hex digest of the parts with their lengths, so that ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """Digest of a value's canonical JSON, independent of key order."""
    return sha256(json.dumps(plain(value), sort_keys=True).encode())


def _line(row: Any) -> str:
    return json.dumps(plain(row), ensure_ascii=False) + "\n"
