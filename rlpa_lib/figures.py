"""Figures: each function takes data and returns (figure, the DataFrame that was drawn), for `Run.save_figure`.

Sizes are inches at 150 dpi; about 7 wide, so that a picture of 1000 px can be read. The palette is safe for colour-blind readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlpa_lib.intervals import bootstrap_interval, seed_interval
from rlpa_lib.profile import Profile
from rlpa_lib.tables import LABELS

PALETTE = sns.color_palette("colorblind")
GREY = "0.35"
STYLE = {**sns.axes_style("whitegrid"), **sns.plotting_context("notebook", font_scale=0.9), "axes.titlesize": 12, "axes.titleweight": "bold"}
PACES = ("talkative", "balanced", "reserved")


def slot_distribution(statistics: pd.DataFrame, title: str) -> tuple[Figure, pd.DataFrame]:
    """Figure 6: share of personas that have each slot, split into found in the text and filled (`personas.slot_statistics`)."""
    data = statistics.assign(found_share=statistics["share"] * (1 - statistics["filled_share"]))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 0.9 + 0.32 * len(data)), layout="constrained")
        axes.barh(data["slot"], 100 * data["found_share"], color=PALETTE[0], label="stated in the text")
        filled = {"left": 100 * data["found_share"], "color": "white", "edgecolor": GREY, "hatch": "////"}
        if data["filled_share"].any():
            axes.barh(data["slot"], 100 * (data["share"] - data["found_share"]), label="filled with a plausible value", **filled)
        axes.invert_yaxis()
        axes.set(xlabel="share of personas (%)", ylabel="slot", title=title, xlim=(0, 100))
        axes.grid(axis="y", visible=False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return _closed(figure), data


def profile_card(profile: Profile, title: str) -> tuple[Figure, pd.DataFrame]:
    """Figure 7: one profile as a table of slots and values; a filled value is marked."""
    rows = [(slot, value, slot in profile.filled) for slot, value in profile.items]
    data = pd.DataFrame(rows, columns=["slot", "value", "filled"])
    cells = [[slot, fill(value, 62) + (" (filled)" if filled else "")] for slot, value, filled in rows]
    heights = [1 + text.count("\n") for _, text in cells]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 0.6 + 0.27 * (sum(heights) + 1)), layout="constrained")
        axes.axis("off")
        axes.set_title(title)
        table = axes.table(cells, colLabels=["slot", "value"], colWidths=[0.3, 0.7], cellLoc="left", colLoc="left", bbox=(0, 0, 1, 1))
        table.auto_set_font_size(False)
        table.set_fontsize(10)
        for (row, column), cell in table.get_celld().items():
            cell.PAD = 0.03  # of the cell's width
            cell.set_height(1 if row == 0 else heights[row - 1])
            cell.set_edgecolor("0.8")
            cell.set_facecolor("0.92" if row == 0 else "white")
            cell.get_text().set_fontweight("bold" if row == 0 or column == 0 else "normal")
    return _closed(figure), data


def reveal_curve(shares: pd.DataFrame, limit: float, title: str) -> tuple[Figure, pd.DataFrame]:
    """Share of the profile revealed up to each turn by pace, and of all users (Theoretical Max, section 5.3).

    `shares` has columns pace, turn, share in [0, 1]; `limit` is the share allowed per turn. Bands span the 10th to the 90th percentile.
    """
    groups = [(name, shares if name == "all" else shares[shares["pace"] == name]) for name in ("all", *PACES)]
    tables = [part.groupby("turn")["share"].agg(**_SUMMARY).reset_index().assign(pace=name) for name, part in groups if len(part)]
    data = pd.concat(tables, ignore_index=True)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
        for color, marker, name in zip(PALETTE, "osD", PACES, strict=False):
            part = data[data["pace"] == name]
            if len(part):
                axes.fill_between(part["turn"], 100 * part["low"], 100 * part["high"], color=color, alpha=0.15, linewidth=0)
                axes.plot(part["turn"], 100 * part["mean"], color=color, marker=marker, label=f"{name} (n = {part['users'].max()})")
        everybody = data[data["pace"] == "all"]
        axes.plot(everybody["turn"], 100 * everybody["mean"], color="black", linewidth=3, label="all: Theoretical Max")
        turns = everybody["turn"]
        axes.plot(turns, (100 * limit * turns).clip(upper=100), color=GREY, linestyle="--", label=f"{100 * limit:.0f} % a turn")
        axes.set(xlabel="turn", ylabel="profile revealed so far (%)", title=title, ylim=(0, 102), xticks=sorted(turns))
        axes.legend(frameon=False, loc="upper left")
    return _closed(figure), data


_SUMMARY = {"mean": "mean", "low": lambda s: s.quantile(0.1), "high": lambda s: s.quantile(0.9), "users": "size"}


def score_bars(scores: pd.DataFrame, label: str, title: str) -> tuple[Figure, pd.DataFrame]:
    """Mean of each column of `scores` (one row a user, in [0, 1]) with its 95 % bootstrap interval over users."""
    rows = []
    for name in scores:
        interval = bootstrap_interval(scores[[name]].to_numpy())
        rows.append((name, interval.estimate, interval.low, interval.high, len(scores)))
    data = pd.DataFrame(rows, columns=["name", "mean", "low", "high", "users"])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 1.1 + 0.5 * len(data)), layout="constrained")
        reach = (data["mean"] - data["low"], data["high"] - data["mean"])
        axes.barh(data["name"], data["mean"], height=0.6, color=PALETTE[0], xerr=reach, error_kw={"capsize": 4})
        for row, (mean, high) in enumerate(zip(data["mean"], data["high"], strict=True)):
            axes.text(max(mean, high), row, f"  {mean:.3f}", va="center")
        axes.invert_yaxis()
        axes.set(xlabel=label, title=title, xlim=(0, max(0.01, 1.15 * data["high"].max())))
        axes.grid(axis="y", visible=False)
    return _closed(figure), data


def judge_confusion(table: pd.DataFrame, title: str) -> tuple[Figure, pd.DataFrame]:
    """Hand labels against a judge's marks, one panel a row of `table` (columns mark, tp, fp, fn, tn, cohens_kappa)."""
    columns = min(4, len(table))
    rows = -(-len(table) // columns)
    with plt.rc_context(STYLE | {"axes.titlesize": 10, "axes.titleweight": "normal"}):
        figure, grid = plt.subplots(rows, columns, figsize=(8, 0.7 + 2.3 * rows), layout="constrained", squeeze=False)
        for axes in grid.flat[len(table) :]:
            axes.axis("off")
        for axes, row in zip(grid.flat, table.to_dict("records"), strict=False):
            counts = [[row["tp"], row["fn"]], [row["fp"], row["tn"]]]
            names = {"xticklabels": ["1", "0"], "yticklabels": ["1", "0"]}
            total = row["tp"] + row["fp"] + row["fn"] + row["tn"]
            sns.heatmap(counts, annot=True, fmt="d", cmap="Blues", vmin=0, vmax=total, cbar=False, square=True, ax=axes, **names)
            axes.set(title=f"{row['mark']}: kappa {row['cohens_kappa']:.2f}", xlabel="judge", ylabel="hand label")
        figure.suptitle(title, fontsize=12, fontweight="bold")
    return _closed(figure), table


def training_curve(metrics_by_name: Mapping[str, Sequence[dict]], turns: int) -> tuple[Figure, pd.DataFrame]:
    """Figure 18: mean reward per cohort of users over the updates; one panel for each part."""
    frame = pd.concat([pd.DataFrame(rows).assign(run=name) for name, rows in metrics_by_name.items()])
    parts = {"reward_total": "total reward (0 to 2)", "reward_profile": "profile reward, F1", "reward_response": "response reward",
             "format_rate": "format rate"}
    columns = ["run", "update", "iteration", "turn", "kl", *parts]
    data = frame[columns]
    per_cohort = data.groupby(["run", "iteration"], as_index=False)[list(parts)].mean()
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), sharex=True, layout="constrained")
    for axis, (column, label) in zip(axes, parts.items(), strict=True):
        sns.lineplot(per_cohort, x="iteration", y=column, hue="run", marker="o", ax=axis, palette="colorblind", legend=axis is axes[0])
        axis.set(xlabel=f"cohort (of {turns} turns each)", ylabel=label)
        axis.set_ylim(0, max(1.0, 1.05 * per_cohort[column].max()))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _closed(figure), data


