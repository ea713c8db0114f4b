"""Small tools on English text that the slot rules share: sentences, clause ends, gerunds, phrases without pronouns."""

from __future__ import annotations

import re
from collections.abc import Sequence

KIN = (
    r"(?:sons?|daughters?|children|child|kids?|grandchildren|grandsons?|granddaughters?|grandkids|brothers?|sisters?|siblings?"
    r"|twins|triplets|boys|girls|parents?|nieces?|nephews?|wife|husband)"
)
PRONOUN = r"(?:his|her|hers|their|its|him|them|my|your|our|himself|herself|themselves|he|she|they|whose)"
NUMBER = r"(?:an?|one|two|three|four|five|six|seven|eight|nine|ten|several|many)"

_VERBS = (
    "is has plays runs makes takes owns goes spends volunteers travels visits hosts tries participates collects writes works lives "
    "performs experiments practices coaches knits enjoys loves likes attends holds grows teaches leads does gives bakes cooks "
    "competes exhibits maintains organizes streams shares studies specializes keeps brews builds uses dreams hopes plans drives "
    "speaks belongs dances sings paints sells creates designs explores follows helps joins mentors reads rides sews swims trains "
    "watches wants was used flies oversees completed earned will can had have are captures contributes donates customizes restores "
    "serves supports dedicates advocates"
).split()
_ADVERBS = "often also frequently regularly usually sometimes always now currently occasionally recently even never rarely"
_VERB_NEXT = rf"(?:(?:{'|'.join(_ADVERBS.split())})\s|(?:{'|'.join(_VERBS)})\b|(?:he|she|they|it)\b)"
_CLAUSE_END = re.compile(
    rf",?\s+(?:and|but|or)\s+{_VERB_NEXT}|,\s+{_VERB_NEXT}"
    r"|,\s+(?:particularly|especially|including|such|which|who|where|but|as|so|though|although|while|making|using|having)\b"
    r"|\s+(?:where|because|since|while|when|which|whenever|but|who|although|though|that|until|after|before|particularly|especially)\b"
)
_PRONOUN_TAIL = re.compile(rf"\s+(?:in|at|on|for|with|of|to|around|from|during|by|about|into|under)\s+{PRONOUN}\b.*", re.IGNORECASE)
_DOUBLING = {"swim", "run", "jog", "knit", "shop", "plan", "sit", "chat", "hop", "get", "win", "dig", "skip", "cut"}


def sentences(text: str) -> list[str]:
    """Sentences without their last mark; curly quotes become straight ones."""
    plain = text.replace("\u2019", "'").replace("\u2018", "'").replace("Ph.D.", "PhD").replace("Ph.D", "PhD")
    return [part.strip(" .!?\"") for part in re.split(r"(?<=[.!?])\s+", plain) if part.strip(" .!?\"")]


def clause(text: str) -> str:
    """The start of `text` up to where another clause begins ("... and often travels", "..., which ...")."""
    end = _CLAUSE_END.search(text)
    return (text[: end.start()] if end else text).strip(" ,")


def without_pronouns(phrase: str) -> str:
    """The phrase as anybody could say it of themselves: "making her own bread in her kitchen" -> "making bread"."""
    phrase = re.sub(rf"\b{PRONOUN}\s+own\s+", "", phrase, flags=re.IGNORECASE)
    # An adjunct around a pronoun says nothing of its own; "time with his family" is the exception, where the noun matters.
    phrase = re.sub(r"\bwith (?:his|her|their) (family|friends|children|kids|grandchildren)\b", r"with \1", phrase)
    phrase = _PRONOUN_TAIL.sub("", phrase)
    return " ".join(re.sub(rf"\b{PRONOUN}\b", "", phrase, flags=re.IGNORECASE).split()).strip(" ,;:.")


def gerund(verb: str) -> str:
    """to travel -> traveling, to bake -> baking, to swim -> swimming."""
    if verb.endswith("ing") and verb not in ("sing", "bring", "swing", "ring", "cling"):
        return verb
    if verb in _DOUBLING:
        return f"{verb}{verb[-1]}ing"
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        return verb[:-1] + "ing"
    return verb + "ing"


def join_items(items: Sequence[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def stems(phrase: str) -> frozenset[str]:
    """Content words of a phrase, lower case, without common endings (for comparing phrases, not for reading)."""
    words = re.findall(r"[a-z0-9]+", phrase.lower().replace("'s", ""))
    return frozenset(_stem(word) for word in words if word not in _EMPTY)


_EMPTY = set("a an the of in on at and with to for from as by or new own different various local other some all part time".split())


def _stem(word: str) -> str:
    for ending in ("nning", "mming", "gging", "tting"):
        if word.endswith(ending) and len(word) > 6:
            return word[: -len(ending) + 1]
    for ending in ("ings", "ing", "ers", "ies", "er", "es", "ed", "s", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
