"""User profiles as slot-value lists, and the reply format that carries them (section 3.2, appendix C.2)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rlpa_lib.runs import storage

SLOTS = (
    "Age", "Gender", "Interests", "Educational Background", "Personality Traits", "Occupation",
    "Marital Status", "Family Background", "Location", "Others",
)

_TAG = re.compile(r"</?(?:profile|response)>", re.IGNORECASE)
_TAGS_IN_ORDER = ["<profile>", "</profile>", "<response>", "</response>"]
_REPLY = re.compile(r"\s*<profile>(.*?)</profile>\s*<response>(.*?)</response>\s*", re.DOTALL)
_ITEM = re.compile(r"- ([^:]*):\s(.*)")
# Only real line ends: str.splitlines would also cut a value at rarer separators such as U+2028.
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class Profile:
    """Ordered (slot, value) pairs; `filled` names the slots invented for lack of evidence (appendix C.2).

    Strips slots and values. ValueError: an empty slot or value, a slot twice (whatever its case), a line end
    or reply tag, a colon in a slot, an unknown `filled` name. So every profile survives render and parse.
    """

    items: tuple[tuple[str, str], ...] = ()
    filled: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple((slot.strip(), value.strip()) for slot, value in self.items))
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

    The text must be just those two blocks: one "- Key: value" a line, each key once, and a response. Anything
    else gives an empty profile, as much of the response as can be read, and format_ok=False.
    """
    text = str(text)
    match = _REPLY.fullmatch(text)
    if match is not None and _TAG.findall(text) == _TAGS_IN_ORDER:
        profile, response = _read_items(match.group(1)), match.group(2).strip()
        if profile is not None and response:
            return Reply(profile, response, True)
    return Reply(Profile(), _salvage_response(text), False)


def render_reply(profile: Profile, response: str) -> str:
    """The text that `parse_reply` reads back: profile block, blank line, response block."""
    lines = f"{profile.lines()}\n" if profile.items else ""
    return f"<profile>\n{lines}</profile>\n\n<response>\n{response}\n</response>"


def _check_item(slot: str, value: str) -> None:
    if not slot or not value:
        raise ValueError(f"empty slot or value: {slot!r}: {value!r}")
    if ":" in slot:
        raise ValueError(f"colon in slot {slot!r}")
    if _LINE_END.search(slot + value) or _TAG.search(slot) or _TAG.search(value):
        raise ValueError(f"line end or reply tag in {slot!r}: {value!r}")


def _read_items(block: str) -> Profile | None:
    """The profile in a block, or None when a line is not "- Key: value" or a key comes twice."""
    # Without blank lines, or a final line end would count as one more item (the released code's defect).
    lines = [line.strip() for line in _LINE_END.split(block) if line.strip()]
    matches = [_ITEM.fullmatch(line) for line in lines]
    try:
        return Profile(tuple(match.groups() for match in matches)) if all(matches) else None
    except ValueError:
        return None


def _salvage_response(text: str) -> str:
    """The response in a broken reply: its one response block, even if cut off, else all text without tags."""
    opening = [match for match in _TAG.finditer(text) if match.group().lower() == "<response>"]
    if len(opening) == 1:
        text = text[opening[0].end() :]
        closing = re.search("</response>", text, re.IGNORECASE)
        text = text[: closing.start()] if closing else text
    # Taking out one tag can join its neighbours into another.
    while _TAG.search(text):
        text = _TAG.sub("", text)
    return text.strip()
