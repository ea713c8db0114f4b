"""Small tools on English text that the slot rules share: sentences, clauses, gerunds, pronouns, stems."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

KIN = (
    r"(?:sons?|daughters?|children|child|kids?|grandchildren|grandsons?|granddaughters?|grandkids|brothers?"
    r"|sisters?|siblings?|twins|triplets|boys|girls|parents?|nieces?|nephews?|wife|husband)"
)
PRONOUN = r"(?:his|her|hers|their|its|him|them|my|your|our|himself|herself|themselves|he|she|they|whose)"
NUMBER = r"(?:an?|one|two|three|four|five|six|seven|eight|nine|ten|several|many)"

_VERBS = (
    "is has plays runs makes takes owns goes spends volunteers travels visits hosts tries participates "
    "collects writes works lives performs experiments practices coaches knits enjoys loves likes attends "
    "holds grows teaches leads does gives bakes cooks competes exhibits maintains organizes streams shares "
    "studies specializes keeps brews builds uses dreams hopes plans drives speaks belongs dances sings "
    "paints sells creates designs explores follows helps joins mentors reads rides sews swims trains "
    "watches wants was used flies oversees completed earned will can had have are captures contributes "
    "donates customizes restores serves supports dedicates advocates"
).replace(" ", "|")
_ADVERBS = (
    "often|also|frequently|regularly|usually|sometimes|always|now|currently|occasionally|recently|even|never"
    "|rarely"
)
_VERB_NEXT = rf"(?:(?:{_ADVERBS})\s|(?:{_VERBS})\b|(?:he|she|they|it)\b)"
_CLAUSE_END = re.compile(
    rf",?\s+(?:and|but|or)\s+{_VERB_NEXT}|,\s+{_VERB_NEXT}"
    r"|,\s+(?:particularly|especially|including|such|which|who|where|but|as|so|though|although|while|making"
    r"|using|having)\b|\s+(?:where|because|since|while|when|which|whenever|but|who|although|though|that|until"
    r"|after|before|particularly|especially)\b"
)
_PRONOUN_TAIL = re.compile(
    rf"\s+(?:in|at|on|for|with|of|to|around|from|during|by|about|into|under)\s+{PRONOUN}\b.*", re.IGNORECASE
)
_DOUBLING = "swim run jog knit shop plan sit chat hop get win dig skip cut".split()


def split_sentences(text: str) -> list[str]:
    """Sentences without their last mark; curly quotes become straight ones."""
    plain = text.replace("\u2019", "'").replace("\u2018", "'").replace("Ph.D.", "PhD").replace("Ph.D", "PhD")
    return [part.strip(" .!?\"") for part in re.split(r"(?<=[.!?])\s+", plain) if part.strip(" .!?\"")]


def cut_clause(text: str) -> str:
    """The start of `text` up to where another clause begins ("... and often travels", "..., which ...")."""
    end = _CLAUSE_END.search(text)
    return (text[: end.start()] if end else text).strip(" ,")


def drop_pronouns(phrase: str) -> str:
    """The phrase as anybody could say it: "making her own bread in her kitchen" -> "making bread"."""
    phrase = re.sub(rf"\b{PRONOUN}\s+own\s+", "", phrase, flags=re.IGNORECASE)
    # What follows a pronoun adds little, except in "time with his family".
    kept = "family|friends|children|kids|grandchildren"
    phrase = re.sub(rf"\bwith (?:his|her|their) ({kept})\b", r"with \1", phrase)
    phrase = _PRONOUN_TAIL.sub("", phrase)
    return " ".join(re.sub(rf"\b{PRONOUN}\b", "", phrase, flags=re.IGNORECASE).split()).strip(" ,;:.")


def make_gerund(verb: str) -> str:
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
    return "".join(items) if len(items) < 2 else f"{', '.join(items[:-1])} and {items[-1]}"


_EMPTY = (
    "a an the of in on at and with to for from as by or new own different various local other some all part"
    " time"
).split()


def find_stems(phrase: str) -> frozenset[str]:
    """The content words of a phrase in lower case, without common endings; used to compare phrases."""
    words = re.findall(r"[a-z0-9]+", phrase.lower().replace("'s", ""))
    return frozenset(_stem(word) for word in words if word not in _EMPTY)


def _stem(word: str) -> str:
    for ending in ("nning", "mming", "gging", "tting"):
        if word.endswith(ending) and len(word) > 6:
            return word[: -len(ending) + 1]
    return cut_ending(word, ("ings", "ing", "ers", "ies", "er", "es", "ed", "s", "e", "y"))


def cut_ending(word: str, endings: Iterable[str]) -> str:
    """The word without the first of these endings that leaves at least three letters."""
    return next((word[: -len(e)] for e in endings if word.endswith(e) and len(word) - len(e) >= 3), word)


# "her" stands for "him" before these words and at the end of a clause, for "his" elsewhere.
_AFTER_OBJECT = (
    r"(?=\s*(?:[.,;!?]|$)|\s+(?:and|or|to|in|on|at|by|with|for|from|as|because|when|if|feel|feels|through)\b)"
)
_PRONOUNS = {
    "male": {rf"her{_AFTER_OBJECT}": "him", "her": "his", "she": "he", "herself": "himself", "hers": "his"},
    "female": {"he": "she", "himself": "herself", "his": "her", "him": "her"},
    "non-binary": {
        rf"her{_AFTER_OBJECT}": "them", "her": "their", "he": "they", "she": "they", "himself": "themself",
        "herself": "themself", "his": "their", "him": "them", "hers": "theirs",
    },
}  # fmt: skip
_PLURAL = {"is": "are", "has": "have", "was": "were", "does": "do"}


def find_gender(text: str) -> str | None:
    """male, female or non-binary, as stated or else by the pronouns; None where neither tells."""
    if re.search(r"\bnon-?binary\b|\bgenderqueer\b", text, re.IGNORECASE):
        return "non-binary"
    words = re.findall(r"[a-z]+", text.lower())
    he = sum(word in ("he", "his", "him") for word in words)
    she = sum(word in ("she", "her", "hers") for word in words)
    if he == she:
        they = any(word in ("they", "their", "them") for word in words)
        return "non-binary" if they and not he and not re.match(r"\s*(?:an?|the)\b", text.lower()) else None
    return "male" if he > she else "female"


def adjust_pronouns(personality: str, description: str) -> str:
    """The personality with pronouns of the description's gender, if that tells one (appendix C.2)."""
    gender = find_gender(description)
    text = _use_plural_verbs(personality) if gender == "non-binary" else personality
    for old, new in _PRONOUNS[gender].items() if gender else ():
        pattern = rf"\b{old}\b" if old.isalpha() else rf"\b{old}"
        cased = {True: new.capitalize(), False: new}
        text = re.sub(pattern, lambda m, cased=cased: cased[m[0][0].isupper()], text, flags=re.IGNORECASE)
    return text


def _use_plural_verbs(text: str) -> str:
    """ "She is" -> "She are", "He loves" -> "He love": the subject becomes "they" afterwards."""

    def use_plural(match: re.Match[str]) -> str:
        verb = match[3]
        base = _PLURAL.get(verb) or re.sub(r"(?<=[^aeiou])ies$", "y", re.sub(r"(?<=sh|ch|ss)es$", "", verb))
        return f"{match[1]} {match[2] or ''}{re.sub(r'(?<=[^su])s$', '', base)}"

    text = re.sub(r"\b([Ss]?[Hh]e)['\u2019]s\b", r"\1 is", text)
    return re.sub(r"\b([Ss]?[Hh]e) ((?:also|always|often|never|rarely|usually) )?(\w+s)\b", use_plural, text)
