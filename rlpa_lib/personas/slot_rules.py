"""What a description and a personality text say about each of the ten slots; None where they say nothing (appendix C.2)."""

from __future__ import annotations

import re
from collections.abc import Callable

from rlpa_lib.personas.interests import interests_value
from rlpa_lib.personas.text import KIN, NUMBER, PRONOUN, clause, join_items, sentences, without_pronouns

_WHO = rf"\b{KIN}\s+who\s+[^,;]*$"


def evidence(description: str, personality: str) -> dict[str, str]:
    """Slot -> value for the slots with evidence, in the order of `profile.SLOTS`. Values carry no pronoun and fit the frames
    "I am / have / enjoy / live in ___" of their slot."""
    found = {slot: rule(description) for slot, rule in _RULES.items()}
    found["Personality Traits"] = personality_traits(personality)
    return {slot: value for slot, value in found.items() if value}


def age(text: str) -> str | None:
    """Years as a numeral string."""
    match = re.search(r"\b(\d{1,3})[- ]years?[- ]old\b|\b(?:is|am|aged?|turned)\s+(\d{1,3})\b(?!\s*(?:feet|kids|children|cats|dogs))", text)
    return (match.group(1) or match.group(2)) if match else None


def gender(text: str) -> str | None:
    """male, female or non-binary, by statement and else by the pronouns of the description."""
    if re.search(r"\bnon-?binary\b|\bgenderqueer\b", text, re.IGNORECASE):
        return "non-binary"
    words = re.findall(r"[a-z]+", text.lower())
    he = sum(word in ("he", "his", "him") for word in words)
    she = sum(word in ("she", "her", "hers") for word in words)
    if he == she:
        they = sum(word in ("they", "their", "them") for word in words)
        return "non-binary" if they and not he and not re.match(r"\s*(?:an?|the)\b", text.lower()) else None
    return "male" if he > she else "female"


def occupation(text: str) -> str | None:
    """Noun phrase without article: "freelance graphic designer"."""
    first = next(iter(sentences(text)), "")
    match = re.search(r"\byears?[- ]old\s+(.+)", first) or re.match(r"(?:he|she|they)(?:'s|'re| is| are)\s+(?:an?\s+)(.+)", first, re.IGNORECASE)
    head = _OCCUPATION_END.split(clause(match.group(1)))[0].strip() if match else ""
    head = re.sub(r"^(?:(?:single|married|divorced|widowed|avid|passionate|dedicated|energetic|proud)\s+)+", "", head)
    if not head or re.search(r"\b(?:mother|father|mom|dad|man|woman|person|guy|girl|boy|grandmother|grandfather|lover|fan)\b", head):
        work = re.search(r"\bwork(?:s|ing)?\s+(?:\w+-time\s+)?as\s+(?:an?\s+)?(.+)", text)
        head = _OCCUPATION_END.split(clause(sentences(work.group(1))[0]))[0].strip() if work else ""
    return without_pronouns(head) or None


_OCCUPATION_END = re.compile(
    r"\s+(?:who|that|whose|with|working|studying|majoring|specializing|from|at|in|living|based|for|on)\b|,|\s+and\s+(?:an?|avid)\s"
)


def marital_status(text: str) -> str | None:
    """married, single, divorced, widowed, engaged or in a relationship; statements about relatives are passed over."""
    for sentence in sentences(text):
        sentence = re.sub(rf"\b{KIN}\s+who\s+(?:is|are|was|got|has)\b[^,]*", "", sentence)
        for status, pattern in _MARITAL.items():
            if re.search(pattern, sentence, re.IGNORECASE):
                return status
    return None


