"""Figures of the trained baselines: learning curves of SFT and DPO, and GRPO beside PPO. As in `figures`: (figure, the drawn DataFrame)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlpa_lib.figures import PALETTE, STYLE


def learning_curves(histories: Mapping[str, Sequence[dict]], columns: Mapping[str, str]) -> tuple[Figure, pd.DataFrame]:
    """One panel a column of the metrics (name -> label of its axis), one line a training, over optimiser steps."""
    data = pd.concat([pd.DataFrame(rows)[["step", *columns]].assign(row=name) for name, rows in histories.items()])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(columns), figsize=(3.5 * len(columns), 3.2), squeeze=False, layout="constrained")
        for axis, (column, label) in zip(axes[0], columns.items(), strict=True):
            for (name, part), color in zip(data.groupby("row", sort=False), PALETTE, strict=False):
                axis.plot(part["step"], part[column], marker="o", markersize=3, color=color, label=name)
            axis.set(xlabel="optimiser step", ylabel=label)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0][0].legend(frameon=False)
    plt.close(figure)  # out of pyplot's care, so that a notebook shows it once
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
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
        for (name, part), color in zip(data.groupby("method"), PALETTE, strict=False):
            axes.plot(part["samples"], part["reward"], marker="o", markersize=4, color=color, label=name)
        axes.set(xlabel="samples judged", ylabel="mean reward of a turn")
        axes.legend(frameon=False)
    plt.close(figure)
    return figure, data
