"""Who the users are: personas, their readers (built-in, ALOE, PersonaChat), and splits that share nobody (appendices C.1, C.2)."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.personas.extraction import extract_profile, extraction_quality, text_key
from rlpa_lib.personas.files import read_json_texts, read_personachat_lists
from rlpa_lib.personas.pronouns import adjust_pronouns
from rlpa_lib.personas.text import stems
from rlpa_lib.settings.config import InputError

__all__ = [
    "Persona",
    "extract_profile",
    "extraction_quality",
    "load_personas",
    "near_duplicates",
    "read_aloe",
    "read_personachat",
    "slot_statistics",
    "split_hash",
]

SPLITS = ("train", "vanilla", "extended")
# The generator can make any number; "all" means as many as the paper has (appendices C.1 and C.2).
BUILTIN_USERS = {"train": 3821, "vanilla": 74, "extended": 74}
TEST_USERS = 74  # size of each of the paper's two test sets (appendix C.2)
NEAR_DUPLICATE = 0.6  # share of common words above which two descriptions count as one person


def read_aloe(profile_path: str | Path, personality_path: str | Path) -> list[Persona]:
    """ALOE's two files of JSON strings, some lines with several: the i-th profile gets personality i modulo their number.

    The personality's pronouns follow the profile's gender, and the ten slots come from `extract_profile` (appendix C.2).
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
    """Each different persona of a Synthetic-Persona-Chat CSV, with free slots (Extended ALOE, appendix C.2); no personality text.

    InputError: a column is missing, or a row is broken (file and line are named).
    """
    from rlpa_lib.personas.free_slots import free_profile

    personas = []
    for number, lines in enumerate(read_personachat_lists(path), start=1):
        description = " ".join(line if line.endswith((".", "!", "?")) else f"{line}." for line in lines)
        personas.append(Persona(f"personachat-{number:04d}", description, "", free_profile(lines)))
    return personas


def load_personas(cfg, split: Literal["train", "vanilla", "extended"], n: int | None, seed: int) -> list[Persona]:
    """`n` personas of a split, or all for None; `cfg` is the `personas` section of the params.

    Who belongs to a split depends on the texts alone, never on `n` or `seed`. A test split is always taken from its start, `train` in an
    order drawn from `seed`. With ALOE, `vanilla` is 74 of its profiles (a quarter of a small file), and `extended` comes from
    `cfg.personachat_path` or, without one, from the built-in personas.
    InputError: an unknown split, a missing file, or more personas asked for than there are.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
    if cfg.source == "builtin" or (cfg.source == "aloe" and split == "extended" and not cfg.personachat_path):
        from rlpa_lib.mini.personas import builtin_personas

        return builtin_personas(split, BUILTIN_USERS[split] if n is None else n, seed)
    if not cfg.path:
        raise InputError(f"personas.path: is needed when personas.source is {cfg.source}")
    personas = _from_files(cfg, split)
    if not personas or (n is not None and n > len(personas)):
        raise InputError(f"personas: {n or 'all'} asked for, but split {split} of source {cfg.source} has {len(personas)}")
    if split == "train":
        personas = random.Random(f"{seed}|train").sample(personas, len(personas))
    return personas[:n]


def near_duplicates(
    personas: Sequence[Persona], others: Sequence[Persona], threshold: float = NEAR_DUPLICATE
) -> list[tuple[Persona, Persona]]:
    """Pairs over the two lists whose descriptions share at least `threshold` of their content words (Jaccard, 0 to 1)."""
    words = [(other, stems(other.description)) for other in others]
    return [
        (persona, other)
        for persona in personas
        for mine in [stems(persona.description)]
        for other, theirs in words
        if _overlap(mine, theirs) >= threshold
    ]


def split_hash(personas: Sequence[Persona]) -> str:
    """SHA-256 in hex over what the personas say and are, whatever their order and ids; goes into the run's record."""
    texts = sorted(json.dumps([p.description, p.personality, p.profile.to_json()], ensure_ascii=False) for p in personas)
    return hashlib.sha256("\n".join(texts).encode("utf-8")).hexdigest()


def slot_statistics(personas: Sequence[Persona]) -> pd.DataFrame:
    """How often each slot occurs (figure 6): columns slot, count, share of personas that have it, filled_share (invented among those)."""
    rows: dict[str, list[int]] = {}
    for persona in personas:
        for slot in persona.profile.slots():
            row = rows.setdefault(slot, [0, 0])
            row[0] += 1
            row[1] += slot in persona.profile.filled
    ranked = sorted(rows.items(), key=lambda item: (-item[1][0], item[0]))
    table = [(slot, count, count / len(personas), filled / count) for slot, (count, filled) in ranked]
    return pd.DataFrame(table, columns=["slot", "count", "share", "filled_share"])


def _from_files(cfg, split: str) -> list[Persona]:
    """Split of a file source, in an order that depends on the texts alone."""
    if cfg.source == "personachat" or split == "extended":
        everybody = _without_near_duplicates(_by_text(read_personachat(cfg.personachat_path or cfg.path)))
        # PersonaChat has no fixed slots, so as the only source it has one test set, which stands for both benchmarks.
        n_test = TEST_USERS if cfg.source == "aloe" else min(TEST_USERS, len(everybody) * 3 // 5)
        return everybody[n_test:] if split == "train" else everybody[:n_test]
    folder = Path(cfg.path)
    if not folder.is_dir():
        raise InputError(f"personas.path: {folder} is not a folder with profile.jsonl and personality.jsonl")
    everybody = _by_text(read_aloe(folder / "profile.jsonl", folder / "personality.jsonl"))
    n_train = len(everybody) - min(TEST_USERS, len(everybody) // 4)
    if split == "vanilla":
        return everybody[n_train:]
    # A training user who is nearly a test user would give the test away.
    leaked = {persona.id for persona, _ in near_duplicates(everybody[:n_train], everybody[n_train:])}
    return [persona for persona in everybody[:n_train] if persona.id not in leaked]


def _by_text(personas: Sequence[Persona]) -> list[Persona]:
    """In the order of the texts' hashes, each text once: as good as shuffled, the same for any order of the file."""
    unique = {text_key(persona.description): persona for persona in reversed(personas)}
    return [unique[key] for key in sorted(unique)]


def _without_near_duplicates(personas: Sequence[Persona]) -> list[Persona]:
    """The first of each group of personas that say nearly the same (PersonaChat repeats personas with a sentence more or less)."""
    kept: list[Persona] = []
    words: list[frozenset[str]] = []
    for persona in personas:
        mine = stems(persona.description)
        if all(_overlap(mine, theirs) < NEAR_DUPLICATE for theirs in words):
            kept.append(persona)
            words.append(mine)
    return kept


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    common = len(a & b)
    return common / (len(a) + len(b) - common) if common else 0.0
