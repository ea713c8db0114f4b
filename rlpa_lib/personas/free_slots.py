"""Slots with free keys for persona sentences such as "I have a dog named Max." (Extended ALOE, appendix C.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count

from rlpa_lib.dialogue.profile import Profile
from rlpa_lib.personas.text import KIN, drop_pronouns, make_gerund, split_sentences

_PET = (
    r"(?:dogs?|cats?|puppy|kitten|pets?|turtle|parrot|rabbits?|bunny|hamster|snake|fish|birds?|horses?|iguana|ferret"
    r"|lizard)"
)
_RELATIVE = (
    r"(?:mother|mom|father|dad|sister|brother|wife|husband|daughter|son|girlfriend|boyfriend|best friend|uncle|aunt"
    r"|grandmother|grandfather)"
)
_JOB = (
    r"(?:\w+ ){0,3}(?:nurse|teacher|engineer|doctor|lawyer|student|chef|cook|broker|agent|manager|secretary|artist"
    r"|musician|singer|writer|driver|farmer|mechanic|accountant|designer|model|actor|actress|soldier|veteran|officer"
    r"|firefighter|pediatrician|vet|veterinarian|stylist|librarian|waitress|waiter|bartender|programmer|developer"
    r"|scientist|professor|handyman|photographer|dancer|coach|trainer|pilot|barista|janitor|plumber|electrician"
    r"|carpenter|cashier|clerk|bodybuilder|homemaker|salesman|therapist|worker|owner|assistant)"
)
_WORK = r"(?:is|was|works?|lives?|worked|has|had|owns?|plays?|teaches|drives)"
_CAME = r"(?:am|come|am originally) from|(?:was born(?: and raised)?|grew up|was raised) (?:in|on)"
_LISTEN = r"(?:like|love|enjoy|listen to|like to listen to|love listening to)"
_OWNED = r"(?!just|been|never|always|know|had|to\b|.*\bfor a living)(.+)"
_GERUND = "{gerund}"

# (key, pattern of the lower-case sentence, value): the first that fits the whole sentence wins; \1 is its first group.
_RULES: tuple[tuple[str, str, str], ...] = (
    ("Name", r"my name is (\w[\w ]*)", r"\1"),
    ("Age", r"i am (?:an? )?(\d+)(?: years? old| year old)\b.*", r"\1"),
    ("Pet", rf"my {_PET}'?s? name is (\w+)", r"a pet named \1"),
    ("Pet", rf"i (?:also )?(?:have|own|adopted) ((?:an?|\w+) (?:\w+ ){{0,2}}{_PET}\b.*)", r"\1"),
    (
        "Marital Status",
        r"i am (?:happily |currently |recently )?(single|married|divorced|engaged|widowed)\b(?! and have).*", r"\1",
    ),
    ("Family", rf"i (?:also )?(?:have|am married and have) ((?:an?|\w+) (?:\w+ ){{0,3}}{KIN}\b.*)", r"\1"),
    ("Family", rf"my ({_RELATIVE}) ({_WORK}\b.*)", r"a \1 who \2"),
    ("Family", r"my (parents|family|grandparents|kids|children) ((?:are|were|live|work|have|come)\b.*)", r"\1 who \2"),
    ("Favorite", r"my favou?rite ([\w ]+?) (?:is|are) (.+)", r"\2"),
    ("Job", rf"i (?:am|work as|am working as) (?:an? |the )?({_JOB})\b(?: .*)?", r"\1"),
    ("Job", r"i work ((?:in|at|for|with|on) .+)", r"a job \1"),
    ("Home", r"i (?:currently )?live in (.+?)(?: (?:and|but) .*)?", r"\1"),
    ("Origin", rf"i (?:{_CAME}) (.+?)(?: (?:and|but) .*)?", r"\1"),
    ("Dream", r"(?:i (?:want|hope|would like|plan|wish)|my dream is) to (.+)", _GERUND),
    ("Food", r"i (?:also )?(?:like|love|enjoy|prefer) (?:to eat|eating) (.+)", r"\1"),
    ("Food", r"i am (?:an? )?(vegan|vegetarian)\b.*", r"\1 food"),
    ("Food", r"i eat (.+)", r"\1"),
    ("Music", rf"i (?:also )?{_LISTEN} ((?:\w+ ){{1,3}}music|the band .+|\w+ and \w+ music)", r"\1"),
    ("Dislike", r"i (?:really )?(?:hate|dislike|do not like|am afraid of|am scared of|cannot stand) (.+)", r"\1"),
    ("Allergy", r"i (?:am allergic|have an allergy) to (.+)", r"\1"),
    ("Hobby", r"i (?:also |really )?(?:like|love|enjoy) to (.+)", _GERUND),
    ("Hobby", r"i (?:also |really )?(?:like|love|enjoy|am into) (.+)", r"\1"),
    ("Hobby", r"i (play|collect) (.+)", _GERUND),
    ("Hobby", r"my (?:hobby|hobbies|favorite past ?time) (?:is|are) (.+)", r"\1"),
    ("Education", r"i (?:graduated from|went to|attend|study|am studying) (.+)", r"studies: \1"),
    ("Possession", rf"i (?:also )?(?:have|own|drive) {_OWNED}", r"\1"),
    ("Trait", r"i am (?:a )?((?:very |quite |really |so )?(?!going|not|in|on|at|the|from)\w+)", r"\1"),
)  # fmt: skip


def extract_free_profile(lines: Sequence[str]) -> Profile:
    """A profile of one item a sentence. Keys come from simple rules; a second of a kind is numbered; the rest are
    "Fact 1", "Fact 2", ... A fact keeps its sentence as it stands, in lower case. Empty lines are passed over."""
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
    for key, pattern, template in _RULES:
        match = re.fullmatch(pattern, sentence)
        if match is None:
            continue
        verb, _, rest = " ".join(match.groups()).partition(" ")
        value = f"{make_gerund(verb)} {rest}".strip() if template == _GERUND else match.expand(template)
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
