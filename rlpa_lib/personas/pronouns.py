"""Make a personality text speak of the person that a profile describes (appendix C.2: its own gender is to be ignored)."""

from __future__ import annotations

import re

from rlpa_lib.personas.slot_rules import gender

# "her" stands for "him" before these words and at the end of a clause, for "his" elsewhere.
_AFTER_OBJECT = r"(?=\s*(?:[.,;!?]|$)|\s+(?:and|or|to|in|on|at|by|with|for|from|as|because|when|if|feel|feels|through)\b)"
_SIMPLE = {
    "male": {"she": "he", "herself": "himself", "hers": "his"},
    "female": {"he": "she", "himself": "herself", "his": "her", "him": "her"},
    "non-binary": {"he": "they", "she": "they", "himself": "themself", "herself": "themself", "his": "their", "him": "them", "hers": "theirs"},
}
_PLURAL = {"is": "are", "has": "have", "was": "were", "does": "do"}


def adjust_pronouns(personality: str, description: str) -> str:
    """The personality text with the pronouns of the description's gender; unchanged where the description tells none."""
    target = gender(description)
    if target is None:
        return personality
    text = personality
    if target == "non-binary":
        text = _plural_verbs(text)
    if target != "female":
        object_form, possessive = ("him", "his") if target == "male" else ("them", "their")
        text = _swap(text, rf"her{_AFTER_OBJECT}", object_form)
        text = _swap(text, "her", possessive)
    for old, new in _SIMPLE[target].items():
        text = _swap(text, old, new)
    return text


def _plural_verbs(text: str) -> str:
    """ "She is" -> "She are", "He loves" -> "He love": the subject becomes "they" afterwards."""
    text = re.sub(r"\b([Ss]?[Hh]e)['\u2019]s\b", r"\1 is", text)

    def plural(match: re.Match[str]) -> str:
        verb = match.group(3)
        base = _PLURAL.get(verb) or re.sub(r"(?<=[^aeiou])ies$", "y", re.sub(r"(?<=sh|ch|ss)es$", "", verb))
        return f"{match.group(1)} {match.group(2) or ''}{re.sub(r'(?<=[^su])s$', '', base)}"

    return re.sub(r"\b([Ss]?[Hh]e) ((?:also|always|often|never|rarely|usually) )?(\w+s)\b", plural, text)


def _swap(text: str, old: str, new: str) -> str:
    """Replace a word, keeping a capital first letter."""
    pattern = rf"\b{old}\b" if old.isalpha() else rf"\b{old}"
    return re.sub(pattern, lambda match: new.capitalize() if match.group()[0].isupper() else new, text, flags=re.IGNORECASE)