def alignment_over_seeds(by_seed: Sequence[Mapping[tuple[str, str], np.ndarray]]) -> tuple[Figure, pd.DataFrame]:
    """AL(k) in percent of every row that all S seeds have, scores (E, K) each, with 95 % intervals over seeds and users; a panel a benchmark."""
    rows = []
    for name, benchmark in set.intersection(*(set(scores) for scores in by_seed)):
        scores_SEK = np.stack([scores[name, benchmark] for scores in by_seed])
        for turn in range(scores_SEK.shape[2]):
            found = seed_interval(scores_SEK[:, :, turn : turn + 1])
            rows.append((benchmark, name, turn + 1, 100 * found.estimate, 100 * max(0, found.low), 100 * min(1, found.high)))
    data = pd.DataFrame(rows, columns=["benchmark", "method", "turn", "al", "low", "high"]).sort_values(["benchmark", "method", "turn"])
    panels = sorted(data["benchmark"].unique(), reverse=True)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 3.8), sharey=True, layout="constrained", squeeze=False)
        for axis, benchmark in zip(axes[0], panels, strict=True):
            for color, (name, part) in zip(PALETTE, data[data["benchmark"] == benchmark].groupby("method"), strict=False):
                axis.fill_between(part["turn"], part["low"], part["high"], color=color, alpha=0.15, linewidth=0)
                axis.plot(part["turn"], part["al"], color=color, marker="o", markersize=4, label=LABELS.get(name, name))
            axis.set(xlabel="turn k", ylabel="AL(k), %", title=benchmark, ylim=(-2, 102))
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return _closed(figure), data.reset_index(drop=True)


