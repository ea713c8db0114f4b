"""Figures of data and judges: slots (6), profile (7), revelation, scores, confusion and overlap counts."""

from itertools import product
from textwrap import fill

import pandas as pd
import seaborn as sns

from rlpa_lib.dialogue.profile import Profile
from rlpa_lib.evaluation.breakdown import mean_table
from rlpa_lib.evaluation.intervals import bootstrap_interval
from rlpa_lib.figures import frame
from rlpa_lib.figures.frame import GREY, PALETTE, Drawn, draw_band, draw_bars, error_bars, panels

PACES = ("talkative", "balanced", "reserved")


def slot_distribution(statistics: pd.DataFrame, title: str) -> Drawn:
    """Figure 6: share of personas that have each slot, stated or filled (`sources.count_slots`)."""
    data = statistics.assign(found_share=statistics["share"] * (1 - statistics["filled_share"]))
    found, filled = 100 * data["found_share"], 100 * (data["share"] - data["found_share"])
    with panels(1, 1, (7, 0.9 + 0.32 * len(data))) as (figure, [axes]):
        axes.barh(data["slot"], found, color=PALETTE[0], label="stated in the text")
        if data["filled_share"].any():
            style = {"color": "white", "edgecolor": GREY, "hatch": "////"}
            axes.barh(data["slot"], filled, left=found, label="filled with a plausible value", **style)
        axes.invert_yaxis()
        axes.set(xlabel="share of personas (%)", ylabel="slot", title=title, xlim=(0, 100))
        axes.grid(axis="y", visible=False)
        frame.legend_below(figure, [axes], 2)
    return figure, data


def profile_card(profile: Profile, title: str) -> Drawn:
    """Figure 7: one profile as a table of slots and values; a filled value is marked."""
    rows = [(slot, value, slot in profile.filled) for slot, value in profile.items]
    cells = [[slot, fill(value, 62) + (" (filled)" if filled else "")] for slot, value, filled in rows]
    heights = [1, *(1 + text.count("\n") for _, text in cells)]
    places = {"colWidths": [0.3, 0.7], "cellLoc": "left", "colLoc": "left", "bbox": (0, 0, 1, 1)}
    with panels(1, 1, (7, 0.6 + 0.27 * sum(heights))) as (figure, [axes]):
        axes.axis("off")
        axes.set_title(title)
        table = axes.table(cells, colLabels=["slot", "value"], **places)
        table.auto_set_font_size(False)
        table.set_fontsize(10)
        for (row, column), cell in table.get_celld().items():
            cell.PAD = 0.03  # of the cell's width
            cell.set(height=heights[row], edgecolor="0.8", facecolor="white" if row else "0.92")
            cell.get_text().set_fontweight("normal" if row and column else "bold")
    return figure, pd.DataFrame(rows, columns=["slot", "value", "filled"])


def reveal_curve(shares: pd.DataFrame, limit: float, title: str) -> Drawn:
    """Share of the profile revealed up to each turn by pace, and of all users (Theoretical Max, section 5.3).

    `shares` has columns user, pace, turn, share in [0, 1]; `limit` is the share allowed per turn. Bands span
    the 10th to the 90th percentile of users, bars the 95 % interval of the mean (share_low, share_high).
    """
    found = []
    for name, part in {"all": shares, **{pace: shares[shares["pace"] == pace] for pace in PACES}}.items():
        if len(part):
            by_turn = part.groupby("turn")["share"]
            spread = by_turn.agg(p10=lambda s: s.quantile(0.1), p90=lambda s: s.quantile(0.9), users="size")
            mean = mean_table(part, ["turn"], ["share"])
            found.append(mean.merge(spread.reset_index(), on="turn").assign(pace=name))
    data = pd.concat(found, ignore_index=True)
    numbers = ["share", "share_low", "share_high", "p10", "p90"]
    percent = dict(list(data.assign(**(100 * data[numbers])).groupby("pace")))
    with panels(1, 1, (7, 4.2)) as (figure, [axes]):
        for color, marker, name in zip(PALETTE, "osD", PACES, strict=False):
            if name in percent:
                part = percent[name]
                band = part[["turn", "share"]].assign(low=part["p10"], high=part["p90"])
                label = f"{name} (n = {part['users'].max()})"
                draw_band(axes, band, "share", color=color, marker=marker, label=label)
        everybody, style = percent["all"], {"color": "black", "linewidth": 3, "capsize": 3}
        turns, bars = everybody["turn"], error_bars(everybody, "share")
        axes.errorbar(turns, everybody["share"], bars, label="all: Theoretical Max", **style)
        allowed = (100 * limit * turns).clip(upper=100)
        axes.plot(turns, allowed, color=GREY, linestyle="--", label=f"{100 * limit:.0f} % a turn")
        axes.set(xlabel="turn", ylabel="profile revealed so far (%)", title=title)
        axes.set(ylim=(0, 102), xticks=sorted(turns))
        axes.legend(frameon=False, loc="upper left")
    return figure, data


