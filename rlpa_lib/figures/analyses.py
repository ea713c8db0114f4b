"""Figures 4a, 4b and 5, and what goes beyond the paper: profiles through a change, time and memory a turn, users who do not cooperate."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlpa_lib.evaluation import tables
from rlpa_lib.figures.frame import GREY, PALETTE, legend_below, panels, whole

_STYLES = {"change": (PALETTE[0], "-", "o", "the user changes"), "no change": (GREY, "--", "", "same users, no change")}
_VALUES = {"old": (PALETTE[1], "s", "old value"), "new": (PALETTE[0], "o", "new value")}
_MEASURES = {"profile score": (PALETTE[0], "-", "o"), "recall": (PALETTE[2], "-", "D"), "Theoretical Max": ("black", "--", ""),
             "best score": (GREY, ":", "")}  # fmt: skip


def _named(row: str) -> str:
    model, method = tables.label(row, "")
    return f"{model}, {method}" if model else method


def _size(n: int, columns: int, height: float) -> tuple[float, float]:
    return max(4.2, 2.6 * min(columns, n) + 0.4), height * -(-n // columns) + 0.7


def _band(axes: Axes, part: pd.DataFrame, value: str, color, style: str, marker: str, label: str) -> None:
    axes.fill_between(part["turn"], part["low"], part["high"], color=color, alpha=0.18, linewidth=0)
    axes.plot(part["turn"], part[value], color=color, linestyle=style, marker=marker or None, markersize=3.5, label=label)


def _finish(figure: Figure, grid: list[Axes], y: str) -> None:
    for axes in grid:
        whole(axes)
        axes.set_ylim(-2, 102)
    columns = grid[0].get_subplotspec().get_gridspec().ncols
    for axes in grid[-columns:]:  # the lowest of each column; one label for all would stand in the legend's place
        axes.set_xlabel("turn k", fontsize=10)
    figure.supylabel(y, fontsize=10)
    legend_below(figure, grid, 4)


def conflict_alignment(data: pd.DataFrame, at: int) -> tuple[Figure, pd.DataFrame]:
    """Figure 4a: AL(k) in percent with exact 95 % intervals around the change at turn `at`, one panel a row of `conflict.alignment_curves`."""
    names = tables.arranged(dict.fromkeys(data["method"]))
    columns = min(3, len(names))
    with panels(len(names), columns, _size(len(names), columns, 2.1), {"axes.titlesize": 10}, sharex=True, sharey=True) as (figure, grid):
        for axes, name in zip(grid, names, strict=True):
            for kind, (color, style, marker, label) in _STYLES.items():
                part = data[(data["method"] == name) & (data["users"] == kind)]
                if len(part):
                    _band(axes, part, "al", color, style, marker, label)
            axes.axvline(at - 0.5, color=PALETTE[3], linewidth=1, label="change")
            axes.set_title(_named(name))
        _finish(figure, grid, "AL(k), %")
    return figure, data


def conflict_profiles(data: pd.DataFrame, at: int) -> tuple[Figure, pd.DataFrame]:
    """Share of inferred profiles that hold the old and the new value, with exact 95 % intervals, one panel a row of `conflict.profile_curves`."""
    names = tables.arranged(dict.fromkeys(data["method"]))
    columns = min(3, len(names))
    with panels(len(names), columns, _size(len(names), columns, 2.6), {"axes.titlesize": 10}, sharex=True, sharey=True) as (figure, grid):
        for axes, name in zip(grid, names, strict=True):
            for value, (color, marker, label) in _VALUES.items():
                part = data[(data["method"] == name) & (data["value"] == value)]
                _band(axes, part.assign(**{c: 100 * part[c] for c in ("share", "low", "high")}), "share", color, "-", marker, label)
            axes.axvline(at - 0.5, color=PALETTE[3], linewidth=1, label="change")
            axes.set_title(_named(name))
        _finish(figure, grid, "profiles that hold it, %")
    return figure, data


def long_term_progress(data: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Figure 4b: profile score, recall and Theoretical Max at the checkpoints with 95 % intervals, and the AVG of the profile score as a thin line;
    one panel a row of `long_term.progress_table`."""
    names = tables.arranged(dict.fromkeys(data["method"]))
    columns = min(2, len(names))
    with panels(len(names), columns, _size(len(names), columns, 3.4), {"axes.titlesize": 10}, sharex=True, sharey=True) as (figure, grid):
        for axes, name in zip(grid, names, strict=True):
            for measure, (color, style, marker) in _MEASURES.items():
                part = data[(data["method"] == name) & (data["measure"] == measure)]
                _band(axes, part, "value", color, style, marker, measure)
                if measure == "profile score":
                    axes.axhline(part["value"].mean(), color=color, linewidth=0.8, linestyle="-.", label="AVG of the profile score")
            axes.set_title(_named(name))
        _finish(figure, grid, "%")
    return figure, data


