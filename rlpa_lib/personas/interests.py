"""What a description says its person likes to do, as short phrases that fit "I enjoy ___" (slot Interests, appendix C.2)."""

from __future__ import annotations

import re
from itertools import pairwise

from rlpa_lib.personas.text import KIN, clause, gerund, join_items, sentences, stems, without_pronouns

MAX_ITEMS = 4

_LIKING = re.compile(
    r"(?P<to>\b(?:enjoys?|loves?|likes?|adores?)\s+to\s+)"
    r"|(?P<like>\b(?:enjoys?|loves?|likes?|adores?)\s+(?!by\b)"
    r"|\bpassionate\s+about\s+|\binterested\s+in\s+|\b(?:passion|love|fondness|talent)\s+for\s+|\binterest\s+in\s+"
    r"|\bhobby\s+of\s+|\bhobbies\s+(?:include|are)\s+|\b(?:avid|big|huge|great|passionate)\s+(?:fan|lover|collector)\s+of\s+"
    r"|\bspends?\s+(?:\w+\s+){0,3}(?:time|weekends|evenings|days)\s+(?=\w+ing\b))"
    r"|\b(?P<verb>plays|collects|practices)\s+(?!for\b|in\b|at\b|with\b|professionally\b|several\b)"
    r"|\b(?P<agent>(?:avid|keen|passionate|enthusiastic)\s+)"
)
_LOVER = re.compile(r"\b([\w-]+[ -]?food|coffee|tea|art|music) lover\b")
_ITEM_BREAK = re.compile(r",\s*(?:and\s+)?|\s+and\s+|\s+as\s+well\s+as\s+")
_TIME = re.compile(
    r"\s+(?:(?:in|during)\s+(?:\w+\s+)?(?:(?:spare|free)\s+time|downtime|off-season)|(?:on|at|over|every|during)\s+(?:the\s+)?"
    r"(?:weekends?|week|evenings?|day|morning|summer|winter|sundays?|saturdays?|holidays?)|as\s+a\s+hobby|at\s+home|for\s+fun"
    r"|for\s+(?:over\s+)?\w+\s+years)\b.*",
    re.IGNORECASE,
)
_AGENTS = {"reader": "reading", "gamer": "gaming", "birder": "bird watching", "cyclist": "cycling", "cook": "cooking"}
_AGENTS |= {"photographer": "photography", "collector": "collecting", "chess player": "chess", "writer": "writing"}
_NO_START = {"being", "that", "working", "to", "family", "friends", "everything", "people"}
_NEEDS_OBJECT = {"building", "designing", "making", "creating", "restoring", "attending", "collecting", "trying", "growing", "exploring"}


def interests(description: str) -> list[str]:
    """Up to four liked activities in the order of the text, none said twice; [] when the text names none."""
    found: list[str] = []
    for sentence in sentences(description):
        for item in _in_sentence(sentence):
            said = stems(item)
            if said and not any(said <= stems(other) or stems(other) <= said for other in found):
                found.append(item)
    return found[:MAX_ITEMS]


def interests_value(description: str) -> str | None:
    """The same as one value: "hiking, yoga and painting"."""
    return join_items(interests(description)) or None


def _in_sentence(sentence: str) -> list[str]:
    items: list[tuple[int, str]] = []
    for match in _LIKING.finditer(sentence):
        before, after = sentence[: match.start()], sentence[match.end() :]
        if _is_about_somebody_else(before):
            continue
        if match.group("agent"):
            items += [(match.start(), item) for item in _agent(after)]
        else:
            items += [(match.start(), item) for item in _objects(after, match)]
    items += [(match.start(), gerund(match.group(1)[:-1])) for match in re.finditer(r"\b(\w+s) as a hobby\b", sentence)]
    items += [(match.start(), match.group(1).replace("-", " ")) for match in _LOVER.finditer(sentence)]
    return [item for _, item in sorted(items, key=lambda pair: pair[0])]


def _is_about_somebody_else(before: str) -> bool:
    relative = rf"\b{KIN}\s+who\s+(?:[^,;]*\band\s+who\s+)?(?:\w+\s+)?$|\bwho\s+(?:he|she|they)\s+(?:\w+\s+)?$"
    return bool(re.search(rf"{relative}|\b(?:parents|family|wife|husband)\s+$", before))


def _objects(after: str, match: re.Match[str]) -> list[str]:
    """The liked things that follow a verb of liking."""
    parts = [part.strip() for part in _ITEM_BREAK.split(_TIME.sub("", clause(after)))]
    parts = _share_object([part for part in parts if part])
    verb = match.group("verb")
    if match.group("to"):
        parts = [" ".join([gerund(word), *rest]) for word, *rest in map(str.split, parts)]
    elif verb in ("plays", "collects"):
        parts = [part if part.split()[0].endswith("ing") else f"{gerund(verb[:-1])} {part}" for part in parts]
    return [item for item in map(_tidy, parts) if item]


def _share_object(parts: list[str]) -> list[str]:
    """ "building" before "flying drones" means "building drones"."""
    shared = list(parts)
    for index, (part, following) in enumerate(pairwise(parts)):
        if part in _NEEDS_OBJECT and " " in following and following.split()[0].endswith("ing"):
            shared[index] = " ".join([part, *following.split()[1:]])
    return shared


def _agent(after: str) -> list[str]:
    """ "(avid) bird watcher" -> "bird watching", "(avid) reader of novels" -> "reading novels"."""
    phrase = re.split(r"\s+(?:in|at|from|since|for|with)\s", _TIME.sub("", clause(re.split(r",|\s+and\s+", after)[0])))[0]
    noun, _, of = phrase.partition(" of ")
    if noun in ("fan", "lover", "supporter", "follower", "admirer"):
        return [item for item in (_tidy(of),) if item]
    if noun in _AGENTS:
        return [f"{_AGENTS[noun]} {without_pronouns(of)}".strip()]
    last = noun.split()[-1] if noun else ""
    if last in _AGENTS:
        return [" ".join([*noun.split()[:-1], _AGENTS[last]])]
    if last.endswith("er") and len(last) > 4:
        return [f"{noun[:-2]}ing"]
    return []


def _tidy(item: str) -> str:
    """One liked thing without pronouns, adverbs and late adjuncts; "" when too little is left of it."""
    if re.search(r"\b(?:them|him|it)\b", item):
        return ""
    item = re.sub(r"^(?:both|for|of|also)\s+|\s+(?:regularly|daily|occasionally|together|too|very much|a lot)$", "", without_pronouns(item))
    words = item.split()
    if len(words) > 6:
        # The head comes first; what a late preposition adds can go.
        item = re.split(r"\s+(?:in|at|on|with|from|for|around|of|to)\s+", item)[0]
        words = item.split()
    if not words or len(words) > 7 or words[0] in _NO_START:
        return ""
    return item if words[0].isupper() or item[:2].isupper() else _lower_first(item)


def _lower_first(item: str) -> str:
    return item[0].lower() + item[1:] if item.split()[0].endswith("ing") else item
