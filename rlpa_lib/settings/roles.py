"""Which section of the settings speaks for a role: its model, server, key and limits."""

from rlpa_lib.settings.base import Served
from rlpa_lib.settings.schema import Config

# role of the usage record -> section
SECTIONS = {
    "user": "user", "converter": "user", "rewriter": "user", "response_judge": "judge", "user_judge": "judge",
    "judge": "judge", "profile_judge": "profile_judge", "evaluator": "evaluator", "policy": "policy",
}  # fmt: skip


def find_section(cfg: Config, role: str) -> tuple[str, Served]:
    """Name and settings of a role's section. One that names no model leaves profiles to section `judge`, with
    its server and key: no key goes to a server that it was not named with."""
    name = SECTIONS[role]
    if name == "profile_judge" and cfg.profile_judge.model is None:
        name = "judge"
    return name, getattr(cfg, name)
