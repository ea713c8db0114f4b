"""Paid answers, kept in SQLite so that neither a crash nor a second process loses or repeats one."""

import json
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlpa_lib.runs.storage import hash_json, sha256
from rlpa_lib.settings.config import InputError

BUSY_SECONDS = 60.0  # how long a writer waits for another one
_VERSION = 1


def base_key(server: str, model: str, content: Mapping[str, Any]) -> str:
    """Digest of canonical JSON of server, model and everything asked (messages, sampling, schema, seed)."""
    return hash_json({"server": server.rstrip("/"), "model": model, **content})


def row_key(base: str, attempt: int = 0) -> str:
    """Key of one answer to a question; each attempt (the one before did not parse) has its own row."""
    return sha256(base.encode(), b"0", str(attempt).encode())


class ResponseCache:
    """JSON rows by key, shared by threads and processes on one machine. A row is on disk when `put` returns;
    a key's first row stays. InputError: the file cannot be opened, or is no cache of this version."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            options = {"isolation_level": None, "check_same_thread": False}  # transactions begin and end here
            self._db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, **options)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")  # only a power cut may lose the last commits
            [version] = self._db.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise sqlite3.DatabaseError(f"it is of version {version}, wanted {_VERSION}")
            columns = "key TEXT PRIMARY KEY, row TEXT NOT NULL"
            self._db.execute(f"CREATE TABLE IF NOT EXISTS answers ({columns}) WITHOUT ROWID")
            if version == 0:
                self._db.execute(f"PRAGMA user_version = {_VERSION}")
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"{self.path}: cannot be used as a response cache: {error}") from None

    def get_many(self, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The rows that exist among `keys`."""
        query = "SELECT key, row FROM answers WHERE key IN (SELECT value FROM json_each(?))"
        with self._lock:
            return {key: json.loads(row) for key, row in self._db.execute(query, [json.dumps(keys)])}

    def put(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Commit rows in one transaction and return them, or another writer's rows where those were first."""
        lines = [(key, json.dumps(row, ensure_ascii=True)) for key, row in rows.items()]
        with self._lock, self._db:  # which commits, or rolls back
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT INTO answers VALUES (?, ?) ON CONFLICT DO NOTHING", lines)
        return self.get_many(list(rows))

    def __len__(self) -> int:
        with self._lock:
            return self._db.execute("SELECT count(*) FROM answers").fetchone()[0]