def score_bars(scores: pd.DataFrame, label: str, title: str) -> Drawn:
    """Mean of each column of `scores` (a row a user, in [0, 1]) with its bootstrap interval over users."""
    means = {name: bootstrap_interval(scores[[name]].to_numpy()) for name in scores}
    rows = [(name, i.estimate, i.low, i.high, len(scores)) for name, i in means.items()]
    data = pd.DataFrame(rows, columns=["name", "mean", "low", "high", "users"])
    with panels(1, 1, (7, 1.1 + 0.5 * len(data))) as (figure, [axes]):
        draw_bars(axes, data, "mean", data["name"], {"capsize": 4}, ".3f")
        axes.invert_yaxis()
        axes.set(xlabel=label, title=title, xlim=(0, max(0.01, 1.15 * data["high"].max())))
    return figure, data


def judge_confusion(table: pd.DataFrame, title: str) -> Drawn:
    """Hand labels against a judge's marks: columns mark, tp, fp, fn, tn, cohens_kappa (_low, _high)."""
    columns = min(4, len(table))
    style = {"annot": True, "fmt": "d", "cmap": "Blues", "cbar": False, "square": True,
             "xticklabels": ["1", "0"], "yticklabels": ["1", "0"]}  # fmt: skip
    with panels(len(table), columns, (8, 0.7 + 2.3 * -(-len(table) // columns)), 10) as (figure, grid):
        for axes, row in zip(grid, table.to_dict("records"), strict=True):
            counts = pd.DataFrame([[row["tp"], row["fn"]], [row["fp"], row["tn"]]])
            sns.heatmap(counts, vmin=0, vmax=counts.sum(axis=None), ax=axes, **style)
            kappa, low, high = (row[f"cohens_kappa{end}"] for end in ("", "_low", "_high"))
            axes.set(xlabel="judge", ylabel="hand label")
            axes.set_title(f"{row['mark']}: kappa {kappa:.2f}\n[{low:.2f}, {high:.2f}]", fontweight="normal")
        figure.suptitle(title, fontsize=12, fontweight="bold")
    return figure, table


def overlap_counts(found: pd.DataFrame) -> Drawn:
    """True against counted overlap (`rewrites.count_overlaps` and a column `set`); areas are cases."""
    keys = ["set", "judge", "true", "predicted"]
    data = found.dropna(subset="predicted").groupby(keys, as_index=False).size()
    data = data.rename(columns={"size": "cases"}).astype({"predicted": int})
    sets, judges = found["set"].unique(), found["judge"].unique()
    top = int(data[["true", "predicted"]].max().max())
    n, size = len(sets) * len(judges), (2.8 * len(judges), 0.4 + 2.8 * len(sets))
    with panels(n, len(judges), size, 10, sharex=True, sharey=True) as (figure, grid):
        for axes, (name, judge) in zip(grid, product(sets, judges), strict=True):
            part = data[(data["set"] == name) & (data["judge"] == judge)]
            areas = 300 * part["cases"] / data["cases"].max() + 8
            axes.plot([0, top], [0, top], color=GREY, linewidth=0.8, zorder=0)
            axes.scatter(part["true"], part["predicted"], s=areas, color=PALETTE[0], alpha=0.7)
            axes.set(title=f"{judge}, {name}", xlabel="true overlap", ylabel="counted")
            axes.set(xlim=(-0.7, top + 0.7), ylim=(-0.7, top + 0.7))
    return figure, data
