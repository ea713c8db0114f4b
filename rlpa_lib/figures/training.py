"""Learning curves: PPO's and its ablations' (figure 18), SFT's and DPO's, GRPO beside PPO."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from rlpa_lib.evaluation.intervals import ratio_interval
from rlpa_lib.figures.frame import PALETTE, Drawn, draw_band, panels, use_whole_numbers
from rlpa_lib.runs import storage

# column -> (field of a sample's reward, label)
PARTS = {"reward_total": ("total", "total reward (0 to 2)"),
         "reward_profile": ("profile", "profile reward, F1"),
         "reward_response": ("response", "response reward"),
         "format_rate": ("format_ok", "format rate")}  # fmt: skip
# Figure 18's own: panel -> (column of the metrics, label)
PANELS = {"reward": ("reward_total", "what each is rewarded for"),
          "profile": ("reward_profile", "profile reward"),
          "response": ("reward_response", "response reward"),
          "format_rate": ("format_rate", "format rate")}  # fmt: skip


def learning_curves(histories: Mapping[str, Sequence[dict]], columns: Mapping[str, str]) -> Drawn:
    """One panel a column of the metrics (name -> label of its axis), one line a training, over optimiser
    steps.

    This is a log of the very batches that were trained on; nothing is estimated, so there is no interval.
    """
    data = pd.concat([pd.DataFrame(h)[["step", *columns]].assign(row=name) for name, h in histories.items()])
    with panels(len(columns), len(columns), (3.5 * len(columns), 3.2)) as (figure, grid):
        for axes, (column, label) in zip(grid, columns.items(), strict=True):
            for (name, part), color in zip(data.groupby("row", sort=False), PALETTE, strict=False):
                axes.plot(part["step"], part[column], marker="o", markersize=3, color=color, label=name)
            axes.set(xlabel="optimiser step", ylabel=label)
            use_whole_numbers(axes)
        grid[0].legend(frameon=False)
    return figure, data


def reward_by_samples(
    grpo: Sequence[dict], ppo: Sequence[dict], samples: Mapping[str, int], block: int
) -> Drawn:
    """Mean reward over samples judged so far, GRPO against PPO; `samples` a step of each ("GRPO", "PPO").

    Either may be empty. PPO's steps are turns of a cohort, easy ones first, so each of its points is a mean
    over a cohort (`iteration`); a point of GRPO is one over `block` steps. Bands: 95 % t intervals over the
    steps or turns of a point (none for a single one).
    """
    rows = [("GRPO", r["step"] * samples["GRPO"], (r["step"] - 1) // block, r["reward"]) for r in grpo]
    rows += [("PPO", r["update"] * samples["PPO"], r["iteration"], r["reward_total"]) for r in ppo]
    data = pd.DataFrame(rows, columns=["method", "samples", "group", "reward"])
    points = data.groupby(["method", "group"], as_index=False)
    reward = {"reward": ("reward", "mean"), "sem": ("reward", "sem"), "steps": ("reward", "size")}
    data = points.agg(samples=("samples", "max"), **reward)
    half = data.pop("sem") * stats.t.ppf(0.975, data["steps"] - 1)
    data = data.assign(reward_low=data["reward"] - half, reward_high=data["reward"] + half)
    with panels(1, 1, (5.5, 3.4)) as (figure, [axes]):
        for (name, part), color in zip(data.groupby("method"), PALETTE, strict=False):
            draw_band(axes, part, "reward", x="samples", color=color, marker="o", markersize=4, label=name)
        axes.set(xlabel="samples judged", ylabel="mean reward of a turn")
        axes.legend(frameon=False)
    return figure, data


def read_samples(folder: Path, name: str) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Each update of a training with its samples that a judge could read, from a run's directory."""
    for update in storage.read_jsonl(folder / "metrics" / f"{name}.jsonl", appended=True):
        file = folder / "dialogues" / name / f"update-{update['update']:04d}.jsonl"
        samples = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        yield update, [sample for sample in samples if sample["reward"]]


def cohort_rewards(folder: Path, name: str = "ppo") -> pd.DataFrame:
    """Mean over the samples of each cohort of new users, with 95 % intervals over its dialogues.

    Columns cohort, dialogues, reward_total (0 to 2), reward_profile, reward_response, format_rate.
    """
    cohorts: dict[int, dict[str, list]] = {}
    for update, samples in read_samples(folder, name):
        for sample in samples:
            rewards = [sample["reward"][field] for field, _ in PARTS.values()]
            cohorts.setdefault(update["iteration"], {}).setdefault(sample["dialogue"], []).append(rewards)
    rows = []
    for cohort, dialogues in sorted(cohorts.items()):
        row = {"cohort": cohort, "dialogues": len(dialogues)}
        sums = np.array([np.sum(rewards, axis=0) for rewards in dialogues.values()])
        counts = [len(rewards) for rewards in dialogues.values()]
        for part, sums_E in zip(PARTS, sums.T, strict=True):
            limits = (0.0, 2.0 if part == "reward_total" else 1.0)
            row |= ratio_interval(sums_E, counts, limits).columns(part)
        rows.append(row)
    return pd.DataFrame(rows)


