"""Slot conversion by rules (appendix C.2): what a description and a personality text say about the ten slots.

A rule gives its slot's value, or None if the text says nothing. Values hold no pronoun and fit the slot's
frame: "I am / have / enjoy / live in ___".
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable

from rlpa_lib.dialogue.profile import SLOTS, Profile
from rlpa_lib.personas.interests import find_interests
from rlpa_lib.personas.text import (
    KIN,
    NUMBER,
    PRONOUN,
    cut_clause,
    drop_pronouns,
    find_gender,
    join_items,
    split_sentences,
)  # fmt: skip
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
    return {slot: value for slot, text in texts.items() if (value := _RULES[slot](text))}


def hash_text(text: str) -> str:
    """Hex SHA-256 of the stripped text: identifies a text that may not be copied."""
    return hashlib.sha256(text.strip().encode("utf-8")).hexdigest()


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


_OCCUPATION_END = re.compile(
    r"\s+(?:who|that|whose|with|working|studying|majoring|specializing|from|at|in|living|based|for|on)\b"
    r"|,|\s+and\s+(?:an?|avid)\s"
)
_NO_JOB = r"\b(?:mother|father|mom|dad|man|woman|person|guy|girl|boy|grandmother|grandfather|lover|fan)\b"


def _find_occupation(text: str) -> str | None:
    """Noun phrase without article: "freelance graphic designer"."""
    first = next(iter(split_sentences(text)), "")
    match = re.search(r"\byears?[- ]old\s+(.+)", first)
    match = match or re.match(r"(?:he|she|they)(?:'s|'re| is| are)\s+(?:an?\s+)(.+)", first, re.IGNORECASE)
    head = _OCCUPATION_END.split(cut_clause(match[1]))[0].strip() if match else ""
    epithets = "single|married|divorced|widowed|avid|passionate|dedicated|energetic|proud"
    head = re.sub(rf"^(?:(?:{epithets})\s+)+", "", head)
    if not head or re.search(_NO_JOB, head):
        work = re.search(r"\bwork(?:s|ing)?\s+(?:\w+-time\s+)?as\s+(?:an?\s+)?(.+)", text)
        head = _OCCUPATION_END.split(cut_clause(split_sentences(work[1])[0]))[0].strip() if work else ""
    return drop_pronouns(head) or None


_IS = (
    r"(?:\b(?:is|are|was|been|got|get|currently|recently|happily|just|newly|and|old|now|a|still)|'s|'re)\s+"
    r"(?:(?:a|an|happily|currently|recently|newly|also|just|still)\s+)*"
)
_MARITAL = {
    "widowed": rf"{_IS}(?:widow|widower|widowed)\b",
    "divorced": rf"{_IS}(?:divorced|divorcee)\b|\bgot divorced\b|\bex-(?:wife|husband)\b",
    "engaged": rf"{_IS}engaged\b(?!\s+(?:in|with)\b)|\b(?:his|her|their)\s+fianc\S+"
    r"|\bplanning\s+(?:his|her|their|a\s+\w+)\s+wedding\b",
    "married": rf"{_IS}married\b|\b(?:his|her|their)\s+(?:wife|husband|spouse)\b"
    r"|\bhas\s+a\s+(?:\w+\s+)?(?:wife|husband)\b|\bnewlywed\b",
    "in a relationship": r"\bin\s+an?\s+(?:[\w-]+\s+){0,2}relationship\b"
    r"|\b(?:his|her|their|has\s+an?|with\s+an?)\s+(?:[\w-]+\s+)?(?:girlfriend|boyfriend)\b"
    r"|\blives\s+with\s+(?:his|her)\s+(?:\w+\s+)?partner\b|\bis\s+dating\b",
    "single": rf"{_IS}single\b(?!-)",
}


def _find_marital_status(text: str) -> str | None:
    """One of the keys of _MARITAL; statements about relatives are skipped."""
    for sentence in split_sentences(text):
        sentence = re.sub(rf"\b{KIN}\s+who\s+(?:is|are|was|got|has)\b[^,]*", "", sentence)
        for status, pattern in _MARITAL.items():
            if re.search(pattern, sentence, re.IGNORECASE):
                return status
    return None


_AT_HOME = re.compile(
    rf"\blives?\s+with\s+{PRONOUN}\s+((?:(?:older|younger|elderly|twin)\s+)?"
    r"(?:parents|brother|sister|siblings|family|grandparents|mother|father))\b"
)
_KIN_PHRASE = rf"(?:(?:{NUMBER}|no|twin)\s+(?:[a-z'-]+\s+){{0,3}}?{KIN})\b"
_KIN_MORE = (
    rf"(?:\s+and\s+{_KIN_PHRASE})?"
    r"(?:\s+(?:who\s+(?:is|are|lives?|works?|studies)|in\s+(?:college|high|middle|elementary))\b[^,;]*?)?"
    r"(?=,|;|$|\s+and\s)"
)
_OWN = r"\b(?:has|have|with|of|to|raising|and|his|her|adopted)\s+"
_FAMILY = re.compile(rf"{_OWN}({_KIN_PHRASE}{_KIN_MORE}|{_KIN_PHRASE})")


def _find_family(text: str) -> str | None:
    """Noun phrase for "I have ___": "two teenage sons", "a twin sister who lives abroad"; at most two."""
    found: list[str] = []
    for sentence in split_sentences(text):
        for match in _FAMILY.finditer(sentence):
            phrase = drop_pronouns(re.sub(r"\b(?:who|which)\s.*\b(?:his|her|he|she)\b.*", "", match[1]))
            if re.search(r"\bgrand(?:father|mother|parent)\s+(?:to|of)\s+$", sentence[: match.start(1)]):
                phrase = re.sub(r"\b(?:children|kids)\b", "grandchildren", phrase)
            if phrase and phrase not in found:
                found.append(phrase)
        parents = r"\b(?:single\s+)?(?:mother|father|mom|dad)\s+of\s+(two|three|four|five)\b(?!\s+\w)"
        if parent := re.search(parents, sentence):
            found.append(f"{parent[1]} children")
        home = _AT_HOME.search(sentence)
        if home and not found:
            found.append(f"{'' if home[1].endswith('s') else 'a '}{home[1]} at home")
    if not found and (spouse := re.search(r"\bmarried\s+to\s+(an?\s+.+)", text)):
        found = [f"a spouse who works as {cut_clause(split_sentences(spouse[1])[0])}"]
    return join_items(found[:2]) or None


_SHARED_HOME = r"\bshares?\s+(an?\s+(?:[\w-]+\s+){0,3}?(?:room|apartment|house|flat|loft|condo|studio))\b"
_PETS = re.compile(
    r"\b(?:cats?|dogs?|pet|pets|parrot|rabbits?|hamsters?|turtle|tortoise|snake|ferret|iguana|fish|bird"
    r"|horses?|retriever|labrador|beagle|dachshund|pig|bulldog|bull|poodle|puppy|kitten|husky|shepherd|corgi"
    r"|terrier|gecko|lizard|chickens|aquarium|chinchilla)\b",
    re.IGNORECASE,
)


def _find_location(text: str) -> str | None:
    """Noun phrase for "I live in ___": "a small apartment in the city"."""
    for sentence in split_sentences(text):
        sentence = re.sub(rf"\b{KIN}\s+who\s+[^,;]*$", "", sentence)
        match = re.search(r"\b(?:lives?|resides?|living|based)\s+(in|near|by|at|on|with)\s+([^;]+)", sentence)
        home = re.search(_SHARED_HOME, sentence)
        value = _name_place(match[1], match[2]) if match else (home[1] if home else None)
        if value:
            return value
    return None


def _name_place(preposition: str, rest: str) -> str | None:
    rest = cut_clause(rest).split(",")[0]
    if preposition == "with":
        inside = re.search(r"\s(?:in|near|by)\s+(an?\s.+|the\s.+|[A-Z].+)$", rest)
        if inside:
            return drop_pronouns(inside[1])
        people = re.sub(r"^(?:his|her|their)\s+", "a ", re.split(r"\s+and\s+", rest)[0])
        if _PETS.search(people) or not people:
            return None
        return "a home shared with " + re.sub(r"^a\s+(?=.*s$)", "", people)
    rest = re.split(r"\s+with\s+(?=(?:his|her|their|\w+\s+(?:\w+\s+)?(?:cats?|dogs?|pets?)\b))", rest)[0]
    value = drop_pronouns(rest)
    return f"a place {preposition} {value}" if preposition in ("near", "by", "on") else value or None


_TITLE = r"degree|diploma|certificate|certification|doctorate|PhD|MBA|MD|qualification|bachelor's|master's"
_STUDENT = r"student|freshman|sophomore|junior|senior"
_STUDIES = r"(?:studying(?! for)|majoring in)\s+([^;]+)"
_TITLED = rf"((?:an?|two)\s+(?:(?!and\b|with\b|{KIN}\b)[\w'-]+\s+){{0,4}}?(?:{_TITLE})\b[^;]*)"
_UNFINISHED = r"(?:an?|his|her|their)\s+([^;]*?(?:degree|diploma|PhD|MBA)\b[^;]*)"
# The first pattern that matches gives the value.
_EDUCATION = {
    rf"\b(?:has|holds|earned|obtained|with|received)\s+{_TITLED}": "{}",
    r"\b(?:studying|studies)\s+for\s+an?\s+([^;]+?degree[^;]*)": "an unfinished {}",
    rf"\b(?:pursuing|completing|finishing)\s+{_UNFINISHED}": "an unfinished {}",
    r"\bnever (?:went to|attended) college\b": "no college degree",
    r"\bdropped out of college\b|\bcollege dropout\b": "an unfinished college degree",
    rf"\b(?:{_STUDENT})\s+(?:who\s+is\s+)?{_STUDIES}": "an unfinished degree in {}",
    rf"^(?:he|she|they|He|She|They)\s+(?:is|are)\s+(?:currently\s+)?{_STUDIES}": "an unfinished degree in {}",
    r"\byears?[- ]old\s+(?!(?:college|university|high)\b)((?:\w+\s+){1,2}?)student\b": (
        "an unfinished {} degree"
    ),
    r"\bgraduated\s+(?:with\s+)?(an?\s+[^;]*degree[^;]*)": "{}",
    r"\bgraduated\s+from\s+([^;]+)": "a degree from {}",
    r"\bstudied\s+([^;]+)": "a training in {}",
    r"\battended\s+(culinary|art|film|music|drama|law|medical|business) school\b": "a {} school education",
}


def _find_education(text: str) -> str | None:
    """Noun phrase for "I have ___": "a PhD degree in computer science"."""
    for sentence in split_sentences(text):
        for pattern, template in _EDUCATION.items():
            if match := re.search(pattern, sentence):
                study = cut_clause(re.split(r",|\s+and\s+(?=an?\s)", match[1])[0]) if match.groups() else ""
                value = drop_pronouns(template.format(study))
                return re.sub(r"\b(?:Bachelor|Master|Associate|Doctor)\b", lambda m: m[0].lower(), value)
    return None


_TRAIT_END = re.compile(
    r"\s+(?:to|in|with|of|when|who|for|at|by)\s|\s+and\s+(?:often|always|loves|enjoys|prefers)\b"
)
_ADJECTIVE = re.compile(r"(?!.*(?:ing|ly)$)[a-z][a-z-]{3,}")
# Words that say nothing without what follows them ("able to ...").
_INCOMPLETE = "able eager full affected capable sticks willing always known afraid ready good great".split()
_ADVERBS = re.compile(
    r"\b(?:very|also|quite|really|highly|extremely|remarkably|incredibly|deeply|always|often|so|truly"
    r"|a little bit|a bit|somewhat|well-known|naturally)\s+"
)


def _find_traits(text: str) -> str | None:
    """Up to three traits for "I am ___": adjectives; with fewer than two also nouns ("a great listener")."""
    adjectives: list[str] = []
    nouns: list[str] = []
    for sentence in split_sentences(text):
        match = re.match(r"(?:he|she|they)(?:'s|'re|\s+is|\s+are)\s+(.+)", sentence, re.IGNORECASE)
        head = _TRAIT_END.split(match[1])[0] if match else ""
        for part in re.split(r",\s*|\s+and\s+", _ADVERBS.sub("", head))[:3]:
            words = _ADVERBS.sub("", part).split()
            if len(words) == 1 and _ADJECTIVE.fullmatch(words[0]) and words[0] not in _INCOMPLETE:
                adjectives.append(words[0])
                continue
            if words and words[0] in ("a", "an") and len(words) <= 4:
                nouns.append(re.sub(r"^a (?=[aeio])", "an ", " ".join(words)))
            break
    traits = dict.fromkeys(adjectives)
    return join_items(list(traits if len(traits) > 1 else dict.fromkeys(adjectives + nouns))[:3]) or None


_NOT_OWNED = re.compile(
    rf"\b(?:{_TITLE}|degree|{KIN}|goal|dream|passion|interest|hobby|job|career|love|sense|friends?|roommates?"
    r"|relationship|following|membership|custody|education|diploma|wedding)\b"
    r"|^a (?:\w+ )?collection(?: at home)?$"
)


def _find_others(text: str) -> str | None:
    """At most two noun phrases for "I have ___" that fit no other slot: pets first, then collections."""
    ranked: list[tuple[int, str]] = []
    for sentence in split_sentences(text):
        for match in re.finditer(rf"\b(has|have|owns|with)\s+(?:also\s+)?((?:{NUMBER})\s+[^;]+)", sentence):
            value = drop_pronouns(cut_clause(re.split(r",|\s+(?:dedicated|on|featuring)\s", match[2])[0]))
            rank = 0 if _PETS.search(value) else 1 if "collection" in value else 2
            owned = match[1] != "with" or rank == 0
            if owned and 1 < len(value.split()) <= 9 and not _NOT_OWNED.search(value):
                ranked.append((rank, value))
        if fluent := re.search(r"\bfluent\s+in\s+([^;,]+)", sentence):
            ranked.append((2, f"a good command of {cut_clause(fluent[1])}"))
        diets = r"\b(vegan|vegetarian|gluten[- ]intolerant)\b(?!\s+(?:recipe|dish|cook|food))"
        if diet := re.search(diets, sentence):
            gluten = diet[1].startswith("gluten")
            ranked.append((2, "a gluten intolerance" if gluten else f"a {diet[1]} diet"))
    values = dict.fromkeys(value for _, value in sorted(ranked, key=lambda pair: pair[0]))
    return join_items(list(values)[:2]) or None


_RULES: dict[str, Callable[[str], str | None]] = {
    "Age": _find_age, "Gender": find_gender, "Interests": find_interests,
    "Educational Background": _find_education, "Personality Traits": _find_traits,
    "Occupation": _find_occupation, "Marital Status": _find_marital_status, "Family Background": _find_family,
    "Location": _find_location, "Others": _find_others,
}
