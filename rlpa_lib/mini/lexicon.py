"""The values of the miniature world, and whether two phrasings mean the same (the overlap of eq. 2)."""

import random
import re
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib import resources
from itertools import dropwhile

from rlpa_lib.dialogue.profile import SLOTS
from rlpa_lib.personas.text import cut_ending

FOLDER = resources.files("rlpa_lib.mini")
LISTED = tuple(slot for slot in SLOTS if slot not in ("Age", "Gender"))  # slots with a file of values
GENDERS = {
    "male": ("man", "guy", "male person"), "female": ("woman", "lady", "female person"),
    "non-binary": ("non-binary person", "person beyond man and woman"),
}
UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
DECADES = ["", "", *"twenty thirty forty fifty sixty seventy eighty ninety".split()]
ARTICLES = {"a", "an", "the", "some"}
STOPWORDS = {*ARTICLES, *"of in on at and with who to for that is are from as".split()}
ENDINGS = ("ings", "ing", "ers", "ies", "er", "es", "ed", "s", "e")
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


@cache
def _load_lexicon() -> tuple[dict[str, list[Value]], dict[str, Value]]:
    """The values of each slot (the first line of a file names it), and the value of each normalised form.
    ValueError: a line that is no value, or a form that names two values."""
    by_slot, index = {}, {}
    for path in sorted((FOLDER / "lexicon").iterdir(), key=lambda path: path.name):
        slot = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ").partition(":")[0]
        by_slot[slot] = []
        for number, line in read_lines(f"lexicon/{path.name}"):
            split, *parts = line.split("\t")
            if len(parts) not in (1, 2) or split not in ("train", "test", "extended"):
                raise ValueError(f"{path.name}:{number}: expected split<TAB>forms[<TAB>attributes]")
            attrs = dict(pair.split("=", 1) for pair in "".join(parts[1:]).split(";") if pair)
            value = Value(slot, tuple(form.strip() for form in parts[0].split("|")), split, attrs)
            by_slot[slot].append(value)
            for form in value.forms:
                if index.setdefault(normalise(form), value) is not value:
                    raise ValueError(f"{path.name}: the form {form!r} names two values")
    return by_slot, index


def list_extended_slots() -> list[str]:
    """The slots of the open schema, in a fixed order."""
    return [slot for slot in _load_lexicon()[0] if slot not in SLOTS]


def list_values(slot: str, split: str | None = None) -> list[Value]:
    """The values of a slot, of one split or of all."""
    return [value for value in _load_lexicon()[0].get(slot, []) if split in (None, value.split)]


def find_value(phrase: str, slot: str | None = None) -> Value | None:
    """The value that a phrase names, or None; with `slot` only a value of that slot."""
    value = _load_lexicon()[1].get(normalise(phrase))
    return value if value and slot in (None, value.slot) else None


def read_lines(path: str) -> list[tuple[int, str]]:
    """(number from 1, line) of a text file of this package, without empty lines and comments."""
    lines = (FOLDER / path).read_text(encoding="utf-8").splitlines()
    return [(n, line) for n, line in enumerate(lines, 1) if line.strip() and line[0] != "#"]


def spell_number(n: int) -> str:
    """34 -> 'thirty-four' (0 to 99)."""
    return UNITS[n] if n < 20 else f"{DECADES[n // 10]}-{UNITS[n % 10]}".removesuffix("-zero")


def parse_age(phrase: str) -> int | None:
    """The years that a phrase names in digits or words, or None when there is no age or more than one."""
    found = {int(m) for m in re.findall(r"\b\d{1,3}\b", phrase)}
    words = re.findall(r"[a-z]+", phrase.lower())
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        if word in DECADES:
            found.add(10 * DECADES.index(word) + (UNITS.index(after) if after in UNITS[1:10] else 0))
        elif word in UNITS and before not in DECADES[2:]:
            found.add(UNITS.index(word))
    return found.pop() if len(found) == 1 else None


def find_gender(phrase: str) -> str | None:
    """'male', 'female' or 'non-binary' when exactly one of them is named, else None."""
    text = normalise(phrase)
    return next((g for g, forms in GENDERS.items() if text == g or text in forms), None)


READERS = {"Age": parse_age, "Gender": find_gender}  # of the slots without a file of values


@lru_cache(maxsize=65536)
def normalise(phrase: str) -> str:
    """Lower case, no punctuation, no leading article."""
    return " ".join(dropwhile(ARTICLES.__contains__, re.findall(r"[\w'-]+", phrase.lower())))


@lru_cache(maxsize=65536)
def _find_content_words(phrase: str) -> frozenset[str]:
    words = normalise(phrase).replace("-", " ").split()
    return frozenset(cut_ending(word, ENDINGS) for word in words if word not in STOPWORDS)


def _closeness(inferred: str, true: str) -> float:
    """Dice over content words without endings, 0 to 1; 0 when a word is exchanged or over 40 % of `inferred`
    is untrue."""
    got, want = _find_content_words(inferred), _find_content_words(true)
    common = len(got & want)
    if common < min(len(got), len(want)) or common < 0.6 * len(got) or not common:
        return 0.0
    return 2 * common / (len(got) + len(want))


def _same_phrase(inferred: str, true: str) -> bool:
    if normalise(inferred) == normalise(true):
        return True
    found, wanted = find_value(inferred), find_value(true)
    if found and wanted:
        return found is wanted
    if wanted is None:
        return _closeness(inferred, true) >= SIMILAR
    # An unlisted phrase must fit this value better than any other: "a bachelor's degree" fits many.
    own = max(_closeness(inferred, form) for form in wanted.forms)
    rivals = (form for value in list_values(wanted.slot) if value is not wanted for form in value.forms)
    return own >= SIMILAR and all(_closeness(inferred, form) < own for form in rivals)


@lru_cache(maxsize=65536)
def same_value(slot: str, inferred: str, true: str) -> bool:
    """Do two values of one slot mean the same? A list matches when at least half of its items are true and
    cover at least a third of the truth; where the truth is one item, every inferred item must match it."""
    if read := READERS.get(slot):
        return read(inferred) is not None and read(inferred) == read(true)
    if _same_phrase(inferred, true):
        return True
    if find_value(inferred) and find_value(true):
        return False
    parts = (re.split(r",\s*(?:and\s+)?|\s+and\s+|;\s*", phrase) for phrase in (inferred, true))
    got, want = ([part for part in some if part.strip()] for some in parts)
    if len(got) == 1 and len(want) == 1:
        return False
    hits = sum(any(_same_phrase(g, w) for w in want) for g in got)
    if len(want) == 1:
        return hits == len(got)
    covered = sum(any(_same_phrase(g, w) for g in got) for w in want)
    return hits * 2 >= len(got) and covered * 3 >= len(want)


def are_compatible(inferred: str, true: str) -> bool:
    """May two slots be compared? Same names only, but Extended ALOE's keys are free (appendix C.2)."""
    return inferred.lower() == true.lower() or (true not in SLOTS and inferred not in READERS)


def change_value(slot: str, value: str, rng: random.Random) -> str | None:
    """Another value of the slot, or None: an age at least two years off, else a value of the same split."""
    if slot == "Age":
        years = parse_age(value)
        return None if years is None else str(rng.choice([n for n in range(18, 90) if abs(n - years) >= 2]))
    if slot == "Gender":
        return rng.choice([name for name in GENDERS if name != find_gender(value)])
    own = find_value(value, slot)
    others = [other for other in list_values(slot, own.split if own else None) if other is not own]
    return rng.choice(rng.choice(others).forms) if others else None
