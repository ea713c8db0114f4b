"""RLPA as notebooks over a thin library: dynamic user profiles inferred turn by turn, trained by PPO."""

from pkgutil import resolve_name
from typing import Any

# The public names and where they are; imported when asked for, since some need torch.
_PLACES = {
    "InputError": "settings.config:InputError", "Profile": "dialogue.profile:Profile",
    "alignment_level": "evaluation.metrics:alignment_level", "evaluate": "evaluation.scoring:evaluate",
    "gae": "rlpa.ppo:gae", "load_config": "settings.config:load_config",
    "normalized_improvement": "evaluation.metrics:normalized_improvement", "open_run": "runs:open_run",
    "parse_reply": "dialogue.profile:parse_reply", "profile_f1": "rlpa.rewards:profile_f1",
    "read_aloe": "personas.sources:read_aloe", "read_personachat": "personas.sources:read_personachat",
    "train": "rlpa.training:train",
}
__all__ = sorted(_PLACES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return resolve_name(f"{__name__}.{_PLACES[name]}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
