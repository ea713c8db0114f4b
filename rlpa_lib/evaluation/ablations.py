"""Trainings that leave something out (section 5.1, table 2, figure 18): the same users, seeds and amount of
training as with both rewards.

The training with both rewards is 20_ppo's own: it keeps its weights of the moment at which all are compared
(`ablations.iterations`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from rlpa_lib.agents.trained import find_trained
from rlpa_lib.evaluation import intervals, rows, tables
from rlpa_lib.rlpa import training
from rlpa_lib.rlpa.training import count_updates
from rlpa_lib.runs.run import Run
from rlpa_lib.settings import config
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import ABLATIONS, BOTH_REWARDS, METHODS

LABELS = {BOTH_REWARDS: METHODS["rlpa"].label} | {name: entry.label for name, entry in ABLATIONS.items()}


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
    """Name of a variant's trained weights, checkpoint and metrics."""
    return f"ablation-{variant}"


def list_changes(cfg: Config, variant: str) -> tuple[str, ...]:
    """What a variant changes, as overrides."""
    if variant == BOTH_REWARDS:
        return (f"ppo.reward_parts={BOTH_REWARDS}",)
    return ABLATIONS[variant].changes(cfg)


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
    if find_trained(run.dir, adapter(variant)) is None:
        return None
    until = count_updates(own.cfg)
    for name in (adapter(variant), *(["ppo"] if own.cfg == run.cfg else [])):
        history = run.read_metrics(name)[:until]
        if len(history) == until:
            return Training(variant, own, history)
    return None


def train_variant(
    run: Run, params: str, overrides: Sequence[str], variant: str, *, say: Callable[[str], None] = print
) -> Training:
    """One training of the comparison: what this run holds is taken as it is (20_ppo's own for both rewards),
    the rest is trained or finished."""
    if known := find_training(run, variant):
        return known
    extra, until = list_changes(run.cfg, variant), count_updates(apply_variant(run, variant).cfg)
    training.train(run, params, overrides, name=adapter(variant), changes=extra, until=until, say=say)
    known = find_training(run, variant)
    assert known is not None, variant
    return known


def score_training(one: Training, *parties: Any) -> np.ndarray:
    """Scores (E, K) of a training with Vanilla users, as in table 2; what was played before is read back.
    `parties`: people, user, evaluator and judge, as in `Stage.load_judgements`."""
    stage = rows.Stage(one.run, [one.row])
    return tables.score_table(stage.load_judgements(one.row, "vanilla", *parties))


def ablation_table(scores: Mapping[str, np.ndarray], model: str) -> pd.DataFrame:
    """Table 2's columns (AL(k), avg, N-IR, N-R2, with intervals), a row a variant -> scores (E, K)."""
    cells = tables.label_cells("rlpa", model)
    lines = [cells | {"method": LABELS[v]} | tables.turnwise_row(own_EK) for v, own_EK in scores.items()]
    return pd.DataFrame(lines)


def comparison_table(scores: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Both rewards minus each other variant on the same users, in percent points, with 95 % interval, p, and
    Holm's p over the table."""
    lines = []
    for variant in (v for v in scores if v != BOTH_REWARDS):
        found = intervals.paired_difference(scores[BOTH_REWARDS], scores[variant])
        lines.append({"method": LABELS[variant]} | found.percent_points())
    frame = pd.DataFrame(lines, columns=["method", "difference", "low", "high", "p"])
    return frame.assign(p_holm=intervals.adjust_holm(frame["p"]))


def all_seeds(run: Run) -> dict[int, dict[str, Training]]:
    """Seed -> variant -> training, of this run and of those beside it that differ in the seed alone;
    unfinished trainings are left out."""
    found = {}
    for one in rows.find_siblings(run):
        trainings = {v: find_training(one, v) for v in (BOTH_REWARDS, *run.cfg.ablations.variants)}
        if any(trainings.values()):
            found[one.seed] = {v: training for v, training in trainings.items() if training}
    return found


def read_scores(trainings: Mapping[str, Training]) -> dict[str, np.ndarray]:
    """Scores (E, K) by variant of one seed's trainings; {} until all that were asked for are there and
    played."""
    scores = {}
    for variant in (BOTH_REWARDS, *next(iter(trainings.values())).run.cfg.ablations.variants):
        if (one := trainings.get(variant)) is None:
            return {}
        judged = rows.read_finished(one.run, one.row.name, "vanilla", rows.version(one.run, one.row))
        if judged is None:
            return {}
        scores[variant] = tables.score_table(judged)
    return scores


def seeds_table(by_seed: Sequence[Mapping[str, np.ndarray]]) -> pd.DataFrame:
    """AVG (percent) of each variant and both rewards minus it, with 95 % intervals over seeds and users, from
    `read_scores` of each seed. ValueError: fewer than three seeds."""
    stacked = {v: np.stack([scores[v] for scores in by_seed]) for v in by_seed[0]}
    lines = []
    for variant, own in stacked.items():
        both = None if variant == BOTH_REWARDS else stacked[BOTH_REWARDS]
        lines.append({"method": LABELS[variant]} | tables.compare_over_seeds(own, both))
    return pd.DataFrame(lines)
