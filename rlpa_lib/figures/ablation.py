"""Figure 18 (appendix I): reward by training step of PRR, PR and RR, and "Sum", what PR and RR reach in their own part together."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from rlpa_lib.figures.credit import reach
from rlpa_lib.figures.frame import PALETTE, panels

CURVES = ("PRR", "PR", "RR", "Sum")
PANELS = {"reward": "what each is rewarded for", "profile": "profile reward", "response": "response reward", "format_rate": "format rate"}
_PARTS = {"profile": "reward_profile", "response": "reward_response", "format_rate": "format_rate"}


def reward_rows(histories: Mapping[int, Mapping[str, list[dict]]]) -> pd.DataFrame:
    """seed -> training -> metrics of its updates, as rows: seed, run, update, iteration, and the columns of PANELS.

    `reward` is what the training itself was rewarded for (PRR 0..2, PR and RR 0..1), the others are logged whether rewarded or not. Sum is PR's
    profile reward plus RR's response reward at the same step; it has no parts, because no one policy earned it.
    """
    rows = []
    for seed, trainings in histories.items():
        for name, history in trainings.items():
            for row in history:
                parts = {panel: row[column] for panel, column in _PARTS.items()}
                step = {"update": row["update"], "iteration": row["iteration"]}
                rows.append({"seed": seed, "run": name, **step, "reward": row["reward_total"], **parts})
        if {"PR", "RR"} <= set(trainings):
            for one, other in zip(trainings["PR"], trainings["RR"], strict=True):
                total = one["reward_profile"] + other["reward_response"]
                rows.append({"seed": seed, "run": "Sum", "update": one["update"], "iteration": one["iteration"], "reward": total})
    return pd.DataFrame(rows, columns=["seed", "run", "update", "iteration", *PANELS])


def reward_progress(rows: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Four panels over the training steps. Thin: every step (its cohort stands at one turn, so steps differ by turn); thick: a cohort's mean at
    its last step; band: 95 % t interval of that over seeds (none for a single seed)."""
    drawn = []
    with panels(4, 2, (10, 6.4), sharex=True) as (figure, grid):
        for axes, (column, label) in zip(grid, PANELS.items(), strict=True):
            for color, name in zip(PALETTE, CURVES, strict=False):
                part = rows[(rows["run"] == name) & rows[column].notna()]
                if part.empty:
                    continue
                steps = part.groupby("update")[column].mean()
                cohorts = part.groupby(["seed", "iteration"])[column].mean().unstack("seed")
                last = part.groupby("iteration")["update"].max()
                mean, half = cohorts.mean(axis=1), reach(cohorts)
                axes.plot(steps.index, steps, color=color, linewidth=0.7, alpha=0.5)
                axes.plot(last, mean, color=color, linewidth=2.5, marker="o", linestyle="--" if name == "Sum" else "-", label=name)
                axes.fill_between(last, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
                drawn.append(pd.DataFrame({"panel": column, "run": name, "step": last, "mean": mean, "low": mean - half, "high": mean + half,
                                           "seeds": cohorts.shape[1]}))  # fmt: skip
            axes.set(title=label, ylim=(0, None))
        for axes in grid[2:]:
            axes.set_xlabel("training step (update)")
        grid[0].legend(frameon=False, ncols=4, loc="lower right")
    return figure, pd.concat(drawn, ignore_index=True)
