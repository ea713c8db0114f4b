"""Slot conversion by rules (appendix C.2): what a description and a personality text say about the ten slots,
and sentences such as "I have a dog named Max." about slots with free keys.

A rule gives its slot's value, or None if the text says nothing. Values hold no pronoun and fit the slot's
frame: "I am / have / enjoy / live in ___". Word lists and tables of patterns are in this folder's .tsv files.
"""

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from operator import itemgetter

from rlpa_lib.dialogue.profile import SLOTS, Profile
from rlpa_lib.personas.interests import find_interests
from rlpa_lib.personas.text import (
    cut_clause,
    drop_pronouns,
    fill_in,
    find_gender,
    join_items,
    make_gerund,
    read_rows,
    split_sentences,
)
from rlpa_lib.settings.kinds import resolve


def extract_profile(description: str, personality: str, seed: int = 0) -> Profile:
    """All ten slots from two texts. A slot without evidence is listed in `Profile.filled` and gets a training
    value of the built-in world that depends only on the texts, the slot and `seed`."""
    found = find_evidence(description, personality)
    values = dict(found)
    for slot in SLOTS:
        if slot not in values:
            rng = random.Random(f"{seed}|{slot}|{hash_text(description)}|{hash_text(personality)}")
            values[slot] = _invent(slot, values.get("Age"), rng)
    return Profile(tuple((slot, values[slot]) for slot in SLOTS), frozenset(SLOTS) - found.keys())


def find_evidence(description: str, personality: str) -> dict[str, str]:
    """Slot -> value for the slots with evidence, in the order of `profile.SLOTS`."""
    texts = {slot: personality if slot == "Personality Traits" else description for slot in SLOTS}
    return {slot: value for slot, text in texts.items() if (value := _find(slot, text))}


@cache
def _find(slot: str, text: str) -> str | None:
    """By the slot's rule; kept, since ALOE meets a profile with many personalities."""
    return _RULES[slot](text)


def extract_free_profile(lines: Sequence[str]) -> Profile:
    """One item per sentence, none for empty lines. Keys come from free_slots.tsv, repeated ones numbered.

    Other sentences are kept whole, in lower case, as "Fact 1", "Fact 2", ...
    """
    items: dict[str, str] = {}
    for line in lines:
        if sentence := " ".join(" ".join(split_sentences(line)).lower().split()):
            key, value = _extract_item(sentence)
            if value not in items.values():
                names = (f"{key} {number}" if number > 1 or key == "Fact" else key for number in count(1))
                items[next(name for name in names if name not in items)] = value
    return Profile(tuple(items.items()))


def hash_text(text: str) -> str:
    """Hex SHA-256 of the stripped text: identifies a text that may not be copied."""
    return hashlib.sha256(text.strip().encode("utf-8")).hexdigest()


def _extract_item(sentence: str) -> tuple[str, str]:
    """(key, value) by the first rule that fits the whole sentence and leaves a value."""
    for key, pattern, template in read_rows("free_slots.tsv"):
        match = re.fullmatch(fill_in(pattern), sentence)
        if match is None:
            continue
        verb, _, rest = " ".join(match.groups()).partition(" ")
        value = f"{make_gerund(verb)} {rest}".strip() if template == "{gerund}" else match.expand(template)
        about_me = key == "Family" and re.search(r"\b(?:i|me|my)\b", value)
        if key == "Education":
            named = re.search("school|university|college", value)
            value = re.sub("^studies:", "studies at" if named else "studies of", value)
        if key == "Favorite":
            key = f"Favorite {drop_pronouns(match[1]).title()}"
        value = drop_pronouns(re.sub(r"\b(?:i|me|myself|mine)\b", "", value))
        if value and not about_me:
            return key, value
    return "Fact", sentence


def _invent(slot: str, age: str | None, rng: random.Random) -> str:
    if slot == "Age":
        return str(rng.randint(20, 68))
    if slot == "Gender":
        return rng.choice(("male", "female"))
    # resolved by name, as in settings.kinds: this room may not import mini
    fitting = resolve("mini.world:list_values")(slot, int(age) if age else 99)
    return join_items(rng.sample(fitting, 2)) if slot == "Interests" else rng.choice(fitting)


