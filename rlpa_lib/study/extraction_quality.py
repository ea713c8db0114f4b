"""How good the slot rules are, against profiles that were labelled by hand (appendix C.2)."""

from collections.abc import Mapping, Sequence

import pandas as pd

from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile
from rlpa_lib.evaluation.intervals import ratio_interval
from rlpa_lib.personas.extraction import hash_text
from rlpa_lib.personas.text import find_stems
from rlpa_lib.settings.config import InputError

LABELLED_SLOTS = ("Age", "Gender", "Occupation", "Marital Status", "Interests")  # by the hand-made labels
# Words that many hobbies share: they alone do not make two hobbies the same.
_LIGHT = find_stems(
    "playing attending making creating building watching collecting spending going visiting experimenting "
    "exploring trying reading cooking participating hosting vintage classic live time the game event music"
)


def measure_extraction(labels: Mapping[str, Mapping], personas: Sequence[Persona]) -> pd.DataFrame:
    """Precision and recall of the rules per labelled slot, with 95 % intervals over personas (_low, _high).

    `labels` maps `hash_text(description)` to age, gender, occupation, marital_status (text or None) and
    interests (list). Only slots with evidence count as predictions; interests count item by item. Columns
    slot, labelled, predicted, correct, precision, recall, personas. InputError: no persona is labelled.
    """
    known = [p for p in personas if hash_text(p.description) in labels]
    if not known:
        raise InputError("none of the personas has a label: are these the personas that were labelled?")
    rows = []
    for slot in LABELLED_SLOTS:
        key = slot.lower().replace(" ", "_")
        counts = [_count(slot, labels[hash_text(p.description)][key], p.profile) for p in known]
        labelled, found, predicted, correct = zip(*counts, strict=True)
        rows.append({
            "slot": slot, "labelled": sum(labelled), "predicted": sum(predicted), "correct": sum(correct),
            **ratio_interval(correct, predicted).columns("precision"),
            **ratio_interval(found, labelled).columns("recall"), "personas": len(known),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _count(slot: str, label: str | list[str] | None, profile: Profile) -> tuple[int, int, int, int]:
    """(labels, labels found, predictions, predictions that are right)."""
    labels = [label] if isinstance(label, str) else list(label or ())
    guesses = [] if slot in profile.filled or slot not in profile.slots() else [profile.get(slot)]
    if slot == "Interests":
        guesses = [part for guess in guesses for part in guess.replace(" and ", ", ").split(", ")]
    found = sum(any(_mean_same(slot, label, guess) for guess in guesses) for label in labels)
    right = sum(any(_mean_same(slot, label, guess) for label in labels) for guess in guesses)
    return len(labels), found, len(guesses), right


def _mean_same(slot: str, label: str, guess: str) -> bool:
    """Equal values; occupations that share half their words; interests that share a word not in `_LIGHT`."""
    a, b = find_stems(label), find_stems(guess)
    if slot == "Interests":
        return bool(((a - _LIGHT) or a) & b and ((b - _LIGHT) or b) & a)
    return 2 * len(a & b) >= len(a | b) if slot == "Occupation" else label == guess