_IS = (
    r"(?:\b(?:is|are|was|been|got|get|currently|recently|happily|just|newly|and|old|now|a|still)|'s|'re)\s+"
    r"(?:(?:a|an|happily|currently|recently|newly|also|just|still)\s+)*"
)
_MARITAL = {
    "widowed": rf"{_IS}(?:widow|widower|widowed)\b",
    "divorced": rf"{_IS}(?:divorced|divorcee)\b|\bgot divorced\b|\bex-(?:wife|husband)\b",
    "engaged": rf"{_IS}engaged\b(?!\s+(?:in|with)\b)|\b(?:his|her|their)\s+fianc\S+|\bplanning\s+(?:his|her|their|a\s+\w+)\s+wedding\b",
    "married": rf"{_IS}married\b|\b(?:his|her|their)\s+(?:wife|husband|spouse)\b|\bhas\s+a\s+(?:\w+\s+)?(?:wife|husband)\b|\bnewlywed\b",
    "in a relationship": r"\bin\s+an?\s+(?:[\w-]+\s+){0,2}relationship\b"
    r"|\b(?:his|her|their|has\s+an?|with\s+an?)\s+(?:[\w-]+\s+)?(?:girlfriend|boyfriend)\b"
    r"|\blives\s+with\s+(?:his|her)\s+(?:\w+\s+)?partner\b|\bis\s+dating\b",
    "single": rf"{_IS}single\b(?!-)",
}


def family(text: str) -> str | None:
    """Noun phrase for "I have ___": "two teenage sons", "a twin sister who lives in another city"; at most two joined."""
    found: list[str] = []
    for sentence in sentences(text):
        for match in _FAMILY.finditer(sentence):
            phrase = without_pronouns(re.sub(r"\b(?:who|which)\s.*\b(?:his|her|he|she)\b.*", "", match.group(1)))
            grand = re.search(r"\bgrand(?:father|mother|parent)\s+(?:to|of)\s+$", sentence[: match.start(1)])
            phrase = re.sub(r"\b(?:children|kids)\b", "grandchildren", phrase) if grand else phrase
            if phrase and phrase not in found:
                found.append(phrase)
        parents = re.search(r"\b(?:single\s+)?(?:mother|father|mom|dad)\s+of\s+(two|three|four|five)\b(?!\s+\w)", sentence)
        if parents:
            found.append(f"{parents.group(1)} children")
        home = _AT_HOME.search(sentence)
        if home and not found:
            found.append(f"{'' if home.group(1).endswith('s') else 'a '}{home.group(1)} at home")
    if not found:
        spouse = re.search(r"\bmarried\s+to\s+(an?\s+.+)", text)
        found = [f"a spouse who works as {clause(sentences(spouse.group(1))[0])}"] if spouse else []
    return join_items(found[:2]) or None


_AT_HOME = re.compile(
    rf"\blives?\s+with\s+{PRONOUN}\s+((?:(?:older|younger|elderly|twin)\s+)?"
    r"(?:parents|brother|sister|siblings|family|grandparents|mother|father))\b"
)
_KIN_PHRASE = rf"(?:(?:{NUMBER}|no|twin)\s+(?:[a-z'-]+\s+){{0,3}}?{KIN})\b"
_KIN_MORE = (
    rf"(?:\s+and\s+{_KIN_PHRASE})?(?:\s+(?:who\s+(?:is|are|lives?|works?|studies)|in\s+(?:college|high|middle|elementary))\b[^,;]*?)?"
    r"(?=,|;|$|\s+and\s)"
)
_FAMILY = re.compile(rf"\b(?:has|have|with|of|to|raising|and|his|her|adopted)\s+({_KIN_PHRASE}{_KIN_MORE}|{_KIN_PHRASE})")


def location(text: str) -> str | None:
    """Noun phrase for "I live in ___": "a small apartment in the city"."""
    for sentence in sentences(text):
        sentence = re.sub(_WHO, "", sentence)
        match = re.search(r"\b(?:lives?|resides?|living|based)\s+(in|near|by|at|on|with)\s+([^;]+)", sentence)
        shared = re.search(r"\bshares?\s+(an?\s+(?:[\w-]+\s+){0,3}?(?:room|apartment|house|flat|loft|condo|studio))\b", sentence)
        value = _place(match.group(1), match.group(2)) if match else (shared.group(1) if shared else None)
        if value:
            return value
    return None


