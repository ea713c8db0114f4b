"""Where the users come from: ALOE's and PersonaChat's files in disjoint splits (appendices C.1, C.2)."""

import csv
import hashlib
import io
import json
import random
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.personas.extraction import extract_free_profile, extract_profile, hash_text
from rlpa_lib.personas.text import NEAR_DUPLICATE as NEAR_DUPLICATE
from rlpa_lib.personas.text import adjust_pronouns, are_near, find_stems
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import SOURCES, Supply, resolve

T = TypeVar("T")
# Split -> the setting that says how many users of it there are.
SIZES = {"train": "personas.train_users", "vanilla": "personas.test_users", "extended": "personas.test_users"}
PAPER_USERS = 3821  # training samples of the paper (appendix C.1)
TEST_USERS = 74  # size of each of the paper's two test sets (appendix C.2)
PERSONACHAT_COLUMNS = ("user 1 personas", "user 2 personas")


def load_personas(cfg, split: str, n: int | None, seed: int) -> list[Persona]:
    """`n` personas of a split (None: all); `cfg` is the `personas` section of the params.

    Only the texts decide who is in a split. A test split is taken from its start, `train` shuffled by `seed`.
    InputError: an unknown split, a missing file, or more personas asked for than there are.
    """
    if split not in SIZES:
        raise InputError(f"unknown split {split!r}: one of {', '.join(SIZES)}")
    return resolve(SOURCES[cfg.source].make)(cfg, split, n, seed)


def load_personachat(cfg, split: str, n: int | None, seed: int) -> list[Persona]:
    """`load_personas` for PersonaChat; both test splits are the same set, with free slots."""
    path = find_path(cfg)
    everybody = read_different(cfg.personachat_path or path)
    n_test = _count_test_users(everybody)
    return take(everybody[n_test:] if split == "train" else everybody[:n_test], cfg, split, n, seed)


def count_personachat(cfg, split: str) -> Supply:
    """How many users a split of PersonaChat has."""
    everybody = read_different(cfg.personachat_path or find_path(cfg))
    n_test = _count_test_users(everybody)
    n, role = (len(everybody) - n_test, "training") if split == "train" else (n_test, "test")
    of = f"{len(everybody)} different personas, {n_test} of them for the test"
    return Supply(n, f"{cfg.personachat_path or cfg.path} gives {n} {role} users ({of})")


