"""What a policy or a user wrote is data: it is cleaned and quoted before another model reads it.

A policy that is trained against a judge finds the judge's holes. So texts lose invisible characters, chat
models' control tokens are broken up, overlong texts are cut, and all goes into JSON that cannot end early.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

# How chat models mark roles, turns and tools; many servers read them as control tokens anywhere in a text.
CONTROL_SIGNS = re.compile(
    r"<[|\uff5c][^<>|\uff5c\n]{1,60}[|\uff5c]>"  # <|im_end|>, <|system|>, and with the wide bars of DeepSeek
    r"|</?(?:s|bos|eos|pad|unk|mask|start_of_turn|end_of_turn|think|tool_call|tool_response)>"
    r"|<<\s*/?\s*SYS\s*>>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK|CLS|SEP|MASK|PAD|UNK)\]",
    re.IGNORECASE,
)
KEPT_CONTROLS = "\n\t"
# Blank to the eye, though Unicode calls them letters, marks or symbols.
BLANKS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
SELECTORS = (("\ufe00", "\ufe0f"), ("\U000e0100", "\U000e01ef"), ("\u180b", "\u180f"))
GAP = " [...] "  # between the head and the tail of a text that was too long


def visible(text: str) -> tuple[str, int]:
    """(the text without invisible characters, how many they were): zero-width, direction, tag and control
    characters, variation selectors, private use, lone surrogates. All line ends become "\\n"."""
    text = re.sub("\r\n|[\r\u2028\u2029\x0b\x0c\x85]", "\n", text)
    kept = "".join(sign for sign in text if not _unseen(sign))
    return kept, len(text) - len(kept)


def defuse(text: str, signs: re.Pattern[str] = CONTROL_SIGNS) -> str:
    """The text with a blank in each control sign ("< |user|>"), so that no tokenizer reads it as one."""
    for _ in range(len(text) + 1):
        changed = signs.sub(lambda m: f"{m[0][0]} {m[0][1:]}" if len(m[0]) > 1 else "", text)
        if changed == text:
            break
        text = changed
    return text


@cache
def exact_signs(signs: frozenset[str]) -> re.Pattern[str]:
    """A pattern for `defuse` that matches just these strings, e.g. one tokenizer's control tokens."""
    longest_first = sorted(signs, key=lambda sign: (-len(sign), sign))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def cap(text: str, limit: int) -> tuple[str, int]:
    """(at most `limit` characters plus the gap, how many were left out): three quarters from the start and a
    quarter from the end, since the end is what the next turn answers."""
    if len(text) <= limit:
        return text, 0
    head = limit - limit // 4
    return text[:head] + GAP + text[len(text) - (limit - head) :], len(text) - limit


def entry(text: str, limit: int) -> dict[str, Any]:
    """A text made safe to quote: {"text": ...} and, if anything was removed, how much, beside the text."""
    seen, hidden = visible(text)
    short, cut = cap(defuse(seen), limit)
    counts = {"invisible_characters_removed": hidden, "characters_left_out": cut}
    return {"text": short, **{name: n for name, n in counts.items() if n}}


def plain(text: str, limit: int) -> str:
    """A text made safe to stand in a chat message of its own."""
    return entry(text, limit)["text"]


def dumps(value: Any) -> str:
    """JSON in which no string can end early or start a tag: < > and ` are written as \\u escapes."""
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("`", "\\u0060")


def quote(values: dict[str, Any]) -> str:
    """A JSON object with one line a key (lists: one line an item), in <data ...> tags with a digest of it.

    A writer cannot close them, since < is escaped, nor name them, since the digest depends on all content.
    """
    body = "{\n" + ",\n".join(f"{dumps(name)}: {_lines(value)}" for name, value in values.items()) + "\n}"
    key = hashlib.blake2b(body.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"<data {key}>\n{body}\n</data {key}>"


def estimated_tokens(*texts: str) -> int:
    """Tokens that the texts take as chat messages, a high estimate without a tokenizer: one per three bytes
    (English has nearly four, a Chinese character is three) and four per message."""
    return sum(-(-len(text.encode("utf-8", "surrogatepass")) // 3) + 4 for text in texts)


def find_first(costs: Sequence[int], room: int) -> int:
    """The first index from which all items fit into `room`; the last item stays even if it does not fit."""
    first = len(costs) - 1
    while first > 0 and sum(costs[first - 1 :]) <= room:
        first -= 1
    return first


def _lines(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return dumps(value)
    return "[\n" + ",\n".join(f" {dumps(item)}" for item in value) + "\n]"


def _unseen(sign: str) -> bool:
    in_selectors = any(first <= sign <= last for first, last in SELECTORS)
    hidden = sign in BLANKS or in_selectors or unicodedata.category(sign) in ("Cc", "Cf", "Co", "Cs")
    return hidden and sign not in KEPT_CONTROLS
