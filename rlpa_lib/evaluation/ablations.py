"""Trainings that leave something out (section 5.1, table 2, figure 18): the same users, seeds and amount of
training as with both rewards.

The training with both rewards is 20_ppo's own: it keeps its adapter of the moment at which all are compared
(`ablations.iterations`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from rlpa_lib.dialogue.judging import EvaluationJudge, Judge
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.protocols import SimulatedUser
from rlpa_lib.evaluation import intervals, rows, scoring, seeds, tables
from rlpa_lib.rlpa import training
from rlpa_lib.rlpa.training import count_updates
from rlpa_lib.runs.run import Run
from rlpa_lib.settings import config
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import ABLATIONS, BOTH_REWARDS, METHODS

LABELS = {
    BOTH_REWARDS: METHODS["rlpa"].label,
    **{name: ablation.label for name, ablation in ABLATIONS.items()},
}


@dataclass(frozen=True)
class Training:
    """One training of the comparison: its settings inside the run, and the metrics of its updates up to the
    comparison."""

    variant: str
    run: Run
    history: list[dict]

    @property
    def row(self) -> rows.Row:
        """The row that plays with this training's weights."""
        return rows.Row("rlpa", weights=adapter(self.variant))


def adapter(variant: str) -> str:
    """Name of a variant's adapter, checkpoint and metrics."""
    return f"ablation-{variant}"


def list_changes(cfg: Config, variant: str) -> tuple[str, ...]:
    """What a variant changes, as overrides."""
    return (
        (f"ppo.reward_parts={BOTH_REWARDS}",) if variant == BOTH_REWARDS else ABLATIONS[variant].changes(cfg)
    )


def apply_variant(run: Run, variant: str) -> Run:
    """The same run directory and seed under a variant's settings. InputError: they cannot work together with
    the run's own."""
    label = f"ablations.variants: {variant}"
    cfg = config.change_config(run.cfg, list_changes(run.cfg, variant), label)
    if variant != BOTH_REWARDS and cfg == run.cfg:
        raise InputError(f"{label} changes nothing: the run is set so already")
    return replace(run, cfg=cfg)


def find_training(run: Run, variant: str) -> Training | None:
    """A training that this run directory holds up to the comparison, else None."""
    own = apply_variant(run, variant)
    until, names = count_updates(own.cfg), [adapter(variant), *(["ppo"] if own.cfg == run.cfg else [])]
    if not (run.dir / "adapters" / adapter(variant) / "adapter_config.json").is_file():
        return None
    for name in names:
        history = run.read_metrics(name)[:until]
        if len(history) == until:
            return Training(variant, own, history)
    return None


def train_variant(
    run: Run, params: str, overrides: Sequence[str], variant: str, *, say: Callable[[str], None] = print
) -> Training:
    """One training of the comparison: what this run holds is taken as it is (20_ppo's own for both rewards),
    the rest is trained or finished."""
    known = find_training(run, variant)
    if known is None:
        extra = list_changes(run.cfg, variant)
        until = count_updates(apply_variant(run, variant).cfg)
        training.train(run, params, overrides, name=adapter(variant), changes=extra, until=until, say=say)
        known = find_training(run, variant)
    assert known is not None, variant
    return known


def score_training(
    one: Training, people: Sequence[Persona], user: SimulatedUser, evaluator: EvaluationJudge, judge: Judge,
    benchmark: str = "vanilla",
) -> np.ndarray:
    """Scores (E, K) of a training with users of a benchmark (table 2: vanilla); what was played before is
    read back."""
    stage = rows.Stage(one.run, [one.row])
    return scoring.score_table(stage.load_judgements(one.row, benchmark, people, user, evaluator, judge))


def ablation_table(scores: Mapping[str, np.ndarray], model: str) -> pd.DataFrame:
    """Table 2's columns (AL(k), avg, N-IR, N-R2, with intervals), a row a variant -> scores (E, K)."""
    name = tables.label_row("rlpa", model)[0]
    return pd.DataFrame(
        [
            {"model": name, "method": LABELS[v], **tables.turnwise_row(found_EK)}
            for v, found_EK in scores.items()
        ]
    )


def comparison_table(scores: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Both rewards minus each other variant on the same users, in percent points, with 95 % interval, p, and
    Holm's p over the table."""
    lines = []
    for variant in scores:
        if variant != BOTH_REWARDS:
            c = intervals.paired_difference(scores[BOTH_REWARDS], scores[variant])
            values = {
                "difference": 100 * c.difference, "low": 100 * c.low, "high": 100 * c.high, "p": c.p_value,
            }
            lines.append({"method": LABELS[variant], **values})
    frame = pd.DataFrame(lines, columns=["method", "difference", "low", "high", "p"])
    return frame.assign(p_holm=intervals.adjust_holm(frame["p"]))


def all_seeds(run: Run) -> dict[int, dict[str, Training]]:
    """Seed -> variant -> training, of this run and of those beside it that differ in the seed alone;
    unfinished trainings are left out."""
    every = {
        one.seed: {v: find_training(one, v) for v in (BOTH_REWARDS, *run.cfg.ablations.variants)}
        for one in seeds.find_siblings(run)
    }
    return {
        seed: {v: one for v, one in some.items() if one} for seed, some in every.items() if any(some.values())
    }


def seeds_table(by_seed: Mapping[int, Mapping[str, Training]]) -> pd.DataFrame:
    """AVG (percent) of each variant and both rewards minus it, with 95 % intervals over seeds and users, of
    evaluated seeds (`is_evaluated`).

    ValueError: fewer than three seeds.
    """
    scores = [{v: _finished(one) for v, one in some.items()} for some in by_seed.values()]
    lines = []
    for variant in scores[0]:
        own = np.stack([some[variant] for some in scores])
        line = {
            "method": LABELS[variant], "seeds": own.shape[0], "users": own.shape[1],
            **tables.average_over_seeds("avg", own),
        }
        if variant != BOTH_REWARDS:
            line |= tables.average_over_seeds(
                "rlpa_minus", np.stack([some[BOTH_REWARDS] for some in scores]) - own
            )
        lines.append(line)
    return pd.DataFrame(lines)


def is_evaluated(trainings: Mapping[str, Training]) -> bool:
    """Whether every training of a seed that was asked for is there, and played with all users."""
    asked = (BOTH_REWARDS, *next(iter(trainings.values())).run.cfg.ablations.variants)
    return set(asked) <= set(trainings) and all(_finished(one) is not None for one in trainings.values())


def _finished(one: Training) -> np.ndarray | None:
    judgements = scoring.read_finished(one.run, one.row.name, "vanilla", rows.version(one.run, one.row))
    return None if judgements is None else scoring.score_table(judgements)
