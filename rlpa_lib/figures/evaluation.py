"""Figures 3, 14 and 15 in the paper's arrangement, and what goes beyond them: swap test, price of a score, profiles, several seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlpa_lib.evaluation import tables
from rlpa_lib.evaluation.breakdown import mean_table
from rlpa_lib.evaluation.intervals import seed_interval
from rlpa_lib.evaluation.presentation import printed_curve
from rlpa_lib.figures.frame import GREY, PALETTE, legend_below, panels, whole

# Panels in the paper's order: figure 3, and figures 14 and 15 (a) to (l). Without a model: a method on the run's own model.
FIGURE_3 = (("", "SFT"), ("", "DPO"), ("", "Self-Critic"), ("", "RLPA"))
_OTHERS = (("", "Base"), ("", "CoT"), ("", "Reminder"), ("", "RAG(Top-5)"))
_CLOSED = tuple((model, "Self-Critic") for model in ("GPT-4o-mini", "GPT-4o", "Claude-3.5-Sonnet", "Claude-3.5-Haiku"))
FIGURE_14 = (*FIGURE_3, *_OTHERS, *_CLOSED)
CONTROLS = {"oracle control": ("--", "oracle control"), "random control": (":", "random control")}


def turnwise_panels(
    table: pd.DataFrame, benchmark: str, wanted: Sequence[tuple[str, str]], columns: int, paper_model: str = ""
) -> tuple[Figure, pd.DataFrame]:
    """Figures 3, 14, 15 from table 4 or 5: AL(k) in percent with exact 95 % intervals, one panel a row, floor and ceiling in each.

    A panel whose row was not run says so. With `paper_model` (at the paper's scale alone) the printed curve is drawn beside ours.
    """
    data = _curves(table, benchmark, wanted, paper_model)
    size = (2.5 * columns + 0.4, 2.2 * -(-len(wanted) // columns) + 0.6)
    with panels(len(wanted), columns, size, {"axes.titlesize": 10}, sharex=True, sharey=True) as (figure, grid):
        for axes, (model, method) in zip(grid, wanted, strict=True):
            part = data[(data["panel_model"] == model) & (data["method"] == method)]
            _panel(axes, part, data[data["method"].isin(CONTROLS)], model or method)
        for axes in grid[::columns]:
            axes.set_ylabel("AL(k), %")
        for axes in grid[-columns:]:
            axes.set_xlabel("turn k")
        legend_below(figure, grid, 4)
    return figure, data


def _curves(table: pd.DataFrame, benchmark: str, wanted: Sequence[tuple[str, str]], paper_model: str) -> pd.DataFrame:
    """Long form: panel_model, model, method, source (ours or paper), turn, al, low, high."""
    turns = sorted(int(c[1:]) for c in table.columns if re.fullmatch(r"k\d+", c))
    others = {model for model, _ in wanted if model}
    lines = []
    for _, row in table.iterrows():
        panel = row["model"] if row["model"] in others else ""
        if (panel, row["method"]) in wanted or row["method"] in CONTROLS:
            lines += [(panel, row["model"], row["method"], "ours", k, row[f"k{k}"], row[f"k{k}_low"], row[f"k{k}_high"]) for k in turns]
    for panel, method in wanted if paper_model else ():
        model = panel or paper_model
        lines += [(panel, model, method, "paper", k, al, None, None) for k, al in printed_curve(benchmark, model, method).items()]
    names = ["panel_model", "model", "method", "source", "turn", "al", "low", "high"]
    return pd.DataFrame(lines, columns=names).astype({"al": float, "low": float, "high": float})


def _panel(axes: Axes, part: pd.DataFrame, controls: pd.DataFrame, title: str) -> None:
    for name, (style, text) in CONTROLS.items():
        line = controls[controls["method"] == name]
        if len(line):
            axes.fill_between(line["turn"], line["low"], line["high"], color=GREY, alpha=0.1, linewidth=0)
            axes.plot(line["turn"], line["al"], color=GREY, linestyle=style, linewidth=1, label=text)
    ours, paper = part[part["source"] == "ours"], part[part["source"] == "paper"]
    if len(ours):
        axes.fill_between(ours["turn"], ours["low"], ours["high"], color=PALETTE[0], alpha=0.25, linewidth=0)
        axes.plot(ours["turn"], ours["al"], color=PALETTE[0], marker="o", markersize=3, label="this run, 95 % interval")
    else:
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", va="center", color=GREY)
    if len(paper):
        axes.plot(paper["turn"], paper["al"], color=PALETTE[1], marker="s", markersize=3, linewidth=1, label="paper")
    axes.set(title=title, ylim=(-2, 102))
    whole(axes)


def personal_part(curves: Mapping[str, pd.DataFrame], benchmark: str, columns: int = 4) -> tuple[Figure, pd.DataFrame]:
    """The swap test by turn, one panel a row key: share aligned with the own persona, and with another user's, with 95 % intervals; between
    them lies what is personal. `curves` holds `breakdown.by_turn`."""
    names = tables.arranged(curves)
    data = pd.concat([curves[name].assign(row=name) for name in names], ignore_index=True)
    size = (2.5 * columns + 0.4, 2.1 * -(-len(names) // columns) + 0.6)
    with panels(len(names), columns, size, {"axes.titlesize": 9}, sharex=True, sharey=True) as (figure, grid):
        for axes, name in zip(grid, names, strict=True):
            part, (model, method) = curves[name], tables.label(name, "")
            axes.fill_between(part["turn"], 100 * part["swapped"], 100 * part["own"], color=PALETTE[0], alpha=0.2, linewidth=0)
            for column, color, marker, text in (("own", PALETTE[0], "o", "own persona"), ("swapped", PALETTE[1], "s", "another user's persona")):
                middle = 100 * part[column]
                reach = [middle - 100 * part[f"{column}_low"], 100 * part[f"{column}_high"] - middle]
                axes.errorbar(part["turn"], middle, yerr=reach, color=color, marker=marker, markersize=3, elinewidth=0.8, label=text)
            axes.set(title=model or method, ylim=(-2, 102))
            whole(axes)
        figure.supylabel(f"aligned responses, % ({benchmark})", fontsize=10)
        for axes in grid[-columns:]:  # each its own: a legend below would cover a label of the whole figure
            axes.set_xlabel("turn k")
        legend_below(figure, grid, 2)
    return figure, data


def score_and_cost(data: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """AVG in percent with its interval against the tokens generated for one answer; `data` has columns method, benchmark, avg, avg_low,
    avg_high, tokens_per_turn."""
    benchmarks = list(dict.fromkeys(data["benchmark"]))
    with panels(len(benchmarks), len(benchmarks), (3.6 * len(benchmarks) + 0.6, 3.4), sharey=True) as (figure, grid):
        for axes, benchmark in zip(grid, benchmarks, strict=True):
            part = data[data["benchmark"] == benchmark].reset_index(drop=True)
            for i, row in part.iterrows():
                reach = [[row["avg"] - row["avg_low"]], [row["avg_high"] - row["avg"]]]
                axes.errorbar(row["tokens_per_turn"], row["avg"], yerr=reach, marker="o", capsize=3, color=PALETTE[i % 10], label=row["method"])
            axes.set(title=benchmark, xlabel="tokens generated an answer", xlim=(0, None))
            axes.set_ylim(bottom=0)
        grid[0].set_ylabel("AVG, %")
        legend_below(figure, grid, 3)
    return figure, data


def alignment_over_seeds(by_seed: Sequence[Mapping[tuple[str, str], np.ndarray]]) -> tuple[Figure, pd.DataFrame]:
    """AL(k) in percent of every row that all S seeds have, scores (E, K) each, with 95 % intervals over seeds and users; a panel a benchmark."""
    rows = []
    for name, benchmark in set.intersection(*(set(scores) for scores in by_seed)):
        scores_SEK = np.stack([scores[name, benchmark] for scores in by_seed])
        for turn in range(scores_SEK.shape[2]):
            found = seed_interval(scores_SEK[:, :, turn : turn + 1])
            rows.append((benchmark, name, turn + 1, 100 * found.estimate, 100 * max(0, found.low), 100 * min(1, found.high)))
    data = pd.DataFrame(rows, columns=["benchmark", "method", "turn", "al", "low", "high"]).sort_values(["benchmark", "method", "turn"])
    benchmarks, names = sorted(data["benchmark"].unique(), reverse=True), tables.arranged(data["method"].unique())
    with panels(len(benchmarks), len(benchmarks), (5 * len(benchmarks), 4.2), sharey=True) as (figure, grid):
        for axes, benchmark in zip(grid, benchmarks, strict=True):
            for number, name in enumerate(names):
                part = data[(data["benchmark"] == benchmark) & (data["method"] == name)]
                own = name == "rlpa"  # stands out; colours begin again, dashed, where there are more rows than colours
                color = "black" if own else PALETTE[number % len(PALETTE)]
                axes.fill_between(part["turn"], part["low"], part["high"], color=color, alpha=0.12, linewidth=0)
                axes.plot(part["turn"], part["al"], color=color, linestyle="-" if number < len(PALETTE) or own else "--", zorder=3 if own else 2,
                          linewidth=2.5 if own else 1.4, marker="o", markersize=4, label=tables.LABELS.get(name, name))
            axes.set(xlabel="turn k", ylabel="AL(k), %", title=benchmark, ylim=(-2, 102))
            whole(axes)
        legend_below(figure, grid, 5)
    return figure, data.reset_index(drop=True)


def profile_progress(rows_by_method: Mapping[str, Sequence[dict]]) -> tuple[Figure, pd.DataFrame]:
    """Profile score and Theoretical Max by turn (as in figure 4b, ten turns), with 95 % intervals over users."""
    frame = pd.concat([pd.DataFrame(rows).assign(method=name) for name, rows in rows_by_method.items()])
    frame["ceiling"] = frame["n_told"] / frame["n_true"]
    frame["recall"] = frame["n_matched"] / frame["n_true"]
    data = mean_table(frame.sort_values(["method", "turn"]), ["method", "turn"], ["profile_f1", "recall", "ceiling"])
    with panels(2, 2, (10, 3.6), sharey=True) as (figure, [score, recall]):
        for (name, part), color in zip(data.groupby("method"), PALETTE, strict=False):
            for axes, column, style in ((score, "profile_f1", "-"), (recall, "recall", "-"), (recall, "ceiling", "--")):
                reach = (part[column] - part[f"{column}_low"], part[f"{column}_high"] - part[column])
                axes.errorbar(part["turn"], part[column], reach, color=color, linestyle=style, marker="o" if style == "-" else "", label=name)
        score.legend(frameon=False)
        score.set(xlabel="turn k", ylabel="profile score, F1", ylim=(0, 1))
        recall.set(xlabel="turn k", ylabel="recall; dashed: Theoretical Max")
        whole(score)
        whole(recall)
    return figure, data
