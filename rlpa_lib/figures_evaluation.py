"""Figures 3, 14 and 15 in the paper's arrangement, and what goes beyond them. As in `figures`: (figure, the DataFrame that was drawn)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlpa_lib import tables
from rlpa_lib.figures import GREY, PALETTE, STYLE
from rlpa_lib.tables_shown import printed_curve

# Panels in the paper's order: figure 3, and figures 14 and 15 (a) to (l). Without a model: a method on the run's own model.
FIGURE_3 = (("", "SFT"), ("", "DPO"), ("", "Self-Critic"), ("", "RLPA"))
_OTHERS = (("", "Base"), ("", "CoT"), ("", "Reminder"), ("", "RAG(Top-5)"))
_CLOSED = tuple((model, "Self-Critic") for model in ("GPT-4o-mini", "GPT-4o", "Claude-3.5-Sonnet", "Claude-3.5-Haiku"))
FIGURE_14 = (*FIGURE_3, *_OTHERS, *_CLOSED)
CONTROLS = {"oracle control": ("--", "oracle control"), "random control": (":", "random control")}


def turnwise_panels(
    table: pd.DataFrame, benchmark: str, panels: Sequence[tuple[str, str]], columns: int, paper_model: str = ""
) -> tuple[Figure, pd.DataFrame]:
    """Figures 3, 14, 15 from table 4 or 5: AL(k) in percent with exact 95 % intervals, one panel a row, floor and ceiling in each.

    A panel whose row was not run says so. With `paper_model` (at the paper's scale alone) the printed curve is drawn beside ours.
    """
    data = _curves(table, benchmark, panels, paper_model)
    rows = -(-len(panels) // columns)
    with plt.rc_context(STYLE | {"axes.titlesize": 10}):
        size = {"figsize": (2.5 * columns + 0.4, 2.2 * rows + 0.6), "layout": "constrained"}
        figure, grid = plt.subplots(rows, columns, sharex=True, sharey=True, squeeze=False, **size)
        for axes in grid.flat[len(panels) :]:
            axes.axis("off")
        for axes, (model, method) in zip(grid.flat, panels, strict=False):
            part = data[(data["panel_model"] == model) & (data["method"] == method)]
            _panel(axes, part, data[data["method"].isin(CONTROLS)], model or method)
        for axes in grid[:, 0]:
            axes.set_ylabel("AL(k), %")
        for axes in grid[-1]:
            axes.set_xlabel("turn k")
        handles = {text: line for axes in grid.flat for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    plt.close(figure)
    return figure, data


def _curves(table: pd.DataFrame, benchmark: str, panels: Sequence[tuple[str, str]], paper_model: str) -> pd.DataFrame:
    """Long form: panel_model, model, method, source (ours or paper), turn, al, low, high."""
    turns = sorted(int(c[1:]) for c in table.columns if re.fullmatch(r"k\d+", c))
    others = {model for model, _ in panels if model}
    lines = []
    for _, row in table.iterrows():
        panel = row["model"] if row["model"] in others else ""
        if (panel, row["method"]) in panels or row["method"] in CONTROLS:
            lines += [(panel, row["model"], row["method"], "ours", k, row[f"k{k}"], row[f"k{k}_low"], row[f"k{k}_high"]) for k in turns]
    for panel, method in panels if paper_model else ():
        model = panel or paper_model
        lines += [(panel, model, method, "paper", k, al, None, None) for k, al in printed_curve(benchmark, model, method).items()]
    names = ["panel_model", "model", "method", "source", "turn", "al", "low", "high"]
    return pd.DataFrame(lines, columns=names).astype({"al": float, "low": float, "high": float})


def _panel(axes: Axes, part: pd.DataFrame, controls: pd.DataFrame, title: str) -> None:
    for name, (style, text) in CONTROLS.items():
        line = controls[controls["method"] == name]
        if len(line):
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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def personal_part(curves: Mapping[str, pd.DataFrame], benchmark: str, columns: int = 4) -> tuple[Figure, pd.DataFrame]:
    """The swap test by turn, one panel a row key: share aligned with the own persona, and with another user's; between them lies what is
    personal. `curves` holds `breakdown.by_turn`."""
    names = tables.arranged(curves)
    data = pd.concat([curves[name].assign(row=name) for name in names], ignore_index=True)
    rows = -(-len(names) // columns)
    with plt.rc_context(STYLE | {"axes.titlesize": 9}):
        size = {"figsize": (2.5 * columns + 0.4, 2.1 * rows + 0.6), "layout": "constrained"}
        figure, grid = plt.subplots(rows, columns, sharex=True, sharey=True, squeeze=False, **size)
        for axes in grid.flat[len(names) :]:
            axes.axis("off")
        for axes, name in zip(grid.flat, names, strict=False):
            part, (model, method) = curves[name], tables.label(name, "")
            axes.fill_between(part["turn"], 100 * part["swapped"], 100 * part["own"], color=PALETTE[0], alpha=0.2, linewidth=0)
            axes.plot(part["turn"], 100 * part["own"], color=PALETTE[0], marker="o", markersize=3, label="own persona")
            axes.plot(part["turn"], 100 * part["swapped"], color=PALETTE[1], marker="s", markersize=3, label="another user's persona")
            axes.set(title=model or method, ylim=(-2, 102))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in grid.flat[max(0, len(names) - columns) : len(names)]:
            axes.tick_params(labelbottom=True)  # also where the row below is not full
        figure.supylabel(f"aligned responses, % ({benchmark})", fontsize=10)
        figure.supxlabel("turn k", fontsize=10)
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    plt.close(figure)
    return figure, data


def score_and_cost(data: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """AVG in percent with its interval against the tokens generated for one answer; `data` has columns method, benchmark, avg, avg_low,
    avg_high, tokens_per_turn."""
    benchmarks = list(dict.fromkeys(data["benchmark"]))
    with plt.rc_context(STYLE):
        size = {"figsize": (3.6 * len(benchmarks) + 0.6, 3.4), "layout": "constrained"}
        figure, grid = plt.subplots(1, len(benchmarks), sharey=True, squeeze=False, **size)
        for axes, benchmark in zip(grid[0], benchmarks, strict=True):
            part = data[data["benchmark"] == benchmark].reset_index(drop=True)
            for i, row in part.iterrows():
                reach = [[row["avg"] - row["avg_low"]], [row["avg_high"] - row["avg"]]]
                axes.errorbar(row["tokens_per_turn"], row["avg"], yerr=reach, marker="o", capsize=3, color=PALETTE[i % 10], label=row["method"])
            axes.set(title=benchmark, xlabel="tokens generated an answer", xlim=(0, None))
            axes.set_ylim(bottom=0)
        grid[0, 0].set_ylabel("AVG, %")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    plt.close(figure)
    return figure, data
