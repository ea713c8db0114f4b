"""Learning curves: PPO's (figure 18), those of SFT and DPO, and GRPO beside PPO. Credit schemes have figures of their own (`figures.credit`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from rlpa_lib.evaluation.intervals import ratio_interval
from rlpa_lib.figures.frame import PALETTE, panels, whole
from rlpa_lib.runs import storage

# column -> (field of a sample's reward, label)
PARTS = {"reward_total": ("total", "total reward (0 to 2)"), "reward_profile": ("profile", "profile reward, F1"),
         "reward_response": ("response", "response reward"), "format_rate": ("format_ok", "format rate")}  # fmt: skip


def learning_curves(histories: Mapping[str, Sequence[dict]], columns: Mapping[str, str]) -> tuple[Figure, pd.DataFrame]:
    """One panel a column of the metrics (name -> label of its axis), one line a training, over optimiser steps.

    These are the numbers of the very batches that were trained on, a log; nothing is estimated, so there is no interval.
    """
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
    of GRPO is one over `block` steps. Bands: 95 % t intervals over the steps or turns of a point (none for a single one).
    """
    rows = [("GRPO", r["step"] * samples["GRPO"], (r["step"] - 1) // block, r["reward"]) for r in grpo]
    rows += [("PPO", r["update"] * samples["PPO"], r["iteration"], r["reward_total"]) for r in ppo]
    data = pd.DataFrame(rows, columns=["method", "samples", "group", "reward"])
    grouped = data.groupby(["method", "group"], as_index=False)
    data = grouped.agg(samples=("samples", "max"), reward=("reward", "mean"), sem=("reward", "sem"), steps=("reward", "size"))
    reach = data["sem"] * stats.t.ppf(0.975, data["steps"] - 1)
    data = data.assign(reward_low=data["reward"] - reach, reward_high=data["reward"] + reach).drop(columns="sem")
    with panels(1, 1, (5.5, 3.4)) as (figure, [axes]):
        for (name, part), color in zip(data.groupby("method"), PALETTE, strict=False):
            axes.plot(part["samples"], part["reward"], marker="o", markersize=4, color=color, label=name)
            axes.fill_between(part["samples"], part["reward_low"], part["reward_high"], color=color, alpha=0.15, linewidth=0)
        axes.set(xlabel="samples judged", ylabel="mean reward of a turn")
        axes.legend(frameon=False)
    return figure, data


def cohort_rewards(folder: Path, name: str = "ppo") -> pd.DataFrame:
    """Mean over the samples of each cohort of new users, with 95 % intervals over its dialogues (_low, _high), from metrics/ and dialogues/.

    Columns cohort, dialogues, reward_total (0 to 2), reward_profile, reward_response, format_rate. What no judge could read is left out.
    """
    cohorts: dict[int, dict[str, list]] = {}
    for update in storage.read_jsonl(folder / "metrics" / f"{name}.jsonl", appended=True):
        for line in (folder / "dialogues" / name / f"update-{update['update']:04d}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["reward"]:
                rewards = [row["reward"][field] for field, _ in PARTS.values()]
                cohorts.setdefault(update["iteration"], {}).setdefault(row["dialogue"], []).append(rewards)
    return pd.DataFrame([{"cohort": cohort, "dialogues": len(found), **_means(found)} for cohort, found in sorted(cohorts.items())])


def _means(dialogues: Mapping[str, list]) -> dict[str, float]:
    sums, counts = np.array([np.sum(rows, axis=0) for rows in dialogues.values()]), [len(rows) for rows in dialogues.values()]
    row = {}
    for i, part in enumerate(PARTS):
        found = ratio_interval(sums[:, i], counts, (0.0, 2.0 if part == "reward_total" else 1.0))
        row |= {part: found.estimate, f"{part}_low": found.low, f"{part}_high": found.high}
    return row


def training_curve(by_run: Mapping[str, pd.DataFrame], turns: int) -> tuple[Figure, pd.DataFrame]:
    """Figure 18: `cohort_rewards` of each run (its name first), one panel for each part; bands are their intervals."""
    data = pd.concat([frame.assign(run=name) for name, frame in by_run.items()], ignore_index=True)
    with panels(len(PARTS), len(PARTS), (13, 3.2), sharex=True) as (figure, grid):
        for axes, (part, (_, label)) in zip(grid, PARTS.items(), strict=True):
            for (name, rows), color in zip(data.groupby("run", sort=False), PALETTE, strict=False):
                axes.fill_between(rows["cohort"], rows[f"{part}_low"], rows[f"{part}_high"], color=color, alpha=0.15, linewidth=0)
                axes.plot(rows["cohort"], rows[part], color=color, marker="o", label=name)
            top = np.nanmax(data[[part, f"{part}_high"]].to_numpy())
            axes.set(xlabel=f"cohort (of {turns} turns each)", ylabel=label, ylim=(0, max(1.0, 1.05 * top)))
            whole(axes)
        grid[0].legend(frameon=False)
    return figure, data