def training_curve(by_run: Mapping[str, pd.DataFrame], turns: int) -> Drawn:
    """Figure 18: `cohort_rewards` of each run (its name first), one panel for each part."""
    data = pd.concat([frame.assign(run=name) for name, frame in by_run.items()], ignore_index=True)
    with panels(len(PARTS), len(PARTS), (13, 3.2), sharex=True) as (figure, grid):
        for axes, (part, (_, label)) in zip(grid, PARTS.items(), strict=True):
            for (name, rows), color in zip(data.groupby("run", sort=False), PALETTE, strict=False):
                draw_band(axes, rows, part, x="cohort", color=color, marker="o", label=name)
            top = max(1.0, 1.05 * np.nanmax(data[[part, f"{part}_high"]].to_numpy()))
            axes.set(xlabel=f"cohort (of {turns} turns each)", ylabel=label, ylim=(0, top))
            use_whole_numbers(axes)
        grid[0].legend(frameon=False)
    return figure, data


def reward_rows(histories: Mapping[int, Mapping[str, list[dict]]]) -> pd.DataFrame:
    """seed -> training -> metrics of its updates, as rows: seed, run, update, iteration and the PANELS.

    `reward` is what the training itself was rewarded for (PRR 0..2, PR and RR 0..1), the others are logged
    whether rewarded or not. Sum is PR's profile reward plus RR's response reward at the same step; it has no
    parts, because no one policy earned it.
    """
    names = {"update": "update", "iteration": "iteration", **{column: p for p, (column, _) in PANELS.items()}}
    tables = []
    for seed, trainings in histories.items():
        own = {name: pd.DataFrame(history, columns=list(names)) for name, history in trainings.items()}
        if {"PR", "RR"} <= set(own):
            profile, response = own["PR"]["reward_profile"], own["RR"]["reward_response"]
            total = profile.to_numpy() + response.to_numpy()  # as many updates in both, or an error
            own["Sum"] = own["PR"][["update", "iteration"]].assign(reward_total=total)
        tables += [table.rename(columns=names).assign(seed=seed, run=name) for name, table in own.items()]
    columns = ["seed", "run", *names.values()]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


def average_seeds(rows: pd.DataFrame, x: str, column: str) -> pd.DataFrame:
    """Mean over seeds of a column at each x with its 95 % t interval (NaN for one seed): mean, low, high,
    seeds."""
    seeds = rows.groupby(["seed", x])[column].mean().unstack("seed")
    n, mean = seeds.shape[1], seeds.mean(axis=1)
    half = seeds.std(axis=1, ddof=1) / n**0.5 * (stats.t.ppf(0.975, n - 1) if n > 1 else np.nan)
    return pd.DataFrame({"mean": mean, "low": mean - half, "high": mean + half, "seeds": n})


def reward_progress(rows: pd.DataFrame) -> Drawn:
    """Figure 18 (appendix I): PRR, PR, RR and Sum (PR's and RR's own rewards together) by training step.

    Four panels of `reward_rows`. Thin: every step (its cohort stands at one turn, so steps differ by turn);
    thick: a cohort's mean at its last step; band: 95 % t interval of that over seeds, if there are several.
    """
    drawn = []
    with panels(4, 2, (10, 6.4), sharex=True) as (figure, grid):
        for axes, (column, (_, label)) in zip(grid, PANELS.items(), strict=True):
            for color, name in zip(PALETTE, ("PRR", "PR", "RR", "Sum"), strict=False):
                part = rows[(rows["run"] == name) & rows[column].notna()]
                if part.empty:
                    continue
                steps = part.groupby("update")[column].mean()
                axes.plot(steps.index, steps, color=color, linewidth=0.7, alpha=0.5)
                last = part.groupby("iteration")["update"].max()
                points = average_seeds(part, "iteration", column)
                points.insert(0, "step", last)
                style = {"linewidth": 2.5, "marker": "o", "linestyle": "--" if name == "Sum" else "-"}
                draw_band(axes, points, "mean", x="step", color=color, label=name, **style)
                drawn.append(pd.DataFrame({"panel": column, "run": name, **points}))
            axes.set(title=label, ylim=(0, None))
        for axes in grid[2:]:
            axes.set_xlabel("training step (update)")
        grid[0].legend(frameon=False, ncols=4, loc="lower right")
    return figure, pd.concat(drawn, ignore_index=True)
