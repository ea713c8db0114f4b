"""What a run may cost is agreed before it starts."""

import math
from collections.abc import Collection
from pathlib import Path

from rlpa_lib.runs import storage
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import POLICIES

USAGE = Path("metrics/usage.jsonl")


def agree(
    cfg: Config, notebooks: Collection[str], run_dir: Path, accepted: float | None = None
) -> float | None:
    """What `accepted` (USD; None: not given) sets `endpoint.max_usd` to; None: the settings' own cap stands,
    or nothing costs money.

    InputError: what these notebooks are planned to cost, beside what others of the run have spent, exceeds
    the cap, or cannot be known.
    """
    if accepted is not None and not (math.isfinite(accepted) and accepted > 0):
        raise InputError(f"--accept-cost: wants USD, more than 0; got {accepted:g}")
    cap = cfg.endpoint.max_usd if accepted is None else accepted
    if cap is None or cfg.endpoint.cache_only or not _names_model(cfg):
        return None
    from rlpa_lib.plan import cost, plan  # slow to import, and most runs ask no server

    loads = plan.plan(cfg, only=notebooks)
    bills = [(load.notebook, load.asked) for load in loads if load.asked]
    planned = cost.check_cap(cfg, bills, cap, _sum_spent(run_dir / USAGE, notebooks))
    return accepted if planned > 0 else None


def _names_model(cfg: Config) -> bool:
    """Whether any server could be asked."""
    others = (cfg.study.user_models, cfg.study.profile_judges, cfg.evaluation.comparators)
    parties = (cfg.user, cfg.judge, cfg.evaluator, *(party for some in others for party in some.values()))
    return not POLICIES[cfg.policy.kind].trainable or any(party.model for party in parties)


def _sum_spent(file: Path, notebooks: Collection[str]) -> float:
    """USD that other notebooks have cost; a repeated notebook reads its answers from the cache."""
    lines = storage.read_jsonl(file, appended=True) if file.is_file() else []
    others = [line for line in lines if line.get("notebook") not in notebooks]
    return sum(line.get("usd", 0.0) + line.get("lost_usd", 0.0) for line in others)
