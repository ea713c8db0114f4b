"""What a judge is: the overlap of two profiles and five binary criteria with reasons (sections 3.2 and 3.3)."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rlpa_lib.dialogue import Dialogue
from rlpa_lib.personas import Persona
from rlpa_lib.profile import Profile, Reply

# Naturalness, Relevance, Logical consistency, Engagement (G), Informativeness (F).
CRITERIA = ("N", "R", "L", "G", "F")


@dataclass(frozen=True)
class Verdict:
    """Five binary marks, each with a reason."""

    marks: dict[str, bool]
    reasons: dict[str, str]

    @property
    def score(self) -> int:
        """N * R * L * G * F (eq. 4), 0 or 1."""
        return int(all(self.marks[c] for c in CRITERIA))


class Judge(Protocol):
    """The source of training rewards. It never sees more than the transcript, the inferred and the true profile."""

    def match(self, inferred: Profile, true: Profile) -> tuple[tuple[int, int], ...]:
        """One-to-one pairs (index inferred, index true) of items that mean the same (eq. 2)."""

    def matches(self, pairs: Sequence[tuple[Profile, Profile]]) -> list[tuple[tuple[int, int], ...]]:
        """`match` for a batch, in order."""

    def responses(self, cases: Sequence[tuple[Dialogue, Reply]]) -> list[Verdict]:
        """The criteria for each reply to a pending utterance, judged against the INFERRED profile (section 3.3)."""


class EvaluationJudge(Protocol):
    """The source of evaluation scores: it sees the user's true persona (appendix C.3)."""

    def evaluate(self, cases: Sequence[tuple[Persona, Dialogue, str]]) -> list[Verdict]:
        """The criteria for each response (text alone) to a pending utterance, judged against the true persona."""
