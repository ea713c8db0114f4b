"""Figures 3, 14 and 15 in the paper's arrangement; swap test, price of a score, profiles, several seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from rlpa_lib.evaluation import tables
from rlpa_lib.evaluation.breakdown import mean_table
from rlpa_lib.evaluation.paper_tables import TURNS, read_printed_row
from rlpa_lib.evaluation.tables import CLOSED
from rlpa_lib.figures import frame
from rlpa_lib.figures.frame import GREY, PALETTE, Drawn, draw_band, error_bars, panels
from rlpa_lib.settings.kinds import METHODS

Wanted = Sequence[tuple[str, str]]
# Panels (model, method) in the paper's order: figure 3, and 14 and 15 (a) to (l). No model: the run's own.
_OWN = ("sft", "dpo", "self_critic", "rlpa", "base", "cot", "reminder", "rag")
FIGURE_14 = (*(("", METHODS[name].label) for name in _OWN), *CLOSED[:4])
FIGURE_3 = FIGURE_14[:4]
CONTROLS = {METHODS["oracle"].label: "--", METHODS["random"].label: ":"}  # line styles of ceiling and floor


def turnwise_panels(
    table: pd.DataFrame, benchmark: str, wanted: Wanted, columns: int, paper_model: str = ""
) -> Drawn:
    """Figures 3, 14, 15 from table 4 or 5: AL(k) in percent, one panel a row, floor and ceiling in each.

    A panel without a row says so. `paper_model` (only at the paper's scale) adds the printed curve.
    """
    data = _read_curves(table, benchmark, wanted, paper_model)
    size = (2.5 * columns + 0.4, 2.2 * -(-len(wanted) // columns) + 0.6)
    with panels(len(wanted), columns, size, 10, sharex=True, sharey=True) as (figure, grid):
        for axes, (model, method) in zip(grid, wanted, strict=True):
            part = data[(data["panel_model"] == model) & (data["method"] == method)]
            _draw_curves(axes, part, data[data["method"].isin(CONTROLS)])
            axes.set_title(model or method)
        frame.finish_turns(figure, grid, "AL(k), %")
    return figure, data


def _read_curves(table: pd.DataFrame, benchmark: str, wanted: Wanted, paper_model: str) -> pd.DataFrame:
    """Long form: panel_model, model, method, source (ours or paper), turn, al, low, high."""
    turns = sorted(int(c[1:]) for c in table.columns if re.fullmatch(r"k\d+", c))
    others = {model for model, _ in wanted if model}
    lines = []
    for _, row in table.iterrows():
        panel = row["model"] if row["model"] in others else ""
        if (panel, row["method"]) in wanted or row["method"] in CONTROLS:
            key = panel, row["model"], row["method"], "ours"
            lines += [(*key, k, row[f"k{k}"], row[f"k{k}_low"], row[f"k{k}_high"]) for k in turns]
    for panel, method in wanted if paper_model else ():
        key = panel, panel or paper_model, method, "paper"
        printed = read_printed_row(tables.TABLE_OF[benchmark], *key[1:3])
        lines += [(*key, k, printed[turn], None, None) for k, turn in enumerate(TURNS, start=1) if printed]
    names = ["panel_model", "model", "method", "source", "turn", "al", "low", "high"]
    return pd.DataFrame(lines, columns=names).astype({"al": float, "low": float, "high": float})


def _draw_curves(axes: Axes, part: pd.DataFrame, controls: pd.DataFrame) -> None:
    ours, paper = part[part["source"] == "ours"], part[part["source"] == "paper"]
    for name, linestyle in CONTROLS.items():
        line = controls[controls["method"] == name]
        if len(line):
            pale = {"color": GREY, "strength": 0.1, "linewidth": 1}
            draw_band(axes, line, "al", linestyle=linestyle, label=name, **pale)
    if len(ours):
        style = {"color": PALETTE[0], "marker": "o", "markersize": 3}
        draw_band(axes, ours, "al", strength=0.25, label="this run, 95 % interval", **style)
    else:
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", va="center", color=GREY)
    if len(paper):
        style = {"color": PALETTE[1], "marker": "s", "markersize": 3, "linewidth": 1}
        axes.plot(paper["turn"], paper["al"], label="paper", **style)


def personal_part(curves: Mapping[str, pd.DataFrame], benchmark: str, columns: int = 4) -> Drawn:
    """The swap test by turn: shares aligned with the own and with another user's persona; between them lies
    what is personal. One panel a row key, from `breakdown.by_turn`."""
    names = tables.arrange_rows(curves)
    styles = {"own": {"color": PALETTE[0], "marker": "o", "label": "own persona"},
              "swapped": {"color": PALETTE[1], "marker": "s", "label": "another user's persona"}}  # fmt: skip
    size = (2.5 * columns + 0.4, 2.1 * -(-len(names) // columns) + 0.6)
    with panels(len(names), columns, size, 9, sharex=True, sharey=True) as (figure, grid):
        for axes, name in zip(grid, names, strict=True):
            percent, turns = 100 * curves[name].drop(columns="turn"), curves[name]["turn"]
            between = {"color": PALETTE[0], "alpha": 0.2, "linewidth": 0}
            axes.fill_between(turns, percent["swapped"], percent["own"], **between)
            for column, style in styles.items():
                bars = {"yerr": error_bars(percent, column), "markersize": 3, "elinewidth": 0.8}
                axes.errorbar(turns, percent[column], **bars, **style)
            axes.set_title(next(filter(None, tables.label_row(name, ""))))
        frame.finish_turns(figure, grid, f"aligned responses, % ({benchmark})", 2)
    return figure, pd.concat([curves[name].assign(row=name) for name in names], ignore_index=True)


def score_and_cost(data: pd.DataFrame) -> Drawn:
    """AVG in percent with its interval against the tokens generated for one answer, one panel a benchmark.

    `data` has columns method, benchmark, avg, avg_low, avg_high, tokens_per_turn.
    """
    benchmarks = data.groupby("benchmark", sort=False)
    n = len(benchmarks)
    with panels(n, n, (3.6 * n + 0.6, 3.4), sharey=True) as (figure, grid):
        for axes, (benchmark, part) in zip(grid, benchmarks, strict=True):
            for i in range(len(part)):
                row = part.iloc[[i]]
                style = {"marker": "o", "capsize": 3, "color": PALETTE[i % 10], "label": row["method"].item()}
                axes.errorbar(row["tokens_per_turn"], row["avg"], yerr=error_bars(row, "avg"), **style)
            axes.set(title=benchmark, xlabel="tokens generated an answer", xlim=(0, None))
            axes.set_ylim(bottom=0)
        grid[0].set_ylabel("AVG, %")
        frame.legend_below(figure, grid, 3)
    return figure, data


def alignment_over_seeds(by_seed: Sequence[tables.Scores]) -> Drawn:
    """AL(k) in percent of every row that all seeds have, with 95 % intervals over seeds and users."""
    lines = []
    for (name, benchmark), scores_SEK in tables.stack_seeds(by_seed).items():
        for k in range(scores_SEK.shape[2]):
            al = tables.average_over_seeds("al", scores_SEK[:, :, k : k + 1])
            lines.append((benchmark, name, k + 1, *al.values()))
    data = pd.DataFrame(lines, columns=["benchmark", "method", "turn", "al", "low", "high"])
    data = data.sort_values(["benchmark", "method", "turn"], ignore_index=True)
    benchmarks = sorted(data["benchmark"].unique(), reverse=True)
    names = tables.arrange_rows(data["method"].unique())
    with panels(len(benchmarks), len(benchmarks), (5 * len(benchmarks), 4.2), sharey=True) as (figure, grid):
        for axes, benchmark in zip(grid, benchmarks, strict=True):
            for number, name in enumerate(names):
                part = data[(data["benchmark"] == benchmark) & (data["method"] == name)]
                style = _style_line(name, number)
                draw_band(axes, part, "al", strength=0.12, label=tables.name_row(name), **style)
            axes.set_title(benchmark)
        frame.finish_turns(figure, grid, "AL(k), %", 5)
    return figure, data


def _style_line(name: str, number: int) -> dict[str, Any]:
    """RLPA stands out; colours begin again, dashed, where there are more rows than colours."""
    if name == "rlpa":
        return {"color": "black", "linewidth": 2.5, "zorder": 3, "marker": "o", "markersize": 4}
    again, place = divmod(number, len(PALETTE))
    line = {"color": PALETTE[place], "linestyle": "--" if again else "-", "linewidth": 1.4}
    return {**line, "marker": "o", "markersize": 4}


def profile_progress(rows_by_method: Mapping[str, Sequence[dict]]) -> Drawn:
    """Profile score and Theoretical Max by turn (as in figure 4b, ten turns), with intervals over users."""
    told = pd.concat([pd.DataFrame(rows).assign(method=name) for name, rows in rows_by_method.items()])
    told["ceiling"] = told["n_told"] / told["n_true"]
    told["recall"] = told["n_matched"] / told["n_true"]
    told = told.sort_values(["method", "turn"])
    data = mean_table(told, ["method", "turn"], ["profile_f1", "recall", "ceiling"])
    with panels(2, 2, (10, 3.6), sharey=True) as (figure, [score, recall]):
        lines = ((score, "profile_f1", "-", "o"), (recall, "recall", "-", "o"), (recall, "ceiling", "--", ""))
        for (name, part), color in zip(data.groupby("method"), PALETTE, strict=False):
            for axes, column, linestyle, marker in lines:
                style = {"color": color, "linestyle": linestyle, "marker": marker, "label": name}
                axes.errorbar(part["turn"], part[column], error_bars(part, column), **style)
        score.legend(frameon=False)
        score.set(xlabel="turn k", ylabel="profile score, F1", ylim=(0, 1))
        recall.set(xlabel="turn k", ylabel="recall; dashed: Theoretical Max")
        frame.use_whole_numbers(score)
        frame.use_whole_numbers(recall)
    return figure, data