def _count_test_users(everybody: Sequence[Persona]) -> int:
    return min(TEST_USERS, len(everybody) * 3 // 5)


def count_train(cfg) -> int:
    """Training users of a run: `personas.train_users`, or all that there are; the paper's while no file is
    named. InputError as in `load_personas`; `cfg` is the `personas` section of the params."""
    if cfg.train_users is None and SOURCES[cfg.source].needs_path and not cfg.path:
        return PAPER_USERS
    return cfg.train_users or resolve(SOURCES[cfg.source].count)(cfg, "train").n


def tell_train(cfg) -> str:
    """How the training users were made and how many there are, for the record and notebook 01."""
    told = resolve(SOURCES[cfg.source].count)(cfg, "train").how
    return told if cfg.train_users is None else f"{told}; {cfg.train_users:,} are asked for"


def find_path(cfg) -> Path:
    """`personas.path`. InputError: it is not set."""
    if not cfg.path:
        raise InputError(f"personas.path: is needed when personas.source is {cfg.source}")
    return Path(cfg.path)


def take(people: Sequence[T], cfg, split: str, n: int | None, seed: int) -> list[T]:
    """The first n (None: all) of a split's `people`, of training users in an order drawn from `seed`.
    InputError: there are fewer."""
    if not people or (n is not None and n > len(people)):
        key, most = SIZES[split], len(people)
        what = f"{'all' if n is None else n} asked for, but split {split} of source {cfg.source} has {most}"
        raise InputError(f"{key}: {what}; set it to at most {most}" if most else f"{key}: {what}")
    if split == "train":
        people = random.Random(f"{seed}|train").sample(people, len(people))
    return list(people[:n])


def read_aloe(profile_path: str | Path, personality_path: str | Path) -> list[Persona]:
    """ALOE's two files of JSON strings; profile i gets personality i modulo the number of personalities.

    Pronouns follow the profile's gender; the slots come from `extract_profile` (appendix C.2).
    InputError: a file cannot be read, or a line is broken (file and line are named).
    """
    descriptions, personalities = read_json_texts(profile_path), read_json_texts(personality_path)
    personas = []
    for index, description in enumerate(descriptions):
        personality = adjust_pronouns(personalities[index % len(personalities)], description)
        profile = extract_profile(description, personality)
        personas.append(Persona(f"aloe-{index + 1:04d}", description, personality, profile))
    return personas


def read_personachat(path: str | Path) -> list[Persona]:
    """Each different persona of a Synthetic-Persona-Chat CSV, in file order, with free slots (Extended ALOE,
    appendix C.2) and no personality. InputError names file and line of a missing column or a broken row."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    found: dict[tuple[str, ...], None] = {}
    try:
        names = reader.fieldnames or ()
        if missing := [name for name in PERSONACHAT_COLUMNS if name not in names]:
            there = ", ".join(names) or "none"
            raise InputError(f"{path}: line 1: column {missing[0]!r} is missing (found: {there})")
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
    personas = []
    for number, lines in enumerate(found, start=1):
        description = " ".join(line if line.endswith((".", "!", "?")) else f"{line}." for line in lines)
        personas.append(Persona(f"personachat-{number:04d}", description, "", extract_free_profile(lines)))
    return personas


def read_json_texts(path: str | Path) -> list[str]:
    """All JSON strings of a file without surrounding white space; a line may hold several, or none."""
    texts = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        try:
            for value in split_values(line):
                if not isinstance(value, str):
                    raise ValueError(f"a text in quotes was expected, not {type(value).__name__}")
                if not value.strip():
                    raise ValueError("the text is empty")
                texts.append(value.strip())
        except ValueError as error:
            raise InputError(f"{path}: line {number}: {error}") from error
    if not texts:
        raise InputError(f"{path}: holds no text")
    return texts


def read_text(path: str | Path) -> str:
    """A UTF-8 file with line ends as "\\n". InputError: it cannot be read, or a line is not UTF-8."""
    try:
        data = Path(path).read_bytes()
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path}: line {line}: not UTF-8") from error


def split_values(line: str) -> Iterator[Any]:
    """The JSON values of a line, of which there may be several. ValueError: not JSON."""
    rest = line.strip()
    while rest:
        try:
            value, end = json.JSONDecoder().raw_decode(rest)
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON: {error.msg}") from error
        yield value
        rest = rest[end:].strip()


def find_near_duplicates(
    personas: Sequence[Persona], others: Sequence[Persona]
) -> list[tuple[Persona, Persona]]:
    """Pairs whose descriptions share NEAR_DUPLICATE of their content words or more (Jaccard)."""
    words = [(other, find_stems(other.description)) for other in others]
    mine = [(persona, find_stems(persona.description)) for persona in personas]
    return [(p, other) for p, own in mine for other, theirs in words if are_near(own, theirs)]


def hash_split(personas: Sequence[Persona]) -> str:
    """Hex SHA-256 of texts and profiles, independent of order and ids; goes into the record."""
    told = [[p.description, p.personality, p.profile.to_json()] for p in personas]
    texts = sorted(json.dumps(one, ensure_ascii=False) for one in told)
    return hashlib.sha256("\n".join(texts).encode("utf-8")).hexdigest()


def count_slots(personas: Sequence[Persona]) -> pd.DataFrame:
    """Slot frequencies (figure 6): slot, count, share of personas, filled_share (invented ones of those)."""
    occurrences = [(slot, slot in p.profile.filled) for p in personas for slot in p.profile.slots()]
    rows = pd.DataFrame(occurrences, columns=["slot", "filled"])
    table = rows.groupby("slot", as_index=False)["filled"].agg(count="size", filled_share="mean")
    table.insert(2, "share", table["count"] / len(personas))
    return table.sort_values(["count", "slot"], ascending=[False, True], ignore_index=True)


def read_different(path: str | Path) -> list[Persona]:
    """PersonaChat's personas without near duplicates: the file repeats them with a sentence more or less.
    InputError as in `read_personachat`."""
    return list(_read_different(Path(path), Path(path).stat().st_mtime_ns if Path(path).exists() else 0))


@cache
def _read_different(path: Path, stamp: int) -> tuple[Persona, ...]:
    """Kept as long as the file (`stamp`) is the same."""
    kept: list[tuple[Persona, frozenset[str]]] = []
    for persona in _sort_by_text(read_personachat(path)):
        mine = find_stems(persona.description)
        if not any(are_near(mine, theirs) for _, theirs in kept):
            kept.append((persona, mine))
    return tuple(persona for persona, _ in kept)


def _sort_by_text(personas: Sequence[Persona]) -> list[Persona]:
    """Each text once, by hash: as good as shuffled, and independent of the file's order."""
    unique = {hash_text(persona.description): persona for persona in reversed(personas)}
    return [unique[key] for key in sorted(unique)]
