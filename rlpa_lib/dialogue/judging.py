"""What a judge gives: the overlap of two profiles, five binary criteria with reasons (sections 3.2, 3.3)."""
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply

# What alignment with a profile means (section 3.3); recorded only, the score comes from the criteria.
DIMENSIONS = ("preference_expression", "style_consistency", "goal_alignment", "persona_coherence")


@dataclass(frozen=True)
class Verdict:
    """Five binary marks with reasons, all equal for one holistic verdict (released code). `dimensions`: the
    four of section 3.3 if a judge marks them, else empty."""

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
    """The source of training rewards; it sees only the transcript, the inferred and the true profile."""

    def match(self, inferred: Profile, true: Profile) -> tuple[tuple[int, int], ...]:
        """One-to-one pairs (index inferred, index true) of items that mean the same (eq. 2)."""

    def matches(self, pairs: Sequence[tuple[Profile, Profile]]) -> list[tuple[tuple[int, int], ...] | None]:
        """`match` for a batch, in order; None where the judge gave no readable answer."""

    def responses(self, cases: Sequence[tuple[Dialogue, Reply]]) -> list[Verdict | None]:
        """Criteria for each reply to a pending utterance, against the INFERRED profile (section 3.3)."""


class EvaluationJudge(Protocol):
    """The source of evaluation scores: it sees the user's true persona (appendix C.3)."""

    def evaluate(self, cases: Sequence[tuple[Persona, Dialogue, str]]) -> list[Verdict | None]:
        """Criteria for each response (text only) to a pending utterance, against the true persona."""


class JudgeFailed(RuntimeError):
    """More cases than allowed could not be judged, or a case that had to be judged could not."""


@dataclass
class FailureTally:
    """Counts cases that a judge could not answer (neither 0 nor 1). A share of `limit` may fail (0 to 1,
    `run.max_judge_failure_rate`), of at least 100 cases, so that one early failure does not stop a run."""

    limit: float
    asked: int = 0
    failed: int = 0

    def add(self, asked: int, failed: int, why: str = "") -> None:
        """Count a batch. JudgeFailed: the limit is exceeded; the message gives the last failure, `why`."""
        self.asked, self.failed = self.asked + asked, self.failed + failed
        if failed and self.failed > self.limit * max(self.asked, 100):
            last = f"; the last failure: {why}" if why else ""
            raise JudgeFailed(
                f"the judge gave no readable answer in {self.failed} of {self.asked} cases, more than "
                f"run.max_judge_failure_rate = {self.limit:g} allows{last}"
            )