def _find_age(text: str) -> str | None:
    stated = r"\b(?:is|am|aged?|turned)\s+(\d{1,3})\b(?!\s*(?:feet|kids|children|cats|dogs))"
    match = re.search(rf"\b(\d{{1,3}})[- ]years?[- ]old\b|{stated}", text)
    return (match[1] or match[2]) if match else None


def _find_occupation(text: str) -> str | None:
    """Noun phrase without article: "freelance graphic designer"."""
    first = next(iter(split_sentences(text)), "")
    match = re.search(r"\byears?[- ]old\s+(.+)", first)
    match = match or re.match(r"(?i)(?:he|she|they)(?:'s|'re| is| are)\s+(?:an?\s+)(.+)", first)
    end = fill_in("<OCCUPATION_END>")
    head = re.split(end, cut_clause(match[1]))[0].strip() if match else ""
    epithets = "single|married|divorced|widowed|avid|passionate|dedicated|energetic|proud"
    head = re.sub(rf"^(?:(?:{epithets})\s+)+", "", head)
    if not head or re.search(fill_in("<NO_JOB>"), head):
        work = re.search(r"\bwork(?:s|ing)?\s+(?:\w+-time\s+)?as\s+(?:an?\s+)?(.+)", text)
        head = re.split(end, cut_clause(split_sentences(work[1])[0]))[0].strip() if work else ""
    return drop_pronouns(head) or None


def _find_marital_status(text: str) -> str | None:
    """One of the values of ten_slots.tsv; statements about relatives are skipped."""
    relative = fill_in(r"\b<KIN>\s+who\s+(?:is|are|was|got|has)\b[^,]*")
    for sentence in split_sentences(text):
        own = re.sub(relative, "", sentence)
        for slot, pattern, status in read_rows("ten_slots.tsv"):
            if slot == "Marital Status" and re.search(fill_in(pattern), own):
                return status
    return None


def _find_family(text: str) -> str | None:
    """Noun phrase for "I have ___": "two teenage sons", "a twin sister who lives abroad"; at most two."""
    found: list[str] = []
    for sentence in split_sentences(text):
        for match in re.finditer(fill_in("<FAMILY>"), sentence):
            phrase = drop_pronouns(re.sub(r"\b(?:who|which)\s.*\b(?:his|her|he|she)\b.*", "", match[1]))
            if re.search(r"\bgrand(?:father|mother|parent)\s+(?:to|of)\s+$", sentence[: match.start(1)]):
                phrase = re.sub(r"\b(?:children|kids)\b", "grandchildren", phrase)
            if phrase and phrase not in found:
                found.append(phrase)
        parents = r"\b(?:single\s+)?(?:mother|father|mom|dad)\s+of\s+(two|three|four|five)\b(?!\s+\w)"
        if parent := re.search(parents, sentence):
            found.append(f"{parent[1]} children")
        home = re.search(fill_in("<AT_HOME>"), sentence)
        if home and not found:
            found.append(f"{'' if home[1].endswith('s') else 'a '}{home[1]} at home")
    if not found and (spouse := re.search(r"\bmarried\s+to\s+(an?\s+.+)", text)):
        found = [f"a spouse who works as {cut_clause(split_sentences(spouse[1])[0])}"]
    return join_items(found[:2]) or None


def _find_location(text: str) -> str | None:
    """Noun phrase for "I live in ___": "a small apartment in the city"."""
    for sentence in split_sentences(text):
        sentence = re.sub(fill_in(r"\b<KIN>\s+who\s+[^,;]*$"), "", sentence)
        match = re.search(r"\b(?:lives?|resides?|living|based)\s+(in|near|by|at|on|with)\s+([^;]+)", sentence)
        home = re.search(fill_in("<SHARED_HOME>"), sentence)
        value = _name_place(match[1], match[2]) if match else (home[1] if home else None)
        if value:
            return value
    return None


