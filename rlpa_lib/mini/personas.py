"""Personas of the offline world: correlated slot values, and the prose of grammar/persona.txt about them."""

import random
import re

from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import SLOTS, Profile
from rlpa_lib.mini.language import add_article, find_templates, realise
from rlpa_lib.mini.lexicon import GENDERS, LISTED, Value, find_value, list_extended_slots, list_values
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
    "male": ("he", "his", "himself"), "female": ("she", "her", "herself"),
    "non-binary": ("they", "their", "themselves"),
}  # fmt: skip
# Verbs of "they"; the first ending that fits is replaced.
IRREGULAR = {"is": "are", "has": "have", "does": "do"}
ENDINGS = {"ies": "y", "ches": "ch", "sses": "ss", "oes": "o", "xes": "x", "s": "", "": ""}


def builtin_personas(split: str, n: int, seed: int) -> list[Persona]:
    """The first n personas of a split, no two alike; a smaller n gives a prefix of a larger one.

    train has train values only, vanilla test values only, extended 7 to 10 slots of the open schema.
    InputError: an unknown split, a negative n, or more personas than the lexicons can tell apart.
    """
    if split not in SPLITS:
        raise InputError(f"personas: no split {split!r}; there are {', '.join(SPLITS)}")
    if n < 0:
        raise InputError(f"personas: n must not be negative, got {n}")
    rng, seen, personas = random.Random(f"personas:{split}:{seed}"), set(), []
    for number in range(n):
        draws = (_draw_items(split, rng) for _ in range(TRIES))
        items = next((draw for draw in draws if draw not in seen), None)
        if items is None:
            raise InputError(f"personas: no new {split} persona found after {len(seen)}")
        seen.add(items)
        profile = Profile(items)
        trait = find_value(profile.get("Personality Traits") or "", "Personality Traits")
        personality = describe_manner(trait, profile.get("Gender") or "non-binary", rng)
        personas.append(Persona(f"{split}-{number:05d}", describe(items, rng), personality, profile))
    return personas


def _draw_items(split: str, rng: random.Random) -> tuple[tuple[str, str], ...]:
    """Values of the ten slots that all fit the age, or of some slots of the open schema."""
    if split == "extended":
        slots = list_extended_slots()
        chosen = set(rng.sample(slots, min(len(slots), rng.randint(*EXTENDED_SIZES))))
        return tuple((s, rng.choice(list_values(s, split)).canonical) for s in slots if s in chosen)
    values = {slot: list_values(slot, SPLITS[split]) for slot in LISTED}
    job, related = rng.choice(values["Occupation"]), rng.random() < SAME_GROUP
    schools = values["Educational Background"]
    school = rng.choice([v for v in schools if (v.attrs["group"] == job.attrs["group"]) == related])
    ages = list_ages(job), list_ages(school)
    low, high = max(some[0] for some in ages), min(some[-1] for some in ages)
    # most people are of middle age
    age = int(rng.triangular(low, high + 1, max(low, min(TYPICAL, high))) if low < high else low)
    (gender,) = rng.choices(tuple(GENDER_WEIGHTS), weights=tuple(GENDER_WEIGHTS.values()))
    facts = {"Age": str(age), "Gender": gender}
    facts |= {"Occupation": job.canonical, "Educational Background": school.canonical}
    for slot in LISTED:
        if slot not in facts:
            facts[slot] = rng.choice([v for v in values[slot] if age in list_ages(v)]).canonical
    return tuple((slot, facts[slot]) for slot in SLOTS)


def list_ages(value: Value) -> range:
    """The ages, from 18 to 82 years, of people who may have the value."""
    first = YEARS_OF_LEVEL.get(value.attrs.get("level", ""), YOUNGEST)
    first = max(first, int(value.attrs.get("min_age", YOUNGEST)))
    return range(first, int(value.attrs.get("max_age", OLDEST)) + 1)


def describe(items: tuple[tuple[str, str], ...], rng: random.Random) -> str:
    """Says every (slot, value) item once, gender as "man" or "woman"; without a Gender item "they"."""
    facts = dict(items)
    subject, possessive, reflexive = PRONOUNS[facts.get("Gender", "non-binary")]
    with_age = "Gender" in facts and rng.random() < 0.75
    rest = [(slot, v) for slot, v in items if slot != "Gender" and not (with_age and slot == "Age")]
    rng.shuffle(rest)
    predicates, lead, sentences = [], [], []  # verbs in <> are not inflected yet
    for slot, v in rest:
        frames = find_templates("persona", "tell", slot) or find_templates("persona", "any")
        holes = {"v": v, "a": add_article(v), "p": possessive, "r": reflexive, "slot": slot.lower()}
        predicates.append(realise(rng.choice(frames), rng, holes))
    if "Gender" in facts:
        age, noun, first = facts["Age"], GENDERS[facts["Gender"]][0], predicates.pop(0)
        # "an 18-year-old": the article follows the spoken number.
        article = "an" if age.startswith("8") or age in ("11", "18") else "a"
        holes = {"aged": f"{article} {age}-year-old {noun}", "noun": add_article(noun), "age": age}
        holes |= {"p1": first, "w1": _agree(first, "he")}
        lead.append(_write("lead" if with_age else "ageless", subject, rng, **holes))
    # Sentences of one to three predicates each; no opener comes twice.
    openers = [template.text for template in find_templates("persona", "opener")]
    rng.shuffle(openers)
    while predicates:
        size = rng.choice((1, 2, 2, 3))
        opener = openers.pop() if sentences and openers and rng.random() < 0.4 else "{S}"
        *parts, last = predicates[:size]
        said = f"{', '.join(parts)}{',' if len(parts) > 1 else ''} and {last}" if parts else last
        opener = opener.format(S=subject.capitalize(), s=subject)
        sentences.append(_agree(f"{opener} {said}.", subject))
        predicates = predicates[size:]
    return " ".join(lead + sentences)


def describe_manner(trait: Value | None, gender: str, rng: random.Random) -> str:
    """Tells a Personality Traits value and its pace, if it has one; neutral without a trait."""
    subject = PRONOUNS[gender][0]
    if trait is None:
        return _write("neutral", subject, rng)
    text = _write("trait", subject, rng, v=trait.canonical)
    pace = trait.attrs.get("pace")
    return f"{text} {_write('pace', subject, rng, pace)}" if pace else text


def _write(act: str, subject: str, rng: random.Random, slot: str = "", **holes: str) -> str:
    """A sentence of the persona grammar about "he", "she" or "they"."""
    holes |= {"s": subject, "S": subject.capitalize()}
    return _agree(realise(rng.choice(find_templates("persona", act, slot)), rng, holes), subject)


def _agree(text: str, subject: str) -> str:
    """Resolve every <verb>, written in the third person singular, for its subject."""

    def inflect(match: re.Match) -> str:
        word = IRREGULAR.get(match[1], match[1])
        ending = next(ending for ending in ENDINGS if word.endswith(ending))
        return word.removesuffix(ending) + ENDINGS[ending]

    return re.sub(r"<(\w+)>", inflect if subject == "they" else r"\1", text)
