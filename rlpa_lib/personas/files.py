"""File formats of ALOE and PersonaChat: texts in, errors with file and line out."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from rlpa_lib.settings.config import InputError

PERSONACHAT_COLUMNS = ("user 1 personas", "user 2 personas")


def read_json_texts(path: str | Path) -> list[str]:
    """All JSON strings of a file, in order, without surrounding white space; a line may hold several, empty lines are passed over.

    InputError: no such file, no text at all, not UTF-8, broken JSON, a value that is no string, or an empty string.
    """
    texts = [text for number, line in enumerate(_read(path).split("\n"), start=1) for text in _line_texts(path, number, line)]
    if not texts:
        raise InputError(f"{path}: holds no text")
    return texts


def read_personachat_lists(path: str | Path) -> list[tuple[str, ...]]:
    """Every different persona of the CSV's two persona columns as its sentences, in the order of the file.

    InputError: no such file, a missing column, a row that is cut off, an empty persona, or no row at all.
    """
    reader = csv.DictReader(io.StringIO(_read(path), newline=""), strict=True)
    found: dict[tuple[str, ...], None] = {}
    try:
        missing = [name for name in PERSONACHAT_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{path}: line 1: column {missing[0]!r} is missing (found: {', '.join(reader.fieldnames or ()) or 'none'})")
        for row in reader:
            for name in PERSONACHAT_COLUMNS:
                lines = tuple(line.strip() for line in (row[name] or "").splitlines() if line.strip())
                if not lines:
                    raise InputError(f"{path}: line {reader.line_num}: column {name!r} is empty")
                found.setdefault(lines)
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: not CSV: {error}") from error
    if not found:
        raise InputError(f"{path}: holds no personas")
    return list(found)


def _read(path: str | Path) -> str:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: line {line}: not UTF-8") from error


def _line_texts(path: str | Path, number: int, line: str) -> list[str]:
    decoder, texts, rest = json.JSONDecoder(), [], line.strip()
    while rest:
        try:
            value, end = decoder.raw_decode(rest)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: line {number}: not JSON: {error.msg}") from error
        if not isinstance(value, str):
            raise InputError(f"{path}: line {number}: a text in quotes was expected, not {type(value).__name__}")
        if not value.strip():
            raise InputError(f"{path}: line {number}: the text is empty")
        texts.append(value.strip())
        rest = rest[end:].strip()
    return texts
