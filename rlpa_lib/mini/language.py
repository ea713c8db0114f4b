"""The grammar that users and assistants of the miniature speak: generation, and parsing back into acts and facts."""
from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources

from rlpa_lib.dialogue.profile import SLOTS
from rlpa_lib.mini import lexicon as lex

CHOICE = re.compile(r"\[([^\]]*)\]")
HOLE = re.compile(r"\{(a:)?([^}]*)\}")
SPEECH = {"user_train", "user_test", "assistant", "changes_train", "changes_test", "manners_train", "manners_test", "asides", "topics"}
# A frame made for one slot also fits values of these others.
TOPIC_LIKE = ("Favorite Food", "Favorite Music", "Language", "Favorite Film Genre", "Sport to Watch", "Life Goal",
              "Favorite Drink")
QUESTION_ACTS = ("ask", "open", "detail")


@dataclass(frozen=True)
class Template:
    """One line of a grammar file: an act, the slots it speaks of, and the sentence with choices and holes."""

    id: str
    act: str
    slots: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Sentence:
    """A parsed sentence: which template it is derived from and what stands in its holes, as (slot, phrase)."""

    template: Template
    facts: tuple[tuple[str, str], ...]


def article(phrase: str) -> str:
    """'a nurse', 'an engineer' (by the first letter; the lexicon avoids words such as 'hour')."""
    return f"{'an' if phrase[:1].lower() in 'aeiou' else 'a'} {phrase}"


@cache
def grammar(name: str) -> tuple[Template, ...]:
    """The templates of one grammar file: one of SPEECH."""
    if name not in SPEECH:
        raise ValueError(f"no grammar named {name!r}; there are {sorted(SPEECH)}")
    lines = (resources.files("rlpa_lib.mini") / "grammar" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    templates = []
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#"):
            head, text = line.split(": ", 1)
            act, _, slot = head.partition(" ")
            templates.append(Template(f"{name}:{number}", act, tuple(slot.split("+")) if slot else (), text))
    return tuple(templates)


@cache
def templates(name: str, act: str, slot: str = "") -> tuple[Template, ...]:
    return tuple(t for t in grammar(name) if t.act == act and (slot == "" or t.slots == (slot,)))


def realise(template: Template, rng: random.Random, facts: dict[str, str] | None = None) -> str:
    """Speak a template: draw its choices and fill its holes from `facts` (slot -> phrase)."""
    text = CHOICE.sub(lambda m: rng.choice(m[1].split("|")), template.text)

    def fill(match: re.Match) -> str:
        phrase = (facts or {})[match[2]]
        return article(phrase) if match[1] else phrase

    return HOLE.sub(fill, text)


def spoken_forms(slot: str, value: str) -> tuple[str, ...]:
    """The phrasings in which a user may say a value; the value itself where the lexicon does not know it."""
    if slot == "Age":
        years = lex.parse_age(value)
        return (value,) if years is None or years > 99 else (str(years), lex.number_word(years))
    if slot == "Gender":
        return lex.GENDERS.get(lex.gender_of(value) or "", (value,))
    found = lex.lexicon().find(value, slot)
    return found.forms if found else (value,)


def frame_slots(slot: str) -> tuple[str, ...]:
    """The slots whose sentence frames fit a value of `slot`."""
    if slot in SLOTS:
        return (slot,)
    return ("Interests",) if slot in TOPIC_LIKE or made_up_slots().get(slot) == "Noun" else ()


@cache
def made_up_slots() -> dict[str, str]:
    """Slots that exist in training dialogues alone (grammar/topics.txt): name -> the class of the word that names it."""
    return {word.title(): t.slots[0] for t in grammar("topics") if t.act == "topic" for word in t.text.split(", ")}


def tell(speech: str, slot: str, phrase: str, rng: random.Random) -> str:
    """A sentence of a user's grammar that states a slot's value; a slot that the grammar does not know is named in it."""
    frames = templates(speech, "say", slot)
    if frames:
        return realise(rng.choice(frames), rng, {slot: phrase})
    if slot in made_up_slots():
        return realise(rng.choice(templates("topics", "say", made_up_slots()[slot])), rng, {"topic": slot.lower(), "value": phrase})
    return f"About {slot.lower()} there is this: {phrase}."


def _pattern(template: Template) -> re.Pattern:
    parts, position, n = [], 0, 0
    for match in re.finditer(r"\[([^\]]*)\]|\{(a:)?([^}]*)\}", template.text):
        parts.append(re.escape(template.text[position:match.start()]))
        if match[1] is not None:
            parts.append("(?:" + "|".join(re.escape(c) for c in match[1].split("|")) + ")")
        else:
            parts.append(f"(?P<{'a' if match[2] else 'p'}{n}>.+?)")
            n += 1
        position = match.end()
    return re.compile("".join(parts) + re.escape(template.text[position:]))


@cache
def _by_first_word(name: str) -> dict[str, tuple[tuple[re.Pattern, Template], ...]]:
    """Templates by the first word of a sentence; '' holds those that may start with a hole."""
    table: dict[str, list] = {}
    for template in grammar(name):
        head = CHOICE.match(template.text)
        starts = [c.split()[0] for c in head[1].split("|")] if head else [template.text.split()[0]]
        for start in set(starts):
            key = start.strip(",.!?") if "{" not in start else ""
            table.setdefault(key, []).append((_pattern(template), template))
    return {k: tuple(v) for k, v in table.items()}


@lru_cache(maxsize=65536)
def parse_sentence(sentence: str, name: str = "assistant") -> tuple[Sentence, ...]:
    """Every derivation of a sentence (usually one; none means that it is not a sentence of this language)."""
    words = sentence.split()
    if not words:
        return ()
    table, found = _by_first_word(name), []
    for pattern, template in table.get(words[0].strip(",.!?"), ()) + table.get("", ()):
        match = pattern.fullmatch(sentence)
        if not match:
            continue
        phrases = []
        for key, slot in zip(match.groupdict(), [h[2] for h in HOLE.finditer(template.text)], strict=True):
            phrase = match[key]
            if key.startswith("a"):
                bare = re.sub(r"^an? ", "", phrase)
                phrase = bare if article(bare) == phrase else None
            phrases.append((slot, phrase))
        if all(p is not None for _, p in phrases):
            found.append(Sentence(template, tuple(phrases)))
    return tuple(found)


def split_sentences(text: str) -> list[str]:
    """Cut after . ! or ? followed by white space."""
    return [s for s in re.split(r"(?<=[.!?])\s+", text.strip()) if s]


@lru_cache(maxsize=16384)
def parse(text: str, name: str = "assistant") -> tuple[tuple[Sentence, ...], ...]:
    """The derivations of every sentence of a text, in order."""
    return tuple(parse_sentence(s, name) for s in split_sentences(text))