def _name_place(preposition: str, rest: str) -> str | None:
    rest = cut_clause(rest).split(",")[0]
    if preposition == "with":
        if inside := re.search(r"\s(?:in|near|by)\s+(an?\s.+|the\s.+|[A-Z].+)$", rest):
            return drop_pronouns(inside[1])
        people = re.sub(r"^(?:his|her|their)\s+", "a ", re.split(r"\s+and\s+", rest)[0])
        if re.search(fill_in("<PETS>"), people) or not people:
            return None
        return "a home shared with " + re.sub(r"^a\s+(?=.*s$)", "", people)
    rest = re.split(r"\s+with\s+(?=(?:his|her|their|\w+\s+(?:\w+\s+)?(?:cats?|dogs?|pets?)\b))", rest)[0]
    value = drop_pronouns(rest)
    return f"a place {preposition} {value}" if preposition in ("near", "by", "on") else value or None


def _find_education(text: str) -> str | None:
    """Noun phrase for "I have ___": "a PhD degree in computer science"."""
    for sentence in split_sentences(text):
        for slot, pattern, template in read_rows("ten_slots.tsv"):
            if slot == "Educational Background" and (match := re.search(fill_in(pattern), sentence)):
                study = cut_clause(re.split(r",|\s+and\s+(?=an?\s)", match[1])[0]) if match.groups() else ""
                value = drop_pronouns(template.format(study))
                return re.sub(r"\b(?:Bachelor|Master|Associate|Doctor)\b", lambda m: m[0].lower(), value)
    return None


def _find_traits(text: str) -> str | None:
    """Up to three traits for "I am ___": adjectives; with fewer than two also nouns ("a great listener")."""
    adjectives: list[str] = []
    nouns: list[str] = []
    adverbs, adjective = fill_in("<TRAIT_ADVERBS>"), fill_in("<ADJECTIVE>")
    for sentence in split_sentences(text):
        match = re.match(r"(?i)(?:he|she|they)(?:'s|'re|\s+is|\s+are)\s+(.+)", sentence)
        head = re.split(fill_in("<TRAIT_END>"), match[1])[0] if match else ""
        for part in re.split(r",\s*|\s+and\s+", re.sub(adverbs, "", head))[:3]:
            words = re.sub(adverbs, "", part).split()
            if len(words) == 1 and re.fullmatch(adjective, words[0]):
                adjectives.append(words[0])
                continue
            if words and words[0] in ("a", "an") and len(words) <= 4:
                nouns.append(re.sub(r"^a (?=[aeio])", "an ", " ".join(words)))
            break
    traits = dict.fromkeys(adjectives)
    return join_items(list(traits if len(traits) > 1 else dict.fromkeys(adjectives + nouns))[:3]) or None


def _find_others(text: str) -> str | None:
    """At most two noun phrases for "I have ___" that fit no other slot: pets first, then collections."""
    ranked: list[tuple[int, str]] = []
    for sentence in split_sentences(text):
        has = fill_in(r"\b(has|have|owns|with)\s+(?:also\s+)?((?:<NUMBER>)\s+[^;]+)")
        for match in re.finditer(has, sentence):
            value = drop_pronouns(cut_clause(re.split(r",|\s+(?:dedicated|on|featuring)\s", match[2])[0]))
            rank = 0 if re.search(fill_in("<PETS>"), value) else 1 if "collection" in value else 2
            owned = match[1] != "with" or rank == 0
            if owned and 1 < len(value.split()) <= 9 and not re.search(fill_in("<NOT_OWNED>"), value):
                ranked.append((rank, value))
        if fluent := re.search(r"\bfluent\s+in\s+([^;,]+)", sentence):
            ranked.append((2, f"a good command of {cut_clause(fluent[1])}"))
        if diet := re.search(fill_in("<DIET>"), sentence):
            gluten = diet[1].startswith("gluten")
            ranked.append((2, "a gluten intolerance" if gluten else f"a {diet[1]} diet"))
    values = dict.fromkeys(value for _, value in sorted(ranked, key=itemgetter(0)))
    return join_items(list(values)[:2]) or None


_RULES: dict[str, Callable[[str], str | None]] = {
    "Age": _find_age, "Gender": find_gender, "Interests": find_interests,
    "Educational Background": _find_education, "Personality Traits": _find_traits,
    "Occupation": _find_occupation, "Marital Status": _find_marital_status, "Family Background": _find_family,
    "Location": _find_location, "Others": _find_others,
}
