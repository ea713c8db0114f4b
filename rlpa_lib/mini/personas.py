"""Personas of the offline world: correlated slot values, and the prose of grammar/persona.txt about them."""

from __future__ import annotations

import random
import re

from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import SLOTS, Profile
from rlpa_lib.mini.language import add_article, find_templates
from rlpa_lib.mini.lexicon import GENDERS, Value, load_lexicon
from rlpa_lib.settings.config import InputError

SPLITS = {"train": "train", "vanilla": "test", "extended": "extended"}
OLDEST, YOUNGEST, TYPICAL = 82, 18, 38
YEARS_OF_LEVEL = {"school": 18, "diploma": 20, "bachelor": 22, "master": 24, "phd": 28}
GENDER_WEIGHTS = {"male": 48, "female": 48, "non-binary": 4}
SAME_GROUP = 0.75
EXTENDED_SIZES = (7, 10)
TRIES = 1000
# (subject, possessive, reflexive); a profile without a gender gets "they", so that the text gives none away
PRONOUNS = {
    "male": ("he", "his", "himself"),
    "female": ("she", "her", "herself"),
    "non-binary": ("they", "their", "themselves"),
}
IRREGULAR = {"is": "are", "has": "have", "does": "do"}


def builtin_personas(split: str, n: int, seed: int) -> list[Persona]:
    """The first n personas of a split, no two alike; a smaller n gives a prefix of a larger one.

    train has train values only, vanilla test values only, extended 7 to 10 slots of the open schema.
    InputError: an unknown split, a negative n, or more personas than the lexicons can tell apart.
    """
    if split not in SPLITS:
        raise InputError(f"personas: no split {split!r}; there are {', '.join(SPLITS)}")
    if n < 0:
        raise InputError(f"personas: n must not be negative, got {n}")
    rng = random.Random(f"personas:{split}:{seed}")
    seen, personas = set(), []
    for number in range(n):
        items = _draw_items(split, seen, rng)
        seen.add(items)
        personas.append(_make_persona(f"{split}-{number:05d}", items, rng))
    return personas


def _draw_items(split: str, seen: set, rng: random.Random) -> tuple[tuple[str, str], ...]:
    for _ in range(TRIES):
        items = _draw_extended(rng) if split == "extended" else _draw_ten_slots(SPLITS[split], rng)
        if items not in seen:
            return items
    raise InputError(f"personas: no new {split} persona found after {len(seen)}")


def _make_persona(name: str, items: tuple[tuple[str, str], ...], rng: random.Random) -> Persona:
    facts = dict(items)
    trait = load_lexicon().find(facts.get("Personality Traits", ""), "Personality Traits")
    personality = describe_manner(trait, facts.get("Gender", "non-binary"), rng)
    return Persona(name, describe(items, rng), personality, Profile(items))


def _draw_ten_slots(split: str, rng: random.Random) -> tuple[tuple[str, str], ...]:
    """One value for each of the ten slots, in their order; all fit the age."""
    job = rng.choice(load_lexicon().values("Occupation", split))
    school = rng.choice(_list_schools(job, split, rng))
    age = _draw_age((job, school), rng)
    (gender,) = rng.choices(tuple(GENDER_WEIGHTS), weights=tuple(GENDER_WEIGHTS.values()))
    facts = {"Age": str(age), "Gender": gender}
    facts |= {"Occupation": job.canonical, "Educational Background": school.canonical}
    for slot in SLOTS:
        if slot not in facts:
            values = load_lexicon().values(slot, split)
            facts[slot] = rng.choice([v for v in values if _youngest(v) <= age <= _oldest(v)]).canonical
    return tuple((slot, facts[slot]) for slot in SLOTS)


def _list_schools(job: Value, split: str, rng: random.Random) -> list[Value]:
    """Education values to draw from: mostly those of the job's group, else those of the other groups."""
    related = rng.random() < SAME_GROUP
    values = load_lexicon().values("Educational Background", split)
    return [value for value in values if (value.attrs["group"] == job.attrs["group"]) == related]


def _draw_age(values: tuple[Value, ...], rng: random.Random) -> int:
    """Years, 18 to 82, within the bounds of all values; most people are of middle age."""
    low, high = max(map(_youngest, values)), min(map(_oldest, values))
    return int(rng.triangular(low, high + 1, max(low, min(TYPICAL, high))) if low < high else low)


def _youngest(value: Value) -> int:
    by_level = YEARS_OF_LEVEL.get(value.attrs.get("level", ""), YOUNGEST)
    return max(by_level, int(value.attrs.get("min_age", YOUNGEST)))


