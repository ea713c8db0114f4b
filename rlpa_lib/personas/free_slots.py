"""Slots with free keys for sentences such as "I have a dog named Max." (Extended ALOE, appendix C.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from itertools import count

from rlpa_lib.dialogue.profile import Profile
from rlpa_lib.personas.text import KIN, drop_pronouns, make_gerund, split_sentences


def extract_free_profile(lines: Sequence[str]) -> Profile:
    """One item per sentence, none for empty lines. Keys come from free_slots.tsv, repeated ones numbered.

    Other sentences are kept whole, in lower case, as "Fact 1", "Fact 2", ...
    """
    items: dict[str, str] = {}
    for line in lines:
        sentence = " ".join(" ".join(split_sentences(line)).lower().split())
        if not sentence:
            continue
        key, value = _extract_item(sentence)
        if value not in items.values():
            names = (f"{key} {number}" if number > 1 or key == "Fact" else key for number in count(1))
            items[next(name for name in names if name not in items)] = value
    return Profile(tuple(items.items()))


def _extract_item(sentence: str) -> tuple[str, str]:
    for key, pattern, template in _load_rules():
        match = re.fullmatch(pattern, sentence)
        if match is None:
            continue
        verb, _, rest = " ".join(match.groups()).partition(" ")
        value = f"{make_gerund(verb)} {rest}".strip() if template == "{gerund}" else match.expand(template)
        if key == "Education":
            named = re.search("school|university|college", value)
            value = re.sub("^studies:", "studies at" if named else "studies of", value)
        if key == "Favorite":
            key = f"Favorite {drop_pronouns(match[1]).title()}"
        value = drop_pronouns(re.sub(r"\b(?:i|me|myself|mine)\b", "", value))
        about_me = key == "Family" and re.search(r"\b(?:i|me|my)\b", match.expand(template))
        if value and not about_me:
            return key, value
    return "Fact", sentence


@cache
def _load_rules() -> list[tuple[str, str, str]]:
    """(key, pattern, value) of each rule in free_slots.tsv."""
    lines = (resources.files("rlpa_lib.personas") / "free_slots.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    pieces = {"<KIN>": KIN, **{row[0]: row[1] for row in rows if len(row) == 2}}
    rules = []
    for key, pattern, value in (row for row in rows if len(row) == 3):
        for name, piece in pieces.items():
            pattern = pattern.replace(name, piece)
        rules.append((key, pattern, value))
    return rules
