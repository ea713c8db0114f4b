"""What a person likes to do according to a description, as phrases for "I enjoy ___" (slot Interests)."""

import re
from itertools import pairwise
from operator import itemgetter

from rlpa_lib.personas.text import (
    cut_clause,
    drop_pronouns,
    fill_in,
    find_stems,
    join_items,
    make_gerund,
    split_sentences,
)

_LIKES = r"\b(?:enjoys?|loves?|likes?|adores?)\s+"
_LIKING = (
    rf"(?P<to>{_LIKES}to\s+)|(?P<like>{_LIKES}(?!by\b)"
    r"|\bpassionate\s+about\s+|\binterested\s+in\s+|\b(?:passion|love|fondness|talent)\s+for\s+"
    r"|\binterest\s+in\s+|\bhobby\s+of\s+|\bhobbies\s+(?:include|are)\s+"
    r"|\b(?:avid|big|huge|great|passionate)\s+(?:fan|lover|collector)\s+of\s+"
    r"|\bspends?\s+(?:\w+\s+){0,3}(?:time|weekends|evenings|days)\s+(?=\w+ing\b))"
    r"|\b(?P<verb>plays|collects|practices)\s+(?!for\b|in\b|at\b|with\b|professionally\b|several\b)"
    r"|\b(?P<agent>(?:avid|keen|passionate|enthusiastic)\s+)"
)
_AGENTS = {
    "reader": "reading", "gamer": "gaming", "birder": "bird watching", "cyclist": "cycling",
    "cook": "cooking", "photographer": "photography", "collector": "collecting", "chess player": "chess",
    "writer": "writing",
}
_NO_START = "being that working to family friends everything people".split()
_NEEDS_OBJECT = (
    "building designing making creating restoring attending collecting trying growing exploring".split()
)


def find_interests(description: str) -> str | None:
    """Up to four liked activities in text order, without repeats: "hiking, yoga and painting"."""
    found: list[str] = []
    for item in (item for sentence in split_sentences(description) for item in _find_in_sentence(sentence)):
        said, others = find_stems(item), [find_stems(other) for other in found]
        if said and not any(said <= other or other <= said for other in others):
            found.append(item)
    return join_items(found[:4]) or None


def _find_in_sentence(sentence: str) -> list[str]:
    items: list[tuple[int, str]] = []
    for match in re.finditer(_LIKING, sentence):
        if not re.search(fill_in("<SOMEBODY_ELSE>"), sentence[: match.start()]):
            after = sentence[match.end() :]
            liked = _read_agent(after) if match["agent"] else _read_objects(after, match)
            items += [(match.start(), item) for item in liked]
    items += [(m.start(), make_gerund(m[1][:-1])) for m in re.finditer(r"\b(\w+s) as a hobby\b", sentence)]
    lovers = re.finditer(r"\b([\w-]+[ -]?food|coffee|tea|art|music) lover\b", sentence)
    items += [(m.start(), m[1].replace("-", " ")) for m in lovers]
    return [item for _, item in sorted(items, key=itemgetter(0))]


def _read_objects(after: str, match: re.Match[str]) -> list[str]:
    """The liked things that follow a verb of liking; "building" before "flying drones" shares its object."""
    liked = re.sub(fill_in("<SPARE_TIME>"), "", cut_clause(after))
    parts = re.split(r",\s*(?:and\s+)?|\s+and\s+|\s+as\s+well\s+as\s+", liked)
    parts = [part.strip() for part in parts if part.strip()]
    for index, (part, following) in enumerate(pairwise(tuple(parts))):
        first, *rest = following.split()
        if part in _NEEDS_OBJECT and rest and first.endswith("ing"):
            parts[index] = " ".join([part, *rest])
    if match["to"]:
        parts = [" ".join([make_gerund(word), *rest]) for word, *rest in map(str.split, parts)]
    elif match["verb"] in ("plays", "collects"):
        gerund = make_gerund(match["verb"][:-1])
        parts = [part if part.split()[0].endswith("ing") else f"{gerund} {part}" for part in parts]
    return list(filter(None, map(_tidy, parts)))


def _read_agent(after: str) -> list[str]:
    """ "(avid) bird watcher" -> "bird watching", "(avid) reader of novels" -> "reading novels"."""
    phrase = re.sub(fill_in("<SPARE_TIME>"), "", cut_clause(re.split(r",|\s+and\s+", after)[0]))
    noun, _, of = re.split(r"\s+(?:in|at|from|since|for|with)\s", phrase)[0].partition(" of ")
    if noun in ("fan", "lover", "supporter", "follower", "admirer"):
        return [liked] if (liked := _tidy(of)) else []
    if noun in _AGENTS:
        return [f"{_AGENTS[noun]} {drop_pronouns(of)}".strip()]
    *before, last = noun.split() or [""]
    if last in _AGENTS:
        return [" ".join([*before, _AGENTS[last]])]
    return [f"{noun[:-2]}ing"] if last.endswith("er") and len(last) > 4 else []


def _tidy(item: str) -> str:
    """One liked thing without pronouns, adverbs and late adjuncts; "" if nothing usable is left."""
    if re.search(r"\b(?:them|him|it)\b", item):
        return ""
    late = r"regularly|daily|occasionally|together|too|very much|a lot"
    item = re.sub(rf"^(?:both|for|of|also)\s+|\s+(?:{late})$", "", drop_pronouns(item))
    if len(item.split()) > 6:
        item = re.split(r"\s+(?:in|at|on|with|from|for|around|of|to)\s+", item)[0]
    words = item.split()
    if not words or len(words) > 7 or words[0] in _NO_START:
        return ""
    lower = words[0].endswith("ing") and not (words[0].isupper() or item[:2].isupper())
    return item[0].lower() + item[1:] if lower else item
