"""What a user of the miniature has revealed, read from its words by the grammar: an opinion that does not know the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.reveal import words
from rlpa_lib.mini import language
from rlpa_lib.mini import lexicon as lex

GRAMMARS = ("user_train", "user_test", "changes_train", "changes_test")


@dataclass(frozen=True)
class RuleRevealJudge:
    """A slot is told when a sentence that tells the slot holds its value; the persona is the one that holds now."""

    def find_revealed(self, cases: Sequence[tuple[Persona, Dialogue]]) -> list[frozenset[str] | None]:
        """As in `reveal.RevealJudge`; never None."""
        return [self._one(*case) for case in cases]

    def _one(self, persona: Persona, dialogue: Dialogue) -> frozenset[str]:
        told: set[str] = set()
        for text in words(dialogue):
            sentences = [s for name in GRAMMARS for options in language.parse(text, name) for s in options]
            facts = [fact for s in sentences if s.template.act in ("say", "changed") for fact in s.facts]
            told |= {slot for slot, phrase in facts if lex.same_value(slot, phrase, persona.profile.get(slot) or "")}
            # A slot without frames of its own is told by its name (mini.user).
            told |= {slot for slot, value in persona.profile.items for form in language.spoken_forms(slot, value)
                     if f"About {slot.lower()} there is this: {form}." in text}  # fmt: skip
        return frozenset(told)
