"""Slot conversion by rules: free text about a person -> the ten-slot profile, and how good that is (appendix C.2)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from rlpa_lib.dialogue.profile import SLOTS, Profile
from rlpa_lib.evaluation.intervals import ratio_interval
from rlpa_lib.personas.slot_rules import evidence
from rlpa_lib.personas.text import join_items, stems
from rlpa_lib.settings.config import InputError

if TYPE_CHECKING:
    from rlpa_lib.dialogue.persona import Persona

# Label key -> slot, for the slots that the hand-made labels cover.
LABELLED_SLOTS = {
    "age": "Age",
    "gender": "Gender",
    "occupation": "Occupation",
    "marital_status": "Marital Status",
    "interests": "Interests",
}


def extract_profile(description: str, personality: str, seed: int = 0) -> Profile:
    """All ten slots from two texts. A slot without evidence gets a plausible value and is listed in `Profile.filled` (appendix C.2).

    The invented value depends on the texts, the slot and `seed` alone. It is drawn from the training values of the built-in lexicon.
    """
    found = evidence(description, personality)
    values = dict(found)
    for slot in SLOTS:
        if slot not in values:
            rng = random.Random(f"{seed}|{slot}|{text_key(description)}|{text_key(personality)}")
            values[slot] = _plausible(slot, values.get("Age"), rng)
    return Profile(tuple((slot, values[slot]) for slot in SLOTS), frozenset(SLOTS) - found.keys())


def text_key(text: str) -> str:
    """SHA-256 of a text without surrounding white space, in hex: names a text that may not be copied."""
    return hashlib.sha256(text.strip().encode("utf-8")).hexdigest()


def extraction_quality(labels: Mapping[str, Mapping], personas: Sequence[Persona]) -> pd.DataFrame:
    """Precision and recall of the rules per labelled slot, with 95 % intervals over personas (_low, _high): columns slot, labelled, predicted,
    correct, precision, recall, personas.

    `labels` maps `text_key(description)` to age, gender, occupation, marital_status (text or None) and interests (list). Only slots
    with evidence count as predictions; interests count item by item. InputError: no persona is labelled.
    """
    pairs = [(labels[text_key(p.description)], p.profile) for p in personas if text_key(p.description) in labels]
    if not pairs:
        raise InputError("none of the personas has a label: are these the personas that were labelled?")
    rows = []
    for key, slot in LABELLED_SLOTS.items():
        count = [_count(slot, _as_list(label[key]), _predicted(slot, profile)) for label, profile in pairs]
        labelled, recalled, predicted, correct = zip(*count, strict=True)
        row = {"slot": slot, "labelled": sum(labelled), "predicted": sum(predicted), "correct": sum(correct)}
        for name, found in (("precision", ratio_interval(correct, predicted)), ("recall", ratio_interval(recalled, labelled))):
            row |= {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}
        rows.append({**row, "personas": len(pairs)})
    return pd.DataFrame(rows)


def _plausible(slot: str, age: str | None, rng: random.Random) -> str:
    from rlpa_lib.mini.lexicon import lexicon  # here, because the miniature world imports personas in its turn

    if slot == "Age":
        return str(rng.randint(20, 68))
    if slot == "Gender":
        return rng.choice(("male", "female"))
    years = int(age) if age else 99
    fitting = [value.canonical for value in lexicon().values(slot, "train") if int(value.attrs.get("min_age", 0)) <= years]
    return join_items(rng.sample(fitting, 2)) if slot == "Interests" else rng.choice(fitting)


def _as_list(label: str | list[str] | None) -> list[str]:
    if label is None:
        return []
    return [label] if isinstance(label, str) else list(label)


def _predicted(slot: str, profile: Profile) -> list[str]:
    value = profile.get(slot)
    if value is None or slot in profile.filled:
        return []
    return value.replace(" and ", ", ").split(", ") if slot == "Interests" else [value]


def _count(slot: str, labels: list[str], predictions: list[str]) -> tuple[int, int, int, int]:
    """(labels, labels found, predictions, predictions that are right)."""
    found = sum(any(_same(slot, label, guess) for guess in predictions) for label in labels)
    right = sum(any(_same(slot, label, guess) for label in labels) for guess in predictions)
    return len(labels), found, len(predictions), right


# Words that many hobbies share: they alone do not make two hobbies the same.
_LIGHT = stems(
    "playing attending making creating building watching collecting spending going visiting experimenting exploring trying reading "
    "cooking participating hosting vintage classic live time the game event music"
)


def _same(slot: str, label: str, guess: str) -> bool:
    """Equal values; occupations that share at least half their words; interests that share a word which is not a light one."""
    a, b = stems(label), stems(guess)
    if slot == "Interests":
        return bool(((a - _LIGHT) or a) & b and ((b - _LIGHT) or b) & a)
    if slot == "Occupation":
        return 2 * len(a & b) >= len(a | b)
    return label == guess
