"""Settings that may say `auto`: their value is measured when a run begins, and stands in its record."""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from rlpa_lib.settings.schema import Config

MEASURED = ("policy.dtype", "run.threads")
USUAL = {"policy.dtype": "float32", "run.threads": 1}  # where nothing is computed here


def list_open(cfg: Config) -> list[str]:
    """Dotted keys whose value is still to be measured."""
    return [key for key in MEASURED if attrgetter(key)(cfg) == "auto"]


def settle(cfg: Config, chosen: Mapping[str, Any]) -> Config:
    """The same settings with the values that were `chosen` by measuring, by dotted key."""
    for key, value in chosen.items():
        section, _, name = key.partition(".")
        changed = getattr(cfg, section).model_copy(update={name: value})
        cfg = cfg.model_copy(update={section: changed})
    return cfg
