"""A persona: who a simulated user is."""

from dataclasses import dataclass

from rlpa_lib.dialogue.profile import Profile


@dataclass(frozen=True)
class Persona:
    """One user: the texts as read from the source, and the true profile that the policy has to infer."""

    id: str
    description: str
    personality: str
    profile: Profile
