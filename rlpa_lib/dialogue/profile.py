"""User profiles as slot-value lists, and the reply format that carries them (section 3.2, appendix C.2)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rlpa_lib.client.thinking import split_thinking
from rlpa_lib.runs import storage

SLOTS = (
    "Age", "Gender", "Interests", "Educational Background", "Personality Traits", "Occupation",
    "Marital Status", "Family Background", "Location", "Others",
)

_TAG = re.compile(r"</?(?:profile|response)>", re.IGNORECASE)
_TAGS_IN_ORDER = ["<profile>", "</profile>", "<response>", "</response>"]
_TAG_AT_END, _LONGEST_TAG = re.compile(rf"{_TAG.pattern}\Z", re.IGNORECASE), len("</response>")
# What stands before an item and behind its slot, in English and in Chinese.
_BULLETS = tuple(
    "-+*\uff0d\ufe63\u2010\u2011\u2013\u2014\u2015\u2212\u2022\u2023\u2027\u2219\u00b7\u30fb"
    "\u25cf\u25cb\u25e6\u25aa\u25a0\u25c6\u25c7\u25b6"
)
_COLON = re.compile("[:\uff1a\ufe55\ufe13\u2236]")
_MARKS = "*_`"  # of emphasis, which models put around slots: **Age**
_TRAIT = re.compile(r"Trait \d+")  # the slot of a trait that has none
# Only real line ends: str.splitlines would also cut a value at rarer separators such as U+2028.
_LINE_END = re.compile(r"\r\n|\r|\n")

Strictness = Literal["strict", "released"]  # setting profile.strictness
_Reader = Callable[[Sequence[str]], Iterator[tuple[str, str]]]


@dataclass(frozen=True)
class Profile:
    """Ordered (slot, value) pairs; `filled` names the slots invented for lack of evidence (appendix C.2).

    Strips slots and values, and slots of marks of emphasis ("**Age**"). ValueError: an empty slot or value, a
    slot twice (whatever its case), a line end or reply tag, a colon in a slot, an unknown `filled` name. So
    every profile survives render and parse.
    """

    items: tuple[tuple[str, str], ...] = ()
    filled: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        items = tuple((_strip_slot(slot), value.strip()) for slot, value in self.items)
        object.__setattr__(self, "items", items)
        object.__setattr__(self, "filled", frozenset(self.filled))
        for slot, value in self.items:
            _check_item(slot, value)
        if len({slot.casefold() for slot in self.slots()}) < len(self):
            raise ValueError(f"a slot is given twice: {list(self.slots())}")
        if unknown := self.filled - {*self.slots()}:
            raise ValueError(f"filled slots that the profile does not have: {sorted(unknown)}")

    def __len__(self) -> int:
        return len(self.items)

    def get(self, slot: str) -> str | None:
        """The slot's value, or None when the profile does not have it."""
        return dict(self.items).get(slot)

    def slots(self) -> tuple[str, ...]:
        """The slot names in order."""
        return tuple(slot for slot, _ in self.items)

    def lines(self) -> str:
        """One "- Slot: value" a line, no line end after the last one."""
        return "\n".join(f"- {slot}: {value}" for slot, value in self.items)

    def replace(self, slot: str, value: str) -> Profile:
        """A copy with this slot's value; a new slot goes last. The slot no longer counts as filled."""
        return Profile(tuple({**dict(self.items), slot: value}.items()), self.filled - {slot})

    def to_json(self) -> dict:
        """A dict of plain lists for JSON; `from_json` reads it back."""
        return storage.plain(self)

    @staticmethod
    def from_json(data: dict) -> Profile:
        """Inverse of `to_json`."""
        return Profile(tuple(map(tuple, data["items"])), frozenset(data.get("filled", ())))


@dataclass(frozen=True)
class Reply:
    """What one completion says: the inferred profile, the response, and whether the format was kept."""

    profile: Profile
    response: str
    format_ok: bool


def parse_reply(text: str) -> Reply:
    """Read a `<profile>` block followed by a `<response>` block; never raises (appendix E.1).

    The text must be just those two blocks, thinking before them aside: one "- Slot: value" a line, each slot
    once, and a response. Bullet and colon may be those of either language, with or without blanks, and a slot
    may be emphasised ("**Age**"). Anything else gives an empty profile, as much of the response as can be
    read, and format_ok=False. Takes linear time.
    """
    return _read(text, _read_pairs)