def _place(preposition: str, rest: str) -> str | None:
    rest = clause(rest).split(",")[0]
    if preposition == "with":
        inside = re.search(r"\s(?:in|near|by)\s+(an?\s.+|the\s.+|[A-Z].+)$", rest)
        if inside:
            return without_pronouns(inside.group(1))
        people = re.sub(r"^(?:his|her|their)\s+", "a ", re.split(r"\s+and\s+", rest)[0])
        if _PETS.search(people) or not people:
            return None
        return "a home shared with " + re.sub(r"^a\s+(?=.*s$)", "", people)
    rest = re.split(r"\s+with\s+(?=(?:his|her|their|\w+\s+(?:\w+\s+)?(?:cats?|dogs?|pets?)\b))", rest)[0]
    value = without_pronouns(rest)
    if preposition in ("near", "by", "on"):
        return f"a place {preposition} {value}"
    return value or None


_PETS = re.compile(
    r"\b(?:cats?|dogs?|pet|pets|parrot|rabbits?|hamsters?|turtle|tortoise|snake|ferret|iguana|fish|bird|horses?|retriever|labrador|beagle"
    r"|dachshund|pig|bulldog|bull|poodle|puppy|kitten|husky|shepherd|corgi|terrier|gecko|lizard|chickens|aquarium|chinchilla)\b",
    re.IGNORECASE,
)


def education(text: str) -> str | None:
    """Noun phrase for "I have ___": "a PhD degree in computer science"."""
    for sentence in sentences(text):
        for pattern, template in _EDUCATION:
            match = re.search(pattern, sentence)
            if match:
                study = clause(re.split(r",|\s+and\s+(?=an?\s)", match.group(1))[0]) if match.groups() else ""
                value = without_pronouns(template.format(study))
                return re.sub(r"\b(?:Bachelor|Master|Associate|Doctor)\b", lambda title: title.group().lower(), value)
    return None


_TITLE = r"degree|diploma|certificate|certification|doctorate|PhD|MBA|MD|qualification|bachelor's|master's"
_EDUCATION = (
    (rf"\b(?:has|holds|earned|obtained|with|received)\s+((?:an?|two)\s+(?:(?!and\b|with\b|{KIN}\b)[\w'-]+\s+){{0,4}}?(?:{_TITLE})\b[^;]*)", "{}"),
    (r"\b(?:studying|studies)\s+for\s+an?\s+([^;]+?degree[^;]*)", "an unfinished {}"),
    (r"\b(?:pursuing|completing|finishing)\s+(?:an?|his|her|their)\s+([^;]*?(?:degree|diploma|PhD|MBA)\b[^;]*)", "an unfinished {}"),
    (r"\bnever (?:went to|attended) college\b", "no college degree"),
    (r"\bdropped out of college\b|\bcollege dropout\b", "an unfinished college degree"),
    (r"\b(?:student|freshman|sophomore|junior|senior)\s+(?:who\s+is\s+)?(?:studying(?! for)|majoring in)\s+([^;]+)", "an unfinished degree in {}"),
    (r"^(?:he|she|they|He|She|They)\s+(?:is|are)\s+(?:currently\s+)?(?:studying(?! for)|majoring in)\s+([^;]+)", "an unfinished degree in {}"),
    (r"\byears?[- ]old\s+(?!(?:college|university|high)\b)((?:\w+\s+){1,2}?)student\b", "an unfinished {} degree"),
    (r"\bgraduated\s+(?:with\s+)?(an?\s+[^;]*degree[^;]*)", "{}"),
    (r"\bgraduated\s+from\s+([^;]+)", "a degree from {}"),
    (r"\bstudied\s+([^;]+)", "a training in {}"),
    (r"\battended\s+(culinary|art|film|music|drama|law|medical|business) school\b", "a {} school education"),
)


