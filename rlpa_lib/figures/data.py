"""Figures 6 and 7, the curve of revelation, and the bars and confusion tables of `03_rewards_and_judges`."""

from __future__ import annotations

from textwrap import fill

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from rlpa_lib.dialogue.profile import Profile
from rlpa_lib.evaluation.breakdown import mean_table
from rlpa_lib.evaluation.intervals import bootstrap_interval
from rlpa_lib.figures.frame import GREY, PALETTE, panels

PACES = ("talkative", "balanced", "reserved")


def slot_distribution(statistics: pd.DataFrame, title: str) -> tuple[Figure, pd.DataFrame]:
    """Figure 6: share of personas that have each slot, split into found in the text and filled (`personas.slot_statistics`)."""
    data = statistics.assign(found_share=statistics["share"] * (1 - statistics["filled_share"]))
    with panels(1, 1, (7, 0.9 + 0.32 * len(data))) as (figure, [axes]):
        axes.barh(data["slot"], 100 * data["found_share"], color=PALETTE[0], label="stated in the text")
        filled = {"left": 100 * data["found_share"], "color": "white", "edgecolor": GREY, "hatch": "////"}
        if data["filled_share"].any():
            axes.barh(data["slot"], 100 * (data["share"] - data["found_share"]), label="filled with a plausible value", **filled)
        axes.invert_yaxis()
        axes.set(xlabel="share of personas (%)", ylabel="slot", title=title, xlim=(0, 100))
        axes.grid(axis="y", visible=False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure, data


def profile_card(profile: Profile, title: str) -> tuple[Figure, pd.DataFrame]:
    """Figure 7: one profile as a table of slots and values; a filled value is marked."""
    rows = [(slot, value, slot in profile.filled) for slot, value in profile.items]
    data = pd.DataFrame(rows, columns=["slot", "value", "filled"])
    cells = [[slot, fill(value, 62) + (" (filled)" if filled else "")] for slot, value, filled in rows]
    heights = [1 + text.count("\n") for _, text in cells]
    with panels(1, 1, (7, 0.6 + 0.27 * (sum(heights) + 1))) as (figure, [axes]):
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
    return figure, data


def reveal_curve(shares: pd.DataFrame, limit: float, title: str) -> tuple[Figure, pd.DataFrame]:
    """Share of the profile revealed up to each turn by pace, and of all users (Theoretical Max, section 5.3).

    `shares` has columns user, pace, turn, share in [0, 1]; `limit` is the share allowed per turn. Bands span the 10th to the 90th percentile of
    users, bars the 95 % interval of the mean (share_low, share_high).
    """
    groups = [(name, shares if name == "all" else shares[shares["pace"] == name]) for name in ("all", *PACES)]
    tables = [_revealed(part).assign(pace=name) for name, part in groups if len(part)]
    data = pd.concat(tables, ignore_index=True)
    with panels(1, 1, (7, 4.2)) as (figure, [axes]):
        for color, marker, name in zip(PALETTE, "osD", PACES, strict=False):
            part = data[data["pace"] == name]
            if len(part):
                axes.fill_between(part["turn"], 100 * part["p10"], 100 * part["p90"], color=color, alpha=0.15, linewidth=0)
                axes.plot(part["turn"], 100 * part["share"], color=color, marker=marker, label=f"{name} (n = {part['users'].max()})")
        everybody = data[data["pace"] == "all"]
        reach = (100 * (everybody["share"] - everybody["share_low"]), 100 * (everybody["share_high"] - everybody["share"]))
        axes.errorbar(everybody["turn"], 100 * everybody["share"], reach, color="black", linewidth=3, capsize=3, label="all: Theoretical Max")
        turns = everybody["turn"]
        axes.plot(turns, (100 * limit * turns).clip(upper=100), color=GREY, linestyle="--", label=f"{100 * limit:.0f} % a turn")
        axes.set(xlabel="turn", ylabel="profile revealed so far (%)", title=title, ylim=(0, 102), xticks=sorted(turns))
        axes.legend(frameon=False, loc="upper left")
    return figure, data


def _revealed(shares: pd.DataFrame) -> pd.DataFrame:
    spread = shares.groupby("turn")["share"].agg(p10=lambda s: s.quantile(0.1), p90=lambda s: s.quantile(0.9), users="size").reset_index()
    return mean_table(shares, ["turn"], ["share"]).merge(spread, on="turn")


def score_bars(scores: pd.DataFrame, label: str, title: str) -> tuple[Figure, pd.DataFrame]:
    """Mean of each column of `scores` (one row a user, in [0, 1]) with its 95 % bootstrap interval over users."""
    rows = []
    for name in scores:
        interval = bootstrap_interval(scores[[name]].to_numpy())
        rows.append((name, interval.estimate, interval.low, interval.high, len(scores)))
    data = pd.DataFrame(rows, columns=["name", "mean", "low", "high", "users"])
    with panels(1, 1, (7, 1.1 + 0.5 * len(data))) as (figure, [axes]):
        reach = (data["mean"] - data["low"], data["high"] - data["mean"])
        axes.barh(data["name"], data["mean"], height=0.6, color=PALETTE[0], xerr=reach, error_kw={"capsize": 4})
        for row, (mean, high) in enumerate(zip(data["mean"], data["high"], strict=True)):
            axes.text(max(mean, high), row, f"  {mean:.3f}", va="center")
        axes.invert_yaxis()
        axes.set(xlabel=label, title=title, xlim=(0, max(0.01, 1.15 * data["high"].max())))
        axes.grid(axis="y", visible=False)
    return figure, data


def judge_confusion(table: pd.DataFrame, title: str) -> tuple[Figure, pd.DataFrame]:
    """Hand labels against a judge's marks, one panel a row of `table` (columns mark, tp, fp, fn, tn, cohens_kappa and its _low, _high)."""
    columns = min(4, len(table))
    size = (8, 0.7 + 2.3 * -(-len(table) // columns))
    with panels(len(table), columns, size, {"axes.titlesize": 10, "axes.titleweight": "normal"}) as (figure, grid):
        for axes, row in zip(grid, table.to_dict("records"), strict=True):
            counts = [[row["tp"], row["fn"]], [row["fp"], row["tn"]]]
            names = {"xticklabels": ["1", "0"], "yticklabels": ["1", "0"]}
            total = row["tp"] + row["fp"] + row["fn"] + row["tn"]
            sns.heatmap(counts, annot=True, fmt="d", cmap="Blues", vmin=0, vmax=total, cbar=False, square=True, ax=axes, **names)
            kappa, low, high = (row[f"cohens_kappa{end}"] for end in ("", "_low", "_high"))
            axes.set(title=f"{row['mark']}: kappa {kappa:.2f}\n[{low:.2f}, {high:.2f}]", xlabel="judge", ylabel="hand label")
        figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure, table
