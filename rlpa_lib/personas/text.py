"""Small tools on English text that the slot rules share: sentences, clauses, gerunds, pronouns, stems."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources

NEAR_DUPLICATE = 0.6  # share of common words above which two descriptions count as one person
_DOUBLING = "swim run jog knit shop plan sit chat hop get win dig skip cut".split()
# "her" stands for "him" before these words and at the end of a clause, for "his" elsewhere.
_HER_OBJECT = (
    r"her(?=\s*(?:[.,;!?]|$)"
    r"|\s+(?:and|or|to|in|on|at|by|with|for|from|as|because|when|if|feel|feels|through)\b)"
)
_PRONOUNS = {
    "male": {_HER_OBJECT: "him", "her": "his", "she": "he", "herself": "himself", "hers": "his"},
    "female": {"he": "she", "himself": "herself", "his": "her", "him": "her"},
    "non-binary": {
        _HER_OBJECT: "them", "her": "their", "he": "they", "she": "they", "himself": "themself",
        "herself": "themself", "his": "their", "him": "them", "hers": "theirs",
    },
}
_PLURAL = {"is": "are", "has": "have", "was": "were", "does": "do"}


@cache
def read_rows(file: str) -> list[list[str]]:
    """The rows of a table of this folder, without its comments."""
    text = (resources.files("rlpa_lib.personas") / file).read_text(encoding="utf-8")
    return [line.split("\t") for line in text.splitlines() if not line.startswith("#")]


@cache
def fill_in(pattern: str) -> str:
    """A pattern with its <NAMES> replaced by the pieces of words.tsv."""
    return re.sub("<([A-Z_]+)>", lambda name: fill_in(dict(read_rows("words.tsv"))[name[1]]), pattern)


def split_sentences(text: str) -> list[str]:
    """Sentences without their last mark; curly quotes become straight ones."""
    plain = re.sub(r"Ph\.D\.?", "PhD", re.sub("[\u2018\u2019]", "'", text))
    return [part for part in (p.strip(" .!?\"") for p in re.split(r"(?<=[.!?])\s+", plain)) if part]


def cut_clause(text: str) -> str:
    """The start of `text` up to where another clause begins ("... and often travels", "..., which ...")."""
    return re.split(fill_in("<CLAUSE_END>"), text, maxsplit=1)[0].strip(" ,")


def drop_pronouns(phrase: str) -> str:
    """The phrase as anybody could say it: "making her own bread in her kitchen" -> "making bread"."""
    phrase = re.sub(fill_in(r"(?i)\b<PRONOUN>\s+own\s+"), "", phrase)
    # What follows a pronoun adds little, except in "time with his family".
    kept = "family|friends|children|kids|grandchildren"
    phrase = re.sub(rf"\bwith (?:his|her|their) ({kept})\b", r"with \1", phrase)
    phrase = re.sub(fill_in("<PRONOUN_TAIL>"), "", phrase)
    return " ".join(re.sub(fill_in(r"(?i)\b<PRONOUN>\b"), "", phrase).split()).strip(" ,;:.")


def make_gerund(verb: str) -> str:
    """to travel -> traveling, to bake -> baking, to swim -> swimming."""
    if verb.endswith("ing") and verb not in ("sing", "bring", "swing", "ring", "cling"):
        return verb
    if verb in _DOUBLING:
        verb += verb[-1]
    elif verb.endswith("ie"):
        verb = verb[:-2] + "y"
    elif verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        verb = verb[:-1]
    return verb + "ing"


def join_items(items: Sequence[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return "".join(items) if len(items) < 2 else f"{', '.join(items[:-1])} and {items[-1]}"


def find_stems(phrase: str) -> frozenset[str]:
    """The content words of a phrase in lower case, without common endings; used to compare phrases."""
    words = re.findall(r"[a-z0-9]+", phrase.lower().replace("'s", ""))
    return frozenset(_stem(word) for word in words if not re.fullmatch(fill_in("<EMPTY>"), word))


def _stem(word: str) -> str:
    if len(word) > 6 and word.endswith(("nning", "mming", "gging", "tting")):
        return word[:-4]
    return cut_ending(word, ("ings", "ing", "ers", "ies", "er", "es", "ed", "s", "e", "y"))


def cut_ending(word: str, endings: Iterable[str]) -> str:
    """The word without the first of these endings that leaves at least three letters."""
    return next((word[: -len(e)] for e in endings if word.endswith(e) and len(word) - len(e) >= 3), word)


def find_gender(text: str) -> str | None:
    """male, female or non-binary, as stated or else by the pronouns; None where neither tells."""
    if re.search(r"(?i)\bnon-?binary\b|\bgenderqueer\b", text):
        return "non-binary"
    words = Counter(re.findall(r"[a-z]+", text.lower()))
    groups = ("he", "his", "him"), ("she", "her", "hers"), ("they", "their", "them")
    he, she, they = (sum(words[word] for word in group) for group in groups)
    if he != she:
        return "male" if he > she else "female"
    return "non-binary" if they and not he and not re.match(r"(?i)\s*(?:an?|the)\b", text) else None


def adjust_pronouns(personality: str, description: str) -> str:
    """The personality with pronouns of the description's gender, if that tells one (appendix C.2)."""
    gender = find_gender(description)
    text = _use_plural_verbs(personality) if gender == "non-binary" else personality
    for old, new in _PRONOUNS[gender].items() if gender else ():
        pattern = rf"(?i)\b{old}\b" if old.isalpha() else rf"(?i)\b{old}"
        text = re.sub(pattern, lambda m, new=new: new.capitalize() if m[0][0].isupper() else new, text)
    return text


def _use_plural_verbs(text: str) -> str:
    """ "She is" -> "She are", "He loves" -> "He love": the subject becomes "they" afterwards."""

    def use_plural(match: re.Match[str]) -> str:
        subject, adverb, verb = match.groups("")
        base = _PLURAL.get(verb) or re.sub(r"(?<=[^aeiou])ies$", "y", re.sub(r"(?<=sh|ch|ss)es$", "", verb))
        return f"{subject} {adverb}{re.sub(r'(?<=[^su])s$', '', base)}"

    text = re.sub(r"\b([Ss]?[Hh]e)['\u2019]s\b", r"\1 is", text)
    return re.sub(r"\b([Ss]?[Hh]e) ((?:also|always|often|never|rarely|usually) )?(\w+s)\b", use_plural, text)


def are_near(a: frozenset[str], b: frozenset[str]) -> bool:
    """Whether two texts, as their content words, share NEAR_DUPLICATE of them or more (Jaccard)."""
    common = len(a & b)
    return common > 0 and common / (len(a) + len(b) - common) >= NEAR_DUPLICATE
