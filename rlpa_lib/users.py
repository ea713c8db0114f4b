"""What a simulated user is (section 3.1): it holds a profile that the policy cannot see and reveals it turn by turn."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rlpa_lib.dialogue import Dialogue, Utterance
from rlpa_lib.personas import Persona


class SimulatedUser(Protocol):
    """Stateless: what it says next depends on its seed, the persona and the transcript alone, so runs can be resumed."""

    def reply(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue]) -> list[Utterance]:
        """The next utterance of each user, in order; the first of every dialogue is "Hello" (appendix C.2)."""
