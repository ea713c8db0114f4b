"""How much a simulated user may tell, what it has told, and repeated responses (sections 3.1, 5.3)."""

import math
from collections.abc import Sequence
from typing import Protocol

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona

OPENING = "Hello"  # appendix C.2
SHARE_PER_TURN = 0.15  # of the profile, on average over the turns so far
SAME = 0.75  # a response that shares this many letter triples with an earlier one counts as said before


def reveal_budget(n_slots: int, turn: int, n_told: int) -> int:
    """How many items may be told at `turn` (from 1, "Hello"): at most two, on average 15 % of all a turn."""
    return max(0, min(2, math.ceil(SHARE_PER_TURN * n_slots * (turn - 1)) - n_told, n_slots - n_told))


def said_before(responses: Sequence[str]) -> bool:
    """Is the last response nearly an earlier one (Jaccard over letter triples, in any language)?"""
    if not responses:
        return False
    last = _triples(responses[-1])
    return any(len(last & other) >= SAME * len(last | other) for other in map(_triples, responses[:-1]))


def _triples(text: str) -> set[str]:
    letters = "".join(sign for sign in text.casefold() if sign.isalnum())
    return {letters[i : i + 3] for i in range(max(1, len(letters) - 2))}


class RevealJudge(Protocol):
    """Reads what a user has said, and nothing else."""

    def find_revealed(self, cases: Sequence[tuple[Persona, Dialogue]]) -> list[frozenset[str] | None]:
        """The slots that the user's words have told so far, for each case; None where the judge failed."""


def words(dialogue: Dialogue) -> list[str]:
    """What the user has said, the pending utterance included, in order."""
    return [utterance.text for utterance in dialogue.utterances()]
