"""Personas of the offline world: correlated slot values from the lexicons, with a description in prose."""

from __future__ import annotations

import random

from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import SLOTS, Profile
from rlpa_lib.mini.descriptions import describe, personality_text
from rlpa_lib.mini.lexicon import Value, lexicon
from rlpa_lib.settings.config import InputError

SPLITS = {"train": "train", "vanilla": "test", "extended": "extended"}
OLDEST, YOUNGEST, TYPICAL = 82, 18, 38
YEARS_OF_LEVEL = {"school": 18, "diploma": 20, "bachelor": 22, "master": 24, "phd": 28}
GENDER_WEIGHTS = {"male": 48, "female": 48, "non-binary": 4}
SAME_GROUP = 0.75
EXTENDED_SIZES = (7, 10)
TRIES = 1000


def builtin_personas(split: str, n: int, seed: int) -> list[Persona]:
    """The first n personas of a split (train, vanilla or extended), no two alike; a smaller n gives a prefix of a larger one.

    Train personas hold train values only, vanilla ones test values only, extended ones 7 to 10 slots of the open schema.
    InputError: an unknown split, a negative n, or more personas asked for than the lexicons can tell apart.
    """
    if split not in SPLITS:
        raise InputError(f"personas: no split {split!r}; there are {', '.join(SPLITS)}")
    if n < 0:
        raise InputError(f"personas: n must not be negative, got {n}")
    rng = random.Random(f"personas:{split}:{seed}")
    seen, personas = set(), []
    for number in range(n):
        items = _unseen(split, seen, rng)
        seen.add(items)
        personas.append(_persona(f"{split}-{number:05d}", items, rng))
    return personas


def _unseen(split: str, seen: set, rng: random.Random) -> tuple[tuple[str, str], ...]:
    for _ in range(TRIES):
        items = _extended_items(rng) if split == "extended" else _ten_slot_items(SPLITS[split], rng)
        if items not in seen:
            return items
    raise InputError(f"personas: no new {split} persona found after {len(seen)}")


def _persona(name: str, items: tuple[tuple[str, str], ...], rng: random.Random) -> Persona:
    facts = dict(items)
    trait = lexicon().find(facts["Personality Traits"], "Personality Traits") if "Personality Traits" in facts else None
    personality = personality_text(trait, facts.get("Gender", "non-binary"), rng)
    return Persona(name, describe(items, rng), personality, Profile(items))


def _ten_slot_items(split: str, rng: random.Random) -> tuple[tuple[str, str], ...]:
    """One value for each of the ten slots, in their order; what is tied to an age is drawn to fit it."""
    job = rng.choice(lexicon().values("Occupation", split))
    school = rng.choice(_schools(job, split, rng))
    age = _age((job, school), rng)
    (gender,) = rng.choices(tuple(GENDER_WEIGHTS), weights=tuple(GENDER_WEIGHTS.values()))
    facts = {"Age": str(age), "Gender": gender, "Occupation": job.canonical, "Educational Background": school.canonical}
    for slot in SLOTS:
        if slot not in facts:
            fitting = [value for value in lexicon().values(slot, split) if _youngest(value) <= age <= _oldest(value)]
            facts[slot] = rng.choice(fitting).canonical
    return tuple((slot, facts[slot]) for slot in SLOTS)


def _schools(job: Value, split: str, rng: random.Random) -> list[Value]:
    """The education values to draw from: those of the job's group mostly, else those of the other groups."""
    related = rng.random() < SAME_GROUP
    values = lexicon().values("Educational Background", split)
    return [value for value in values if (value.attrs["group"] == job.attrs["group"]) == related]


def _age(values: tuple[Value, ...], rng: random.Random) -> int:
    """Years, 18 to 82, within the bounds of all values; most people are of middle age."""
    low, high = max(map(_youngest, values)), min(map(_oldest, values))
    return int(rng.triangular(low, high + 1, max(low, min(TYPICAL, high))) if low < high else low)


def _youngest(value: Value) -> int:
    by_level = YEARS_OF_LEVEL.get(value.attrs.get("level", ""), YOUNGEST)
    return max(by_level, int(value.attrs.get("min_age", YOUNGEST)))


def _oldest(value: Value) -> int:
    return int(value.attrs.get("max_age", OLDEST))


def _extended_items(rng: random.Random) -> tuple[tuple[str, str], ...]:
    """Seven to ten slots of the open schema, in the lexicon's order, one value each."""
    slots = lexicon().extended_slots
    chosen = set(rng.sample(slots, min(len(slots), rng.randint(*EXTENDED_SIZES))))
    return tuple((slot, rng.choice(lexicon().values(slot, "extended")).canonical) for slot in slots if slot in chosen)