def _oldest(value: Value) -> int:
    return int(value.attrs.get("max_age", OLDEST))


def _draw_extended(rng: random.Random) -> tuple[tuple[str, str], ...]:
    """Seven to ten slots of the open schema, in the lexicon's order, one value each."""
    slots = load_lexicon().extended_slots
    chosen = set(rng.sample(slots, min(len(slots), rng.randint(*EXTENDED_SIZES))))
    values = ((slot, load_lexicon().values(slot, "extended")) for slot in slots if slot in chosen)
    return tuple((slot, rng.choice(some).canonical) for slot, some in values)


def describe(items: tuple[tuple[str, str], ...], rng: random.Random) -> str:
    """Says every (slot, value) item once, gender as "man" or "woman"; without a Gender item "they"."""
    facts = dict(items)
    gender = facts.get("Gender", "non-binary")
    with_age = "Gender" in facts and rng.random() < 0.75
    told = {"Gender", "Age"} if with_age else {"Gender"}
    rest = [(slot, value) for slot, value in items if slot not in told]
    rng.shuffle(rest)
    predicates = [_predicate(slot, value, gender, rng) for slot, value in rest]
    lead = [_write_lead(facts, predicates.pop(0), with_age, rng)] if "Gender" in facts else []
    return " ".join(lead + _write_sentences(predicates, PRONOUNS[gender][0], rng))


def describe_manner(trait: Value | None, gender: str, rng: random.Random) -> str:
    """Tells a Personality Traits value and its pace, if it has one; neutral without a trait."""
    if trait is None:
        return _draw_text(rng, "neutral")
    subject, text = PRONOUNS[gender][0], _draw_text(rng, "trait")
    if "pace" in trait.attrs:
        text = f"{text} {_draw_text(rng, 'pace', trait.attrs['pace'])}"
    return _agree(text.format(S=subject.capitalize(), s=subject, v=trait.canonical), subject == "they")


def _draw_text(rng: random.Random, act: str, slot: str = "", otherwise: str = "") -> str:
    return rng.choice(find_templates("persona", act, slot) or find_templates("persona", otherwise)).text


def _predicate(slot: str, value: str, gender: str, rng: random.Random) -> str:
    """A predicate that tells the slot; its <verbs> are not inflected yet."""
    _, possessive, reflexive = PRONOUNS[gender]
    text = _draw_text(rng, "tell", slot, otherwise="any")
    return text.format(v=value, a=add_article(value), p=possessive, r=reflexive, slot=slot.lower())


def _write_lead(facts: dict[str, str], first: str, with_age: bool, rng: random.Random) -> str:
    gender, age = facts["Gender"], facts["Age"]
    subject, noun = PRONOUNS[gender][0], GENDERS[gender][0]
    # "an 18-year-old": the article follows the spoken number.
    aged = f"{'an' if age.startswith('8') or age in ('11', '18') else 'a'} {age}-year-old {noun}"
    subjects = {"S": subject.capitalize(), "s": subject, "aged": aged, "noun": add_article(noun), "age": age}
    text = _draw_text(rng, "lead" if with_age else "ageless")
    return _agree(text.format(**subjects, p1=first, w1=_agree(first, plural=False)), subject == "they")


def _write_sentences(predicates: list[str], subject: str, rng: random.Random) -> list[str]:
    """Sentences of one to three predicates each, in the order given; no opener comes twice."""
    openers, sentences = [template.text for template in find_templates("persona", "opener")], []
    rng.shuffle(openers)
    while predicates:
        size = rng.choice((1, 2, 2, 3))
        opener = openers.pop() if sentences and openers and rng.random() < 0.4 else "{S}"
        *parts, last = predicates[:size]
        said = f"{', '.join(parts)}{',' if len(parts) > 1 else ''} and {last}" if parts else last
        opener = opener.format(S=subject.capitalize(), s=subject)
        sentences.append(_agree(f"{opener} {said}.", subject == "they"))
        predicates = predicates[size:]
    return sentences


def _agree(text: str, plural: bool) -> str:
    """Resolve every <verb>, written in the third person singular, for a singular or plural subject."""

    def inflect(match: re.Match) -> str:
        word = match[1]
        if not plural or not word.endswith("s"):
            return word
        if word in IRREGULAR:
            return IRREGULAR[word]
        if word.endswith("ies"):
            return word[:-3] + "y"
        return word[:-2] if word.endswith(("ches", "sses", "oes", "xes")) else word[:-1]

    return re.sub(r"<(\w+)>", inflect, text)
