"""The grammar that users and assistants of the miniature speak: generation, and parsing into facts."""

import random
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache

from rlpa_lib.dialogue.profile import SLOTS
from rlpa_lib.mini import lexicon as lex

CHOICE = re.compile(r"\[([^\]]*)\]")
HOLE = re.compile(r"\{(a:)?([^}]*)\}")
RIGHT_ARTICLE = "(?:an (?=[aeiouAEIOU])|a (?![aeiouAEIOU]))"
# Slots whose values also fit the frames for interests.
TOPIC_LIKE = (
    "Favorite Food", "Favorite Music", "Language", "Favorite Film Genre", "Sport to Watch", "Life Goal",
    "Favorite Drink",
)
CONTENT_ACTS = {"ack", "suggest", "info"}


@dataclass(frozen=True)
class Template:
    """One line of a grammar file: an act, the slots it speaks of, and the sentence with choices and holes."""

    id: str
    act: str
    slots: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Sentence:
    """A parsed sentence: its template, and what stands in the holes, as (slot, phrase)."""

    template: Template
    facts: tuple[tuple[str, str], ...]

    @property
    def key(self) -> tuple:
        """What may not come twice: the slot of a question, whatever its wording, else the sentence."""
        return self.template.slots if self.template.act == "ask" else (self.template.id, self.facts)


def add_article(phrase: str) -> str:
    """'a nurse', 'an engineer' (by the first letter; the lexicon avoids words such as 'hour')."""
    return f"{'an' if phrase[:1].lower() in 'aeiou' else 'a'} {phrase}"


@cache
def load_grammar(name: str) -> tuple[Template, ...]:
    """The templates of one file of the folder `grammar`. ValueError: there is no such file."""
    known = sorted(path.name[:-4] for path in (lex.FOLDER / "grammar").iterdir())
    if name not in known:
        raise ValueError(f"no grammar named {name!r}; there are {known}")
    templates = []
    for number, line in lex.read_lines(f"grammar/{name}.txt"):
        head, text = line.split(": ", 1)
        act, _, slot = head.partition(" ")
        templates.append(Template(f"{name}:{number}", act, tuple(slot.split("+")) if slot else (), text))
    return tuple(templates)


@cache
def find_templates(name: str, act: str, slot: str = "") -> tuple[Template, ...]:
    """A grammar's templates of one act; with `slot` only those for that slot alone. What users of a split say
    includes their manners and how they tell of changes."""
    names = dict.fromkeys(name.replace("user", part) for part in ("user", "manners", "changes"))
    templates = (template for name in names for template in load_grammar(name))
    return tuple(t for t in templates if t.act == act and (slot == "" or t.slots == (slot,)))


def realise(template: Template, rng: random.Random, facts: dict[str, str] | None = None) -> str:
    """Speak a template: draw its choices and fill its holes from `facts` (slot -> phrase)."""
    text, said = CHOICE.sub(lambda m: rng.choice(m[1].split("|")), template.text), facts or {}
    return HOLE.sub(lambda m: add_article(said[m[2]]) if m[1] else said[m[2]], text)


def speak(name: str, act: str, rng: random.Random, slot: str = "", phrase: str = "") -> str:
    """Any sentence of an act; with `slot` one about it alone, `phrase` in its hole.
    IndexError: there is none."""
    return realise(rng.choice(find_templates(name, act, slot)), rng, {slot: phrase})


def list_forms(slot: str, value: str) -> tuple[str, ...]:
    """The phrasings in which a user may say a value; the value itself where the lexicon does not know it."""
    if slot == "Age":
        years = lex.parse_age(value)
        return (value,) if years is None or years > 99 else (str(years), lex.spell_number(years))
    if slot == "Gender":
        return lex.GENDERS.get(lex.find_gender(value) or "", (value,))
    found = lex.find_value(value, slot)
    return found.forms if found else (value,)


def draw_spoken_value(slot: str, rng: random.Random) -> str:
    """Any training value of one of the ten slots, as a user might say it."""
    if slot == "Age":
        return rng.choice(list_forms("Age", str(rng.randint(18, 82))))
    if slot == "Gender":
        return rng.choice(list_forms("Gender", rng.choice(sorted(lex.GENDERS))))
    return rng.choice(rng.choice(lex.list_values(slot, "train")).forms)


