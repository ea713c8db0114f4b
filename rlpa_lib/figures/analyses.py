"""Figures 4a, 4b and 5, profiles through a change, time and memory, users who do not cooperate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlpa_lib.evaluation import tables
from rlpa_lib.figures import frame
from rlpa_lib.figures.frame import GREY, PALETTE, Drawn, draw_band, error_bars, panels

_USERS = {"change": {"color": PALETTE[0], "marker": "o", "label": "the user changes"},
          "no change": {"color": GREY, "linestyle": "--", "label": "same users, no change"}}  # fmt: skip
_VALUES = {"old": {"color": PALETTE[1], "marker": "s", "label": "old value"},
           "new": {"color": PALETTE[0], "marker": "o", "label": "new value"}}  # fmt: skip
_MEASURES = {"profile score": {"color": PALETTE[0], "marker": "o"},
             "recall": {"color": PALETTE[2], "marker": "D"},
             "Theoretical Max": {"color": "black", "linestyle": "--"},
             "best score": {"color": GREY, "linestyle": ":"}}  # fmt: skip


@contextmanager
def _panel_each_row(
    data: pd.DataFrame, columns: int, height: float, label: str
) -> Iterator[tuple[Figure, list[tuple[Axes, pd.DataFrame]]]]:
    """The figure, and for each row of the evaluation its panel and its part of `data`."""
    names = tables.arrange_rows(dict.fromkeys(data["method"]))
    columns = min(columns, len(names))
    size = max(4.2, 2.6 * columns + 0.4), height * -(-len(names) // columns) + 0.7
    with panels(len(names), columns, size, 10, sharex=True, sharey=True) as (figure, grid):
        for axes, name in zip(grid, names, strict=True):
            axes.set_title(tables.name_row(name))
        yield figure, [(axes, data[data["method"] == name]) for axes, name in zip(grid, names, strict=True)]
        frame.finish_turns(figure, grid, label)


def _mark_change(axes: Axes, at: int) -> None:
    axes.axvline(at - 0.5, color=PALETTE[3], linewidth=1, label="change")


def conflict_alignment(data: pd.DataFrame, at: int) -> Drawn:
    """Figure 4a: AL(k) in percent around the change at turn `at`, from `conflict.alignment_curves`."""
    with _panel_each_row(data, 3, 2.1, "AL(k), %") as (figure, rows):
        for axes, row in rows:
            for users, style in _USERS.items():
                if len(part := row[row["users"] == users]):
                    draw_band(axes, part, "al", strength=0.18, markersize=3.5, **style)
            _mark_change(axes, at)
    return figure, data


def conflict_profiles(data: pd.DataFrame, at: int) -> Drawn:
    """Share of inferred profiles that hold the old and the new value, from `conflict.profile_curves`."""
    percent = data.assign(**{column: 100 * data[column] for column in ("share", "low", "high")})
    with _panel_each_row(percent, 3, 2.6, "profiles that hold it, %") as (figure, rows):
        for axes, row in rows:
            for value, style in _VALUES.items():
                part = row[row["value"] == value]
                draw_band(axes, part, "share", strength=0.18, markersize=3.5, **style)
            _mark_change(axes, at)
    return figure, data


def long_term_progress(data: pd.DataFrame) -> Drawn:
    """Figure 4b: `long_term.progress_table` by turn; a thin line is the AVG of the profile score."""
    with _panel_each_row(data, 2, 3.4, "%") as (figure, rows):
        for axes, row in rows:
            for measure, style in _MEASURES.items():
                part = row[row["measure"] == measure]
                draw_band(axes, part, "value", strength=0.18, label=measure, markersize=3.5, **style)
            average = row.loc[row["measure"] == "profile score", "value"].mean()
            line = {"color": PALETTE[0], "linewidth": 0.8, "linestyle": "-."}
            axes.axhline(average, label="AVG of the profile score", **line)
    return figure, data


def time_and_memory(lines: Sequence[dict], users: int) -> Drawn:
    """Milliseconds a user and turn (all parties together) and memory of the process in MB, over the turns."""
    data = pd.DataFrame(lines).drop_duplicates(["method", "turn"], keep="last")
    data = data.sort_values(["method", "turn"])
    data["ms"] = 1000 * (data["method_s"] + data["user_s"] + data["judges_s"]) / users
    labels = {"ms": "ms a user and turn", "memory_mb": "memory of the process, MB"}
    names = tables.arrange_rows(data["method"].unique())
    with panels(2, 2, (8, 3)) as (figure, grid):
        for axes, (column, label) in zip(grid, labels.items(), strict=True):
            for color, name in zip(cycle(PALETTE), names, strict=False):
                part = data[data["method"] == name]
                axes.plot(part["turn"], part[column].astype(float), color=color, label=tables.name_row(name))
            axes.set(xlabel="turn k", ylabel=label)
            axes.set_ylim(bottom=0)
            frame.use_whole_numbers(axes)
        frame.legend_below(figure, grid, 3)
    return figure, data[["method", "turn", *labels]]


def score_and_reasoning(table: pd.DataFrame, missing: Sequence[tuple[str, str]]) -> Drawn:
    """Figure 5: AVG in percent and reasoning tokens a turn; `missing` (model, method) were not run."""
    ours = list(zip(table["model"], table["method"], strict=True))
    names = [f"{method}\n{model}" for model, method in [*ours, *missing]]
    kinds = (("avg", "AVG, %", PALETTE[0]), ("tokens", "reasoning tokens a turn", PALETTE[1]))
    with panels(2, 2, (8, 0.9 + 0.52 * len(names)), sharey=True) as (figure, grid):
        for axes, (key, label, color) in zip(grid, kinds, strict=True):
            bars = {"height": 0.6, "xerr": error_bars(table, key), "error_kw": {"capsize": 3}}
            axes.barh(range(len(table)), table[key], color=color, **bars)
            for row, (value, high) in enumerate(zip(table[key], table[f"{key}_high"], strict=True)):
                axes.text(max(value, high), row, f"  {value:.1f}", va="center", fontsize=9)
            for row in range(len(table), len(names)):
                axes.text(0, row, "  not run", va="center", color=GREY, fontsize=9)
            axes.set(xlabel=label, xlim=(0, 1.2 * max(1.0, table[f"{key}_high"].max())))
            axes.grid(axis="y", visible=False)
        grid[0].set_yticks(range(len(names)), names)
        grid[0].invert_yaxis()
    return figure, table


def difficult_users(table: pd.DataFrame) -> Drawn:
    """AVG in percent of each row with each kind of user, from `difficult.alignment_table`."""
    rows = table.groupby(["model", "method"], sort=False)
    manners, columns = list(table["manner"].unique()), min(3, len(rows))
    size = max(4.2, 2.6 * columns + 0.4), (0.6 + 0.26 * len(manners)) * -(-len(rows) // columns) + 0.7
    with panels(len(rows), columns, size, 10, sharex=True, sharey=True) as (figure, grid):
        for axes, ((_, method), part) in zip(grid, rows, strict=True):
            places = [manners.index(m) for m in part["manner"]]
            colors = [GREY if m == "willing" else PALETTE[0] for m in part["manner"]]
            bars = {"xerr": error_bars(part, "avg"), "error_kw": {"capsize": 2, "linewidth": 1}}
            axes.barh(places, part["avg"], height=0.65, color=colors, **bars)
            axes.set(title=method, xlim=(0, 100))
            axes.set_yticks(range(len(manners)), manners)
            axes.grid(axis="y", visible=False)
        grid[0].invert_yaxis()  # shared by all panels
        figure.supxlabel("AVG from turn 2 on, %", fontsize=10)
    return figure, table
