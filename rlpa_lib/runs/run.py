"""A run directory: who may write in it, what was run there, and all that a notebook saves."""

import fcntl
import io
import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from rlpa_lib.runs import record, storage
from rlpa_lib.runs.seeds import set_matmul_precision, set_seed, set_threads
from rlpa_lib.settings import config
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import POLICIES, resolve
from rlpa_lib.settings.measured import list_open, settle
from rlpa_lib.settings.people import check_people

OWNER_VARIABLE = "RLPA_RUN_OWNER"

# Locks live as long as the process: the operating system frees them when it dies, however it dies.
_LOCKS: dict[Path, TextIO] = {}


@dataclass(frozen=True)
class Run:
    """An open run: its settings (`auto` replaced by what was measured), its seed and its directory. All
    writes are atomic and stay inside `dir`."""

    cfg: Config
    seed: int
    dir: Path

    def path(self, relative: str) -> Path:
        """Absolute path in the run directory; creates its parent folders. ValueError: it lies outside."""
        target = (self.dir / relative).resolve()
        if not target.is_relative_to(self.dir):
            raise ValueError(f"{relative!r} lies outside the run directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    @property
    def record(self) -> dict[str, Any]:
        """record.json as it stands now."""
        return record.read(self.dir)

    def note(self, key: str, value: Any) -> None:
        """Add a fact to record.json, such as a model revision or the hash of a split."""
        record.amend(self.dir, lambda _: {key: value})

    def finish(self, status: str) -> None:
        """Write status ("done", "failed", "interrupted") and end time into record.json."""
        record.amend(self.dir, lambda _: {"status": status, "end": record.now()})

    def save_table(self, table: Any, name: str) -> Path:
        """tables/<name>.csv of a DataFrame, without its index."""
        return storage.write_bytes(self.path(f"tables/{name}.csv"), table.to_csv(index=False).encode())

    def save_figure(
        self, figure: Any, name: str, data: Any, *, caption: str, alt: str, **source: Any
    ) -> Path:
        """figures/<name>.png (150 dpi), .csv (plotted DataFrame) and .json (caption, alt text, origin)."""
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
        csv = data.to_csv(index=False).encode()
        made_by = self.record
        facts = {
            "name": name, "caption": caption, "alt": alt, "run": self.dir.name, "seed": self.seed,
            "params": made_by["params_name"], "params_sha256": made_by["params_sha256"],
            "commit": made_by["code"]["commit"], "diff_sha256": made_by["code"]["diff_sha256"],
            "data_sha256": storage.sha256(csv), **source,
        }
        storage.write_bytes(self.path(f"figures/{name}.csv"), csv)
        storage.write_json(self.path(f"figures/{name}.json"), facts)
        return storage.write_bytes(self.path(f"figures/{name}.png"), picture.getvalue())

    def log_metrics(self, name: str, values: Mapping[str, Any]) -> None:
        """Append one line to metrics/<name>.jsonl."""
        storage.append_jsonl(self.path(f"metrics/{name}.jsonl"), values)

    def read_metrics(self, name: str) -> list[dict[str, Any]]:
        """Lines of metrics/<name>.jsonl, [] if there are none; a torn last one is dropped with a warning."""
        file = self.path(f"metrics/{name}.jsonl")
        return storage.read_jsonl(file, appended=True) if file.exists() else []

    def write_jsonl(self, relative: str, rows: Iterable[Any]) -> Path:
        """Replace a JSONL file of the run in one step."""
        return storage.write_jsonl(self.path(relative), rows)

    def read_jsonl(self, relative: str) -> list[Any]:
        """Rows of a JSONL file of the run. InputError names file and line."""
        return storage.read_jsonl(self.path(relative))

    def done(self, key: str, fingerprint: str | None = None) -> bool:
        """Was `key` finished with the same inputs (default: `fingerprint()`: params, seed, library files)?"""
        file, wanted = self._done_file(key), fingerprint or self.fingerprint()
        return file.exists() and json.loads(file.read_text())["fingerprint"] == wanted

    def mark_done(self, key: str, fingerprint: str | None = None) -> None:
        """Remember that `key` is finished, for `done`."""
        mark = {"key": key, "fingerprint": fingerprint or self.fingerprint(), "time": record.now()}
        storage.write_json(self._done_file(key), mark)

    def fingerprint(self, *parts: str) -> str:
        """Digest of params (but for what may be spent), seed, the library's files and `parts`."""
        settings = config.flatten(config.dump_config(self.cfg))
        deciding = {key: value for key, value in settings.items() if key not in record.SPENDING}
        own = (storage.hash_json(deciding), str(self.seed), record.library_hash())
        return storage.sha256(*(part.encode() for part in (*own, *parts)))

    def _done_file(self, key: str) -> Path:
        return self.path(f"done/{quote(key, safe='')}.json")


def open_run(params: str | Path, seed: int, run_dir: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Open or reopen a run for writing, and set this process's threads, matmul precision and seeds.

    A relative `run_dir` starts at the repository, so that a notebook means the same folder from anywhere.
    InputError: bad params, no permission, a second writer, another run's directory (names the differing key).
    """
    cfg = config.load_config(params, overrides)
    _, label = config.locate_params(params)
    config.check_files(cfg, label)
    directory = record.REPOSITORY / Path(run_dir).expanduser()
    if not (directory / "record.json").exists():
        check_people(cfg, label)
    run = claim(cfg, seed, directory, label)
    set_threads(run.cfg.run.threads)
    set_matmul_precision(cfg.run.matmul_precision)
    set_seed(seed)
    return run


def claim(cfg: Config, seed: int, directory: Path, params_name: str) -> Run:
    """Lock the directory and write or check record.json; child processes share the lock (RLPA_RUN_OWNER).
    Where a setting says `auto`, a new run measures, and every later process takes what its record says.
    InputError: as in `open_run`, or a seed outside 0 to 2**32 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise InputError(f"seed: wants an integer from 0 to 2**32 - 1; got {seed!r}")
    directory, settings = directory.resolve(), config.dump_config(cfg)
    existing = (directory / "record.json").exists()
    if existing:
        record.check_same(directory, seed, settings)
        measured = record.read(directory).get("measured", {})
    else:
        measured = resolve(POLICIES[cfg.policy.kind].measure)(cfg) if list_open(cfg) else {}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        owns = _lock(directory)
        if not existing:
            record.create(directory, seed, settings, params_name, **measured)
        elif owns:
            record.resume(directory, settings)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written: {error.strerror or error}") from None
    return Run(settle(cfg, measured.get("chosen", {})), seed, directory)


def _lock(directory: Path) -> bool:
    """True when this process holds the lock, False when it is the child of a process that does."""
    if directory in _LOCKS:
        return False
    file = open(directory / "writer.lock", "a+", encoding="utf-8")  # noqa: SIM115  # open until it exits
    mine = [token for token in os.environ.get(OWNER_VARIABLE, "").split(",") if token]
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        token, _, pid = file.read().strip().partition(" ")
        file.close()
        if token and token in mine:
            return False
        how = "wait, shut that kernel down, or use another run_dir"
        raise InputError(f"{directory}: process {pid or '?'} is writing here; {how}") from None
    token = secrets.token_hex(8)
    file.truncate(0)
    file.write(f"{token} {os.getpid()}\n")
    file.flush()
    _LOCKS[directory] = file
    os.environ[OWNER_VARIABLE] = ",".join([*mine, token])
    return True