def time_and_memory(lines: Sequence[dict], users: int) -> tuple[Figure, pd.DataFrame]:
    """Milliseconds a user and turn (method, user and judges together) and memory of the process in MB, over the turns, one line a row."""
    data = pd.DataFrame(lines).drop_duplicates(["method", "turn"], keep="last").sort_values(["method", "turn"])
    data = data.assign(ms=1000 * (data["method_s"] + data["user_s"] + data["judges_s"]) / users)[["method", "turn", "ms", "memory_mb"]]
    with panels(2, 2, (8, 3)) as (figure, grid):
        for i, name in enumerate(tables.arranged(dict.fromkeys(data["method"]))):
            part = data[data["method"] == name]
            for axes, column in zip(grid, ("ms", "memory_mb"), strict=True):
                axes.plot(part["turn"], part[column].astype(float), color=PALETTE[i], label=_named(name))
        grid[0].set(xlabel="turn k", ylabel="ms a user and turn")
        grid[1].set(xlabel="turn k", ylabel="memory of the process, MB")
        for axes in grid:
            axes.set_ylim(bottom=0)
            whole(axes)
        legend_below(figure, grid, 3)
    return figure, data


def score_and_reasoning(table: pd.DataFrame, missing: Sequence[tuple[str, str]]) -> tuple[Figure, pd.DataFrame]:
    """Figure 5: AVG in percent and reasoning tokens a turn as pairs of bars with 95 % intervals; `missing` (model, method) were not run and
    are named without a bar."""
    names = [f"{row['method']}\n{row['model']}" for row in table.to_dict("records")] + [f"{method}\n{model}" for model, method in missing]
    with panels(2, 2, (8, 0.9 + 0.52 * len(names)), sharey=True) as (figure, grid):
        for axes, (key, label, color) in zip(grid, (("avg", "AVG, %", PALETTE[0]), ("tokens", "reasoning tokens a turn", PALETTE[1])), strict=True):
            reach = [table[key] - table[f"{key}_low"], table[f"{key}_high"] - table[key]]
            axes.barh(range(len(table)), table[key], height=0.6, color=color, xerr=reach, error_kw={"capsize": 3})
            for row, (value, high) in enumerate(zip(table[key], table[f"{key}_high"], strict=True)):
                axes.text(max(value, high), row, f"  {value:.1f}", va="center", fontsize=9)
            for row in range(len(table), len(names)):
                axes.text(0, row, "  not run", va="center", color=GREY, fontsize=9)
            axes.set(xlabel=label, xlim=(0, 1.2 * max(1.0, table[f"{key}_high"].max())))
            axes.grid(axis="y", visible=False)
        grid[0].set_yticks(range(len(names)), names)
        grid[0].invert_yaxis()
    return figure, table


def difficult_users(table: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """AVG in percent of each row with each kind of user, with 95 % intervals, one panel a row of `difficult.alignment_table`."""
    methods = list(dict.fromkeys(zip(table["model"], table["method"], strict=True)))
    manners = list(dict.fromkeys(table["manner"]))
    columns, height = min(3, len(methods)), 0.6 + 0.26 * len(manners)
    with panels(len(methods), columns, _size(len(methods), columns, height), {"axes.titlesize": 10}, sharex=True, sharey=True) as (figure, grid):
        for axes, (model, method) in zip(grid, methods, strict=True):
            part = table[(table["model"] == model) & (table["method"] == method)]
            places = [manners.index(m) for m in part["manner"]]
            reach = [part["avg"] - part["avg_low"], part["avg_high"] - part["avg"]]
            colors = [GREY if m == "willing" else PALETTE[0] for m in part["manner"]]
            axes.barh(places, part["avg"], height=0.65, color=colors, xerr=reach, error_kw={"capsize": 2, "linewidth": 1})
            axes.set(title=method, xlim=(0, 100))
            axes.set_yticks(range(len(manners)), manners)
            axes.grid(axis="y", visible=False)
        grid[0].invert_yaxis()  # shared by all panels
        figure.supxlabel("AVG from turn 2 on, %", fontsize=10)
    return figure, table
