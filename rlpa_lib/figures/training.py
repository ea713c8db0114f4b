"""Learning curves: PPO's (figure 18), those of SFT and DPO, and GRPO beside PPO. Credit schemes have figures of their own (`figures.credit`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from rlpa_lib.figures.frame import PALETTE, panels, whole


def learning_curves(histories: Mapping[str, Sequence[dict]], columns: Mapping[str, str]) -> tuple[Figure, pd.DataFrame]:
    """One panel a column of the metrics (name -> label of its axis), one line a training, over optimiser steps."""
    data = pd.concat([pd.DataFrame(rows)[["step", *columns]].assign(row=name) for name, rows in histories.items()])
    with panels(len(columns), len(columns), (3.5 * len(columns), 3.2)) as (figure, grid):
        for axes, (column, label) in zip(grid, columns.items(), strict=True):
            for (name, part), color in zip(data.groupby("row", sort=False), PALETTE, strict=False):
                axes.plot(part["step"], part[column], marker="o", markersize=3, color=color, label=name)
            axes.set(xlabel="optimiser step", ylabel=label)
            whole(axes)
        grid[0].legend(frameon=False)
    return figure, data


def reward_by_samples(grpo: Sequence[dict], ppo: Sequence[dict], samples: Mapping[str, int], block: int) -> tuple[Figure, pd.DataFrame]:
    """Mean reward over samples judged so far, GRPO against PPO; `samples` a step of each ("GRPO", "PPO").

    Either may be empty. PPO's steps are turns of a cohort, easy ones first, so each of its points is a mean over a cohort (`iteration`); a point
    of GRPO is one over `block` steps.
    """
    rows = [("GRPO", r["step"] * samples["GRPO"], (r["step"] - 1) // block, r["reward"]) for r in grpo]
    rows += [("PPO", r["update"] * samples["PPO"], r["iteration"], r["reward_total"]) for r in ppo]
    data = pd.DataFrame(rows, columns=["method", "samples", "group", "reward"])
    data = data.groupby(["method", "group"], as_index=False).agg(samples=("samples", "max"), reward=("reward", "mean"))
    with panels(1, 1, (5.5, 3.4)) as (figure, [axes]):
        for (name, part), color in zip(data.groupby("method"), PALETTE, strict=False):
            axes.plot(part["samples"], part["reward"], marker="o", markersize=4, color=color, label=name)
        axes.set(xlabel="samples judged", ylabel="mean reward of a turn")
        axes.legend(frameon=False)
    return figure, data


def training_curve(metrics_by_name: Mapping[str, Sequence[dict]], turns: int) -> tuple[Figure, pd.DataFrame]:
    """Figure 18: mean reward per cohort of users over the updates; one panel for each part."""
    frame = pd.concat([pd.DataFrame(rows).assign(run=name) for name, rows in metrics_by_name.items()])
    parts = {"reward_total": "total reward (0 to 2)", "reward_profile": "profile reward, F1", "reward_response": "response reward",
             "format_rate": "format rate"}
    columns = ["run", "update", "iteration", "turn", "kl", *parts]
    data = frame[columns]
    per_cohort = data.groupby(["run", "iteration"], as_index=False)[list(parts)].mean()
    with panels(4, 4, (13, 3.2), sharex=True) as (figure, grid):
        for axes, (column, label) in zip(grid, parts.items(), strict=True):
            sns.lineplot(per_cohort, x="iteration", y=column, hue="run", marker="o", ax=axes, palette="colorblind", legend=axes is grid[0])
            axes.set(xlabel=f"cohort (of {turns} turns each)", ylabel=label)
            axes.set_ylim(0, max(1.0, 1.05 * per_cohort[column].max()))
            whole(axes)
    return figure, data
