"""The values of the miniature world and the question whether two phrasings mean the same (the overlap of eq. 2)."""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib import resources

from rlpa_lib.dialogue.profile import SLOTS

FILES = {"Interests": "interests", "Educational Background": "education", "Personality Traits": "personality",
         "Occupation": "occupation", "Marital Status": "marital", "Family Background": "family",
         "Location": "location", "Others": "others"}
GENDERS = {"male": ("man", "guy", "male person"), "female": ("woman", "lady", "female person"),
           "non-binary": ("non-binary person", "person beyond man and woman")}
UNITS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
         "seventeen eighteen nineteen").split()
TENS = dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), range(20, 100, 10), strict=True))
ARTICLES = {"a", "an", "the", "some"}
STOPWORDS = ARTICLES | {"of", "in", "on", "at", "and", "with", "who", "to", "for", "that", "is", "are", "from", "as"}
SIMILAR = 0.6  # closeness from which two phrasings count as the same


@dataclass(frozen=True)
class Value:
    """One value of a slot: its forms are phrasings of the same thing, the first is canonical."""

    slot: str
    forms: tuple[str, ...]
    split: str
    attrs: dict[str, str] = field(default_factory=dict, hash=False, compare=False)

    @property
    def canonical(self) -> str:
        return self.forms[0]


@dataclass(frozen=True)
class Lexicon:
    """All values; `index` maps a normalised form to its value."""

    by_slot: dict[str, tuple[Value, ...]]
    extended_slots: tuple[str, ...]
    index: dict[str, Value]

    def values(self, slot: str, split: str | None = None) -> tuple[Value, ...]:
        return tuple(v for v in self.by_slot.get(slot, ()) if split is None or v.split == split)

    def find(self, phrase: str, slot: str | None = None) -> Value | None:
        """The value that a phrase names, or None; with `slot` only a value of that slot."""
        value = self.index.get(normalise(phrase))
        return value if value and slot in (None, value.slot) else None


def number_word(n: int) -> str:
    """34 -> 'thirty-four' (0 to 99)."""
    if n < 20:
        return UNITS[n]
    tens = next(word for word, base in TENS.items() if base == n // 10 * 10)
    return tens if n % 10 == 0 else f"{tens}-{UNITS[n % 10]}"


def parse_age(phrase: str) -> int | None:
    """The age in years that a phrase names in digits or words, or None when there is none or more than one."""
    found = {int(m) for m in re.findall(r"\b\d{1,3}\b", phrase)}
    words = re.findall(r"[a-z]+", phrase.lower())
    for i, word in enumerate(words):
        if word in TENS:
            unit = UNITS.index(words[i + 1]) if i + 1 < len(words) and words[i + 1] in UNITS[1:10] else 0
            found.add(TENS[word] + unit)
        elif word in UNITS and (i == 0 or words[i - 1] not in TENS):
            found.add(UNITS.index(word))
    return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=65536)
def normalise(phrase: str) -> str:
    """Lower case, no punctuation, no leading article."""
    words = re.findall(r"[\w'-]+", phrase.lower())
    while words and words[0] in ARTICLES:
        words = words[1:]
    return " ".join(words)


def _stem(word: str) -> str:
    for suffix in ("ings", "ing", "ers", "ies", "er", "es", "ed", "s", "e"):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[: -len(suffix)]
    return word


@lru_cache(maxsize=65536)
def content_words(phrase: str) -> frozenset[str]:
    return frozenset(_stem(w) for w in normalise(phrase).replace("-", " ").split() if w not in STOPWORDS)


def _members(phrase: str) -> list[str]:
    return [part for part in re.split(r",\s*(?:and\s+)?|\s+and\s+|;\s*", phrase) if part.strip()]


def _closeness(inferred: str, true: str) -> float:
    """Dice over stemmed content words, in [0, 1]; 0 when a word is exchanged ("two older sisters" are not "two older
    brothers"), or when most of what was inferred is not in the truth, so that two values run together match neither."""
    got, want = content_words(inferred), content_words(true)
    common = len(got & want)
    if common < min(len(got), len(want)) or common < 0.6 * len(got) or not common:
        return 0.0
    return 2 * common / (len(got) + len(want))


