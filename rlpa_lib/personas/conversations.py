"""ALOE's preference conversations, as its generator writes them (appendix D.2): what they are, and their
reader."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpa_lib.personas.sources import read_text, split_values
from rlpa_lib.settings.config import InputError

FILE = "conversations.jsonl"
SIDES = ("preferred", "rejected")
INFERRED = ("inferred_profile", "inferred_personality")
Text = str | tuple[str, ...]


@dataclass(frozen=True)
class Exchange:
    """One turn of the tree: the user's message, both responses, and which of the two continued the dialogue.

    A response is a text, or a tuple of texts where the file lists several; `training_data` tells them apart.
    """

    user: str
    preferred: Text
    rejected: Text
    chosen: str
    inferred_profile: str = ""
    inferred_personality: str = ""

    @property
    def said(self) -> str:
        """The response that the user answered."""
        return pick_first(self.preferred if self.chosen == "preferred" else self.rejected)


@dataclass(frozen=True)
class Conversation:
    """One line of the file: a persona in prose, and its turns."""

    profile: str
    personality: str
    exchanges: tuple[Exchange, ...]

    def to_json(self) -> dict[str, Any]:
        """The line as ALOE's generator writes it; `read_conversations` reads it back."""
        turns = [
            {"user": e.user, "assistant": {side: getattr(e, side) for side in SIDES}, "chosen": e.chosen}
            | {key: getattr(e, key) for key in INFERRED}
            for e in self.exchanges
        ]
        return {"profile": self.profile, "personality": self.personality, "conversations": turns}


Talks = Sequence[Conversation]


def pick_first(text: Text) -> str:
    """The text itself, or the first of several."""
    return text if isinstance(text, str) else text[0]


def read_conversations(path: str | Path) -> list[Conversation]:
    """All conversations of ALOE's `conversations.jsonl`, in the order of the file.

    Taken as they come: a byte-order mark, empty lines, several objects in one line, a list of texts where a
    text is usual, a persona that is still in JSON quotes (ALOE's generator writes the raw lines of its
    files), no inferred texts, fewer turns than ten. InputError with file, line, turn and key of the first
    broken line and the numbers of the others: not UTF-8, not JSON, a key that is missing or of another type,
    an empty message, a `chosen` that is neither preferred nor rejected, no turn, or no conversation at all.
    """
    found, broken = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        try:
            found += [_read_conversation(value) for value in split_values(line)]
        except ValueError as error:
            broken.append((number, error))
    if broken:
        (number, reason), *more = broken
        numbers = ", ".join(str(n) for n, _ in more[:9])
        others = f" (and {len(more)} more broken lines: {numbers})" if more else ""
        raise InputError(f"{path}: line {number}: {reason}{others}")
    if not found:
        raise InputError(f"{path}: holds no conversation")
    return found


def _read_conversation(tree: Any) -> Conversation:
    _check(tree, conversations="list", profile="str", personality="str")
    if not tree["conversations"]:
        raise ValueError("`conversations` has no turn")
    exchanges = []
    for k, turn in enumerate(tree["conversations"], start=1):
        try:
            exchanges.append(_read_turn(turn))
        except ValueError as error:
            raise ValueError(f"turn {k}: {error}") from None
    return Conversation(_unquote(tree["profile"]), _unquote(tree["personality"]), tuple(exchanges))


def _read_turn(turn: Any) -> Exchange:
    _check(turn, assistant="dict", chosen="str", user="str")
    _check(turn["assistant"], **dict.fromkeys(SIDES, "str or list"))
    if turn["chosen"] not in SIDES:
        raise ValueError(f"`chosen` is {turn['chosen']!r}, neither preferred nor rejected")
    said: dict[str, Text] = {}
    for key, value in {"user": turn["user"], **{side: turn["assistant"][side] for side in SIDES}}.items():
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"`{key}` is a list without texts, or with something else")
        if not all(text.strip() for text in texts):
            raise ValueError(f"`{key}` is empty")
        said[key] = tuple(map(str.strip, texts)) if isinstance(value, list) else value.strip()
    inferred = {key: turn[key] for key in INFERRED if isinstance(turn.get(key), str)}
    return Exchange(**said, chosen=turn["chosen"], **inferred)


def _unquote(text: str) -> str:
    """A persona's text without the JSON quotes that it may still wear; two texts of one line are joined."""
    text = text.strip()
    if text.startswith('"'):
        try:
            return " ".join(value for value in split_values(text) if isinstance(value, str))
        except ValueError:
            return text  # prose that happens to begin with a quotation mark
    return text


def _check(tree: Any, **wanted: str) -> None:
    """ValueError: the tree is no object, or one of these keys is missing or of another type."""
    if not isinstance(tree, dict):
        raise ValueError(f"an object was expected, not {type(tree).__name__}")
    for key, names in wanted.items():
        if key not in tree:
            raise ValueError(f"`{key}` is missing")
        if (found := type(tree[key]).__name__) not in names.split(" or "):
            raise ValueError(f"`{key}` is {found}, not {names}")