def paraphrase_value(slot: str, value: str, rng: random.Random) -> str | None:
    """Another phrasing that the lexicon lists, or None; the rule judge reads the same lexicon."""
    others = [form for form in list_forms(slot, value) if form.casefold() != value.casefold()]
    return rng.choice(others) if others else None


def paraphrase_freely(slot: str, value: str, rng: random.Random) -> str | None:
    """A phrasing that no lexicon lists, or None; see paraphrases.tsv."""
    rows = [line.split("\t") for _, line in lex.read_lines("paraphrases.tsv")]
    found = [other for *known, other in rows if known == [slot, value]]
    return rng.choice(found) if found else None


def list_frame_slots(slot: str) -> tuple[str, ...]:
    """The slots whose sentence frames fit a value of `slot`."""
    if slot in SLOTS:
        return (slot,)
    return ("Interests",) if slot in TOPIC_LIKE or list_made_up_slots().get(slot) == "Noun" else ()


@cache
def list_made_up_slots() -> dict[str, str]:
    """Slots that occur only in training dialogues (grammar/topics.txt): name -> class of its word."""
    topics = find_templates("topics", "topic")
    return {word.title(): t.slots[0] for t in topics for word in t.text.split(", ")}


def tell(speech: str, slot: str, phrase: str, rng: random.Random) -> str:
    """A sentence that states a slot's value; a slot that the grammar does not know is named in it."""
    if find_templates(speech, "say", slot):
        return speak(speech, "say", rng, slot, phrase)
    if slot in list_made_up_slots():
        frames = find_templates("topics", "say", list_made_up_slots()[slot])
        return realise(rng.choice(frames), rng, {"topic": slot.lower(), "value": phrase})
    return name_slot(slot, phrase)


def name_slot(slot: str, phrase: str) -> str:
    """The sentence that tells a slot without frames."""
    return f"About {slot.lower()} there is this: {phrase}."


@cache
def _by_first_word(name: str) -> dict[str, list[tuple[re.Pattern, Template]]]:
    """Templates by the first word of a sentence ('': any), with a pattern whose groups are their holes."""

    def read(part: str) -> str:
        if choice := CHOICE.fullmatch(part):
            return f"(?:{'|'.join(map(re.escape, choice[1].split('|')))})"
        if hole := HOLE.fullmatch(part):
            return f"{RIGHT_ARTICLE if hole[1] else ''}(.+?)"
        return re.escape(part)

    table = defaultdict(list)
    for template in load_grammar(name):
        pattern = re.compile("".join(map(read, re.split(r"(\[[^\]]*\]|\{[^}]*\})", template.text))))
        head = CHOICE.match(template.text)
        for start in {start.split()[0] for start in (head[1].split("|") if head else [template.text])}:
            table["" if "{" in start else start.strip(",.!?")].append((pattern, template))
    return dict(table)


@lru_cache(maxsize=65536)
def parse_sentence(sentence: str, name: str = "assistant") -> tuple[Sentence, ...]:
    """Every derivation of a sentence (usually one; none means that it is not a sentence of this language)."""
    table, found = _by_first_word(name), []
    start = sentence.split()[0].strip(",.!?") if sentence.strip() else ""
    for pattern, template in table.get(start, []) + table.get("", []):
        if match := pattern.fullmatch(sentence):
            slots = (slot for _, slot in HOLE.findall(template.text))
            found.append(Sentence(template, tuple(zip(slots, match.groups(), strict=True))))
    return tuple(found)


def split_sentences(text: str) -> list[str]:
    """Cut after . ! or ? followed by white space."""
    return [s for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s]


@lru_cache(maxsize=16384)
def parse(text: str, name: str = "assistant") -> tuple[tuple[Sentence, ...], ...]:
    """The derivations of every sentence of a text, in order."""
    return tuple(parse_sentence(s, name) for s in split_sentences(text))


def recall(texts: Iterable[str]) -> list[Sentence]:
    """The sentences of an assistant's texts, each in its first reading."""
    return [options[0] for text in texts for options in parse(text) if options]
