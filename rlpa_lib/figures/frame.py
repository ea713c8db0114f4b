"""What all figures share: style, colours, a frame of panels, and axes in whole turns.

Sizes are inches at 150 dpi; about 7 wide, so that a picture of 1000 px can be read. The palette is safe for colour-blind readers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

PALETTE = sns.color_palette("colorblind")
GREY = "0.35"
STYLE = {**sns.axes_style("whitegrid"), **sns.plotting_context("notebook", font_scale=0.9), "axes.titlesize": 12, "axes.titleweight": "bold"}


@contextmanager
def panels(
    n: int, columns: int, size: tuple[float, float], style: dict[str, Any] | None = None, **options: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of `size` (width, height) with n panels in rows of `columns`, while it is drawn; the empty places of the last row are blank.

    It leaves pyplot's care at the end, so that a notebook shows it once and memory is freed. `options` go to `plt.subplots`.
    """
    with plt.rc_context(STYLE | (style or {})):
        figure, grid = plt.subplots(-(-n // columns), columns, figsize=size, squeeze=False, layout="constrained", **options)
        try:
            for axes in grid.flat[n:]:
                axes.axis("off")
            for axes in list(grid.flat[:n])[-columns:]:
                axes.tick_params(labelbottom=True)  # also where the row below is not full
            yield figure, list(grid.flat[:n])
        finally:
            plt.close(figure)


def whole(axes: Axes) -> None:
    """Ticks at whole numbers: there is no turn 2.5."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def legend_below(figure: Figure, axes: list[Axes], columns: int) -> None:
    """One legend for all panels, below them; a label that several panels have stands once."""
    handles = {text: line for axis in axes for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
