"""What a judge is: the overlap of two profiles and five binary criteria with reasons (sections 3.2 and
3.3)."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply

# What alignment with a profile means (section 3.3). On record only: the criteria alone make the score.
DIMENSIONS = ("preference_expression", "style_consistency", "goal_alignment", "persona_coherence")


@dataclass(frozen=True)
class Verdict:
    """Five binary marks, each with a reason. With one holistic verdict (released code) all five carry it.
    `dimensions` are the four of section 3.3 where a judge marks them, else empty."""

    marks: dict[str, bool]
    reasons: dict[str, str]
    dimensions: dict[str, bool] = field(default_factory=dict)

    @property
    def score(self) -> int:
        """The product of its marks, 0 or 1: N * R * L * G * F (eq. 4). ValueError: there is no mark."""
        if not self.marks:
            raise ValueError("a verdict without marks has no score")
        return int(all(self.marks.values()))


class Judge(Protocol):
    """The source of training rewards. It never sees more than the transcript, the inferred and the true
    profile."""

    def match(self, inferred: Profile, true: Profile) -> tuple[tuple[int, int], ...]:
        """One-to-one pairs (index inferred, index true) of items that mean the same (eq. 2)."""

    def matches(self, pairs: Sequence[tuple[Profile, Profile]]) -> list[tuple[tuple[int, int], ...] | None]:
        """`match` for a batch, in order; None where the judge gave no readable answer."""

    def responses(self, cases: Sequence[tuple[Dialogue, Reply]]) -> list[Verdict | None]:
        """The criteria for each reply to a pending utterance, judged against the INFERRED profile (section
        3.3)."""


class EvaluationJudge(Protocol):
    """The source of evaluation scores: it sees the user's true persona (appendix C.3)."""

    def evaluate(self, cases: Sequence[tuple[Persona, Dialogue, str]]) -> list[Verdict | None]:
        """The criteria for each response (text alone) to a pending utterance, judged against the true
        persona."""


class JudgeFailed(RuntimeError):
    """More cases than allowed could not be judged, or one that had to be."""


@dataclass
class FailureTally:
    """Counts cases that a judge could not answer: they are neither 0 nor 1, and too many of them stop the
    run.

    Up to `limit` (0 to 1, `run.max_judge_failure_rate`) of the cases may fail; the first 100 are counted as
    100, so that one failure at the start of a run is not yet a rate.
    """

    limit: float
    asked: int = 0
    failed: int = 0

    def add(self, asked: int, failed: int, why: str = "") -> None:
        """Count a batch. JudgeFailed: the limit is passed; the message tells the last failure."""
        self.asked, self.failed = self.asked + asked, self.failed + failed
        if failed and self.failed > self.limit * max(self.asked, 100):
            raise JudgeFailed(
                f"the judge gave no readable answer in {self.failed} of {self.asked} cases, more than "
                f"run.max_judge_failure_rate = {self.limit:g} allows"
                + (f"; the last failure: {why}" if why else "")
            )