def profile_progress(rows_by_method: Mapping[str, Sequence[dict]]) -> tuple[Figure, pd.DataFrame]:
    """Profile score and Theoretical Max by turn (as in figure 4b, ten turns)."""
    frame = pd.concat([pd.DataFrame(rows).assign(method=name) for name, rows in rows_by_method.items()])
    frame["ceiling"] = frame["n_told"] / frame["n_true"]
    frame["recall"] = frame["n_matched"] / frame["n_true"]
    data = frame.groupby(["method", "turn"], as_index=False)[["profile_f1", "recall", "ceiling"]].mean()  # sorted by method, as the colours are
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    sns.lineplot(data, x="turn", y="profile_f1", hue="method", marker="o", ax=axes[0], palette="colorblind")
    sns.lineplot(data, x="turn", y="recall", hue="method", marker="o", ax=axes[1], palette="colorblind", legend=False)
    for (_, part), color in zip(data.groupby("method"), PALETTE, strict=False):
        axes[1].plot(part["turn"], part["ceiling"], linestyle="--", color=color)
    axes[0].set(xlabel="turn k", ylabel="profile score, F1", ylim=(0, 1))
    axes[1].set(xlabel="turn k", ylabel="recall; dashed: Theoretical Max")
    return _closed(figure), data


def _closed(figure: Figure) -> Figure:
    """Taken out of pyplot's care, so that a notebook shows it once and memory is freed."""
    plt.close(figure)
    return figure