def personality_traits(text: str) -> str | None:
    """The first three adjectives for "I am ___": "creative, patient and curious"; a noun phrase ("a great listener") only for want of them."""
    adjectives: list[str] = []
    nouns: list[str] = []
    for sentence in sentences(text):
        match = re.match(r"(?:he|she|they)(?:'s|'re|\s+is|\s+are)\s+(.+)", sentence, re.IGNORECASE)
        head = _TRAIT_END.split(match.group(1))[0] if match else ""
        for part in re.split(r",\s*|\s+and\s+", _ADVERBS.sub("", head))[:3]:
            words = _ADVERBS.sub("", part).split()
            if len(words) == 1 and _ADJECTIVE.fullmatch(words[0]) and words[0] not in _INCOMPLETE:
                adjectives.append(words[0])
            elif words and words[0] in ("a", "an") and len(words) <= 4:
                nouns.append(re.sub(r"^a (?=[aeio])", "an ", " ".join(words)))
                break
            else:
                break
    traits = list(dict.fromkeys(adjectives)) if len(adjectives) > 1 else list(dict.fromkeys(adjectives + nouns))
    return join_items(traits[:3]) or None


_TRAIT_END = re.compile(r"\s+(?:to|in|with|of|when|who|for|at|by)\s|\s+and\s+(?:often|always|loves|enjoys|prefers)\b")
_ADJECTIVE = re.compile(r"(?!.*(?:ing|ly)$)[a-z][a-z-]{3,}")
# Adjectives that say nothing without what follows them ("able to ...").
_INCOMPLETE = {"able", "eager", "full", "affected", "capable", "sticks", "willing", "always", "known", "afraid", "ready", "good", "great"}
_ADVERBS = re.compile(
    r"\b(?:very|also|quite|really|highly|extremely|remarkably|incredibly|deeply|always|often|so|truly|a little bit|a bit|somewhat"
    r"|well-known|naturally)\s+"
)


def others(text: str) -> str | None:
    """Noun phrase for "I have ___" that no other slot holds: pets first, then collections, then whatever else is owned; at most two."""
    ranked: list[tuple[int, str]] = []
    for sentence in sentences(text):
        for match in re.finditer(rf"\b(has|have|owns|with)\s+(?:also\s+)?((?:{NUMBER})\s+[^;]+)", sentence):
            value = without_pronouns(clause(re.split(r",|\s+(?:dedicated|on|featuring)\s", match.group(2))[0]))
            rank = 0 if _PETS.search(value) else 1 if "collection" in value else 2
            owned = match.group(1) != "with" or rank == 0
            if owned and 1 < len(value.split()) <= 9 and not _NOT_OWNED.search(value):
                ranked.append((rank, value))
        fluent = re.search(r"\bfluent\s+in\s+([^;,]+)", sentence)
        if fluent:
            ranked.append((2, f"a good command of {clause(fluent.group(1))}"))
        diet = re.search(r"\b(vegan|vegetarian|gluten[- ]intolerant)\b(?!\s+(?:recipe|dish|cook|food))", sentence)
        if diet:
            ranked.append((2, "a gluten intolerance" if diet.group(1).startswith("gluten") else f"a {diet.group(1)} diet"))
    values = list(dict.fromkeys(value for _, value in sorted(ranked, key=lambda pair: pair[0])))
    return join_items(values[:2]) or None


_NOT_OWNED = re.compile(
    rf"\b(?:{_TITLE}|degree|{KIN}|goal|dream|passion|interest|hobby|job|career|love|sense|friends?|roommates?|relationship|following|membership"
    r"|custody|education|diploma|wedding)\b|^a (?:\w+ )?collection(?: at home)?$"
)

_RULES: dict[str, Callable[[str], str | None]] = {
    "Age": age,
    "Gender": gender,
    "Interests": interests_value,
    "Educational Background": education,
    "Personality Traits": lambda text: None,
    "Occupation": occupation,
    "Marital Status": marital_status,
    "Family Background": family,
    "Location": location,
    "Others": others,
}