def _same_phrase(inferred: str, true: str) -> bool:
    if normalise(inferred) == normalise(true):
        return True
    found, wanted = lexicon().find(inferred), lexicon().find(true)
    if found and wanted:
        return found is wanted
    if wanted is None:
        return _closeness(inferred, true) >= SIMILAR
    # A phrase that the lexicon does not list must fit this value better than any other: "a bachelor's degree" fits many.
    own = max(_closeness(inferred, form) for form in wanted.forms)
    others = (form for value in lexicon().values(wanted.slot) if value is not wanted for form in value.forms)
    return own >= SIMILAR and all(_closeness(inferred, form) < own for form in others)


@lru_cache(maxsize=65536)
def same_value(slot: str, inferred: str, true: str) -> bool:
    """Do two values of one slot mean the same? A list matches when at least half of what was inferred is true
    and it covers at least a third of the truth, so that neither padding nor a single lucky word is enough. Where the
    truth is one thing, two guesses at it do not match."""
    if slot == "Age":
        return parse_age(inferred) is not None and parse_age(inferred) == parse_age(true)
    if slot == "Gender":
        return gender_of(inferred) is not None and gender_of(inferred) == gender_of(true)
    if _same_phrase(inferred, true):
        return True
    if lexicon().find(inferred) and lexicon().find(true):
        return False
    got, want = _members(inferred), _members(true)
    if len(got) == 1 and len(want) == 1:
        return False
    hits = sum(any(_same_phrase(g, w) for w in want) for g in got)
    covered = sum(any(_same_phrase(g, w) for g in got) for w in want)
    if len(want) == 1:
        return hits == len(got)
    return hits * 2 >= len(got) and covered * 3 >= len(want)


def gender_of(phrase: str) -> str | None:
    """'male', 'female' or 'non-binary' when exactly one of them is named, else None."""
    text = normalise(phrase)
    return next((g for g, forms in GENDERS.items() if text == g or text in forms), None)


def slots_compatible(inferred: str, true: str) -> bool:
    """Items are compared within a slot; where the schema is open (Extended ALOE) keys are free (appendix C.2)."""
    return inferred.lower() == true.lower() or (true not in SLOTS and inferred not in ("Age", "Gender"))


def _parse_line(path: str, number: int, line: str, slot: str) -> Value:
    parts = line.rstrip("\n").split("\t")
    if len(parts) not in (2, 3) or parts[0] not in ("train", "test", "extended"):
        raise ValueError(f"{path}:{number}: expected split<TAB>forms[<TAB>attributes]")
    attrs = dict(pair.split("=", 1) for pair in parts[2].split(";") if pair) if len(parts) == 3 else {}
    return Value(slot, tuple(f.strip() for f in parts[1].split("|")), parts[0], attrs)


def _read(path) -> tuple[str | None, list[str]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    name = lines[0].lstrip("# ").strip() if lines and lines[0].startswith("#") else None
    return name, lines


@cache
def lexicon() -> Lexicon:
    """Read the value files that ship with the package (once)."""
    folder = resources.files("rlpa_lib.mini") / "lexicon"
    files = {slot: folder / f"{stem}.tsv" for slot, stem in FILES.items()}
    extended = {_read(p)[0]: p for p in sorted(folder.iterdir(), key=lambda p: p.name) if p.name.startswith("ext_")}
    by_slot, index = {}, {}
    for slot, path in (files | extended).items():
        values = tuple(_parse_line(path.name, i, line, slot) for i, line in enumerate(_read(path)[1], 1)
                       if line.strip() and not line.startswith("#"))
        by_slot[slot] = values
        for value in values:
            for form in value.forms:
                if index.setdefault(normalise(form), value) is not value:
                    raise ValueError(f"{path.name}: the form {form!r} names two values")
    return Lexicon(by_slot, tuple(extended), index)