def parse_released_reply(text: str) -> Reply:
    """`parse_reply` as lenient as the released code (`profile.strictness: released`): any line behind a
    bullet is a trait, and one without a new slot of its own gets "Trait n", n its line."""
    return _read(text, _read_traits)


def render_reply(profile: Profile, response: str, strictness: Strictness = "strict") -> str:
    """The text that `parse_reply` (or `parse_released_reply`) reads back: profile block, blank line, response
    block."""
    lines = profile.lines()
    if strictness == "released":
        lines = "\n".join(f"- {v}" if _TRAIT.fullmatch(s) else f"- {s}: {v}" for s, v in profile.items)
    block = f"{lines}\n" if profile.items else ""
    return f"<profile>\n{block}</profile>\n\n<response>\n{response}\n</response>"


def _read(text: str, read: _Reader) -> Reply:
    text = str(text)
    if not text.lstrip().startswith(_TAGS_IN_ORDER[0]):
        text = split_thinking(text)[1]
    tags = list(_TAG.finditer(text))
    if [tag.group() for tag in tags] == _TAGS_IN_ORDER:
        start, end, said, done = tags
        outside = text[: start.start()], text[end.end() : said.start()], text[done.end() :]
        profile = _read_items(text[start.end() : end.start()], read)
        response = text[said.end() : done.start()].strip()
        if profile is not None and response and not "".join(outside).strip():
            return Reply(profile, response, True)
    return Reply(Profile(), _salvage_response(text), False)


def _check_item(slot: str, value: str) -> None:
    if not slot or not value:
        raise ValueError(f"empty slot or value: {slot!r}: {value!r}")
    if _COLON.search(slot):
        raise ValueError(f"colon in slot {slot!r}")
    if _LINE_END.search(slot + value) or _TAG.search(slot) or _TAG.search(value):
        raise ValueError(f"line end or reply tag in {slot!r}: {value!r}")


def _read_items(block: str, read: _Reader) -> Profile | None:
    """The profile in a block, or None when a line is no item or a slot comes twice."""
    # Without blank lines, or a final line end would count as one more item (the released code's defect).
    lines = [line.strip() for line in _LINE_END.split(block) if line.strip()]
    if not all(map(_is_item, lines)):
        return None
    try:
        return Profile(tuple(read([line[1:].strip() for line in lines])))
    except ValueError:
        return None


def _is_item(line: str) -> bool:
    """Whether a line begins with one bullet; two of a kind are a rule ("---") or emphasis ("**Age**")."""
    return line.startswith(_BULLETS) and not line.startswith(2 * line[0]) and bool(line[1:].strip())


def _strip_slot(slot: str) -> str:
    return slot.strip().strip(_MARKS).strip()


def _read_pairs(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(slot, value) a line; where there is no colon the value is empty, which no profile takes."""
    for line in lines:
        slot, *values = _COLON.split(line, maxsplit=1)
        value = "".join(values)
        opened = slot[: len(slot) - len(slot.lstrip(_MARKS))]
        if opened and not slot.rstrip().endswith(opened[::-1]):  # it ends behind the colon: **Age:** 25
            value = value.lstrip().removeprefix(opened[::-1])
        yield _strip_slot(slot), value


def _read_traits(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(slot, value) a line where it has a new slot of its own, else ("Trait n", the line)."""
    seen: set[str] = set()
    for number, (line, (slot, value)) in enumerate(zip(lines, _read_pairs(lines), strict=True), start=1):
        if not slot or not value.strip() or slot.casefold() in seen or _TRAIT.fullmatch(slot):
            slot, value = f"Trait {number}", line
        seen.add(slot.casefold())
        yield slot, value


def _salvage_response(text: str) -> str:
    """The response in a broken reply: its one response block, even if cut off, else all text without tags."""
    opening = [match for match in _TAG.finditer(text) if match.group().lower() == "<response>"]
    if len(opening) == 1:
        text = text[opening[0].end() :]
        closing = re.search("</response>", text, re.IGNORECASE)
        text = text[: closing.start()] if closing else text
    return _drop_tags(text).strip()


def _drop_tags(text: str) -> str:
    """The text without tags, and without those that arise when neighbours of a tag join."""
    kept: list[str] = []
    for sign in text:
        kept.append(sign)
        if sign == ">" and (tag := _TAG_AT_END.search("".join(kept[-_LONGEST_TAG:]))):
            del kept[-len(tag[0]) :]
    return "".join(kept)
