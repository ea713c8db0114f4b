"""What all figures share: style, colours, a frame of panels, bands, error bars and legends.

Sizes are inches at 150 dpi, about 7 wide. The palette is safe for colour-blind readers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Drawn = tuple[Figure, pd.DataFrame]
PALETTE = sns.color_palette("colorblind")
GREY = "0.35"
STYLE = {**sns.axes_style("whitegrid"), **sns.plotting_context("notebook", font_scale=0.9)}


@contextmanager
def panels(
    n: int, columns: int, size: tuple[float, float], title_size: int = 12, **options: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of `size` (width, height) with n panels in rows of `columns`, while it is drawn.

    The empty places of the last row are blank. pyplot forgets the figure at the end, so that a notebook shows
    it once and its memory is freed. `options` go to `plt.subplots`.
    """
    options |= {"figsize": size, "squeeze": False, "layout": "constrained"}
    with plt.rc_context({**STYLE, "axes.titlesize": title_size, "axes.titleweight": "bold"}):
        figure, grid = plt.subplots(-(-n // columns), columns, **options)
        try:
            for axes in grid.flat[n:]:
                axes.axis("off")
            for axes in list(grid.flat[:n])[-columns:]:
                axes.tick_params(labelbottom=True)  # also where the row below is not full
            yield figure, list(grid.flat[:n])
        finally:
            plt.close(figure)


def draw_band(
    axes: Axes, table: pd.DataFrame, column: str, x: str = "turn", strength: float = 0.15, **line: Any
) -> None:
    """A line over `x` with its interval as a pale band: columns low and high, or those of `column`."""
    low, high = (table[f"{column}_{end}" if f"{column}_{end}" in table else end] for end in ("low", "high"))
    axes.fill_between(table[x], low, high, color=line["color"], alpha=strength, linewidth=0)
    axes.plot(table[x], table[column], **line)


def error_bars(table: pd.DataFrame, column: str) -> list[pd.Series]:
    """How far the interval (_low, _high) of a column goes below and above it, as matplotlib takes it."""
    return [table[column] - table[f"{column}_low"], table[f"{column}_high"] - table[column]]


def use_whole_numbers(axes: Axes) -> None:
    """Ticks at whole numbers: there is no turn 2.5."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend_below(figure: Figure, axes: list[Axes], columns: int) -> None:
    """One legend for all panels, below them; a label that several panels have stands once."""
    drawn = [axis.get_legend_handles_labels() for axis in axes]
    handles = {text: line for lines, texts in drawn for line, text in zip(lines, texts, strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)


def finish_turns(figure: Figure, grid: list[Axes], label: str, legend_columns: int = 4) -> None:
    """Panels of percentages over turns: one scale, whole turns, labels at the edges, a legend below."""
    for axes in grid:
        use_whole_numbers(axes)
        axes.set_ylim(-2, 102)
    columns = grid[0].get_subplotspec().get_gridspec().ncols
    for axes in grid[-columns:]:  # the lowest of each column: a label of the figure would be under the legend
        axes.set_xlabel("turn k", fontsize=10)
    figure.supylabel(label, fontsize=10)
    legend_below(figure, grid, legend_columns)
