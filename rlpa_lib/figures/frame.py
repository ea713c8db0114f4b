"""What all figures share: style, colours, a frame of panels, bands, bars and legends.

Sizes are inches at 150 dpi, about 7 wide. The palette is safe for colour-blind readers.
"""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.table import Cell
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

Drawn = tuple[Figure, pd.DataFrame]
PALETTE = sns.color_palette("colorblind")
GREY = "0.35"
CHINESE = re.compile(r"[\u3400-\u9fff]")
# Fonts with Chinese characters, any of which serves where matplotlib's own has none
CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "Source Han Sans CN", "Noto Sans SC",
    "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei",
    "SimHei", "Arial Unicode MS", "Droid Sans Fallback",
)
STYLE = {**sns.axes_style("whitegrid"), **sns.plotting_context("notebook", font_scale=0.9)}


def find_fonts() -> list[str]:
    """Families for text, each for what the one before lacks: matplotlib's own, then those of CHINESE_FONTS
    that are installed here."""
    _meet_new_fonts()
    there = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in CHINESE_FONTS if name in there)]


@cache
def _meet_new_fonts() -> None:
    """matplotlib keeps a list of this machine's fonts: add those that were installed after it was made."""
    known = {font.fname for font in font_manager.fontManager.ttflist}
    for file in set(font_manager.findSystemFonts()) - known:
        with suppress(RuntimeError, OSError):  # not a font that matplotlib reads
            font_manager.fontManager.addfont(file)


def _check_signs(figure: Figure) -> None:
    """Warn where a text of the figure is Chinese and no font here can write it."""
    if len(find_fonts()) > 1:
        return
    texts = [*figure.findobj(Text), *(cell.get_text() for cell in figure.findobj(Cell))]
    for axes in figure.axes:
        texts += axes.get_xticklabels() + axes.get_yticklabels()
    if CHINESE.search("".join(text.get_text() for text in texts)):
        how = "install one (Debian and Ubuntu: apt install fonts-noto-cjk) and run this notebook again"
        warnings.warn(f"no font here has Chinese characters, which are drawn as boxes; {how}", stacklevel=4)


@contextmanager
def panels(
    n: int, columns: int, size: tuple[float, float], title_size: int = 12, **options: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of `size` (width, height) with n panels in rows of `columns`, while it is drawn.

    The empty places of the last row are blank. pyplot forgets the figure at the end, so that a notebook shows
    it once and its memory is freed. `options` go to `plt.subplots`.
    """
    options |= {"figsize": size, "squeeze": False, "layout": "constrained"}
    look = {"axes.titlesize": title_size, "axes.titleweight": "bold", "font.family": find_fonts()}
    with plt.rc_context({**STYLE, **look}):
        figure, grid = plt.subplots(-(-n // columns), columns, **options)
        try:
            for axes in grid.flat[n:]:
                axes.axis("off")
            for axes in list(grid.flat[:n])[-columns:]:
                axes.tick_params(labelbottom=True)  # also where the row below is not full
            yield figure, list(grid.flat[:n])
            _check_signs(figure)
        finally:
            plt.close(figure)


@contextmanager
def turn_panels(
    titles: Sequence[str], columns: int, size: tuple[float, float], label: str, legend_columns: int = 4,
    title_size: int = 10,
) -> Iterator[tuple[Figure, list[Axes]]]:  # fmt: skip
    """Panels of percentages over turns: one scale, whole turns, labels at the edges, a legend below."""
    with panels(len(titles), columns, size, title_size, sharex=True, sharey=True) as (figure, grid):
        yield figure, grid
        for axes, title in zip(grid, titles, strict=True):
            axes.set(title=title, ylim=(-2, 102))
            use_whole_numbers(axes)
        for axes in grid[-columns:]:  # a label of the figure would be under the legend
            axes.set_xlabel("turn k", fontsize=10)
        figure.supylabel(label, fontsize=10)
        legend_below(figure, grid, legend_columns)


def draw_band(
    axes: Axes, table: pd.DataFrame, column: str, x: str = "turn", strength: float = 0.15, **line: Any
) -> None:
    """A line over `x`, with its interval (`_ends`) as a pale band."""
    axes.fill_between(table[x], *_ends(table, column), color=line["color"], alpha=strength, linewidth=0)
    axes.plot(table[x], table[column], **line)


def draw_bars(
    axes: Axes, table: pd.DataFrame, column: str, places: Sequence[Any], error_kw: Mapping[str, float],
    number: str = "", fontsize: int | None = None, **bar: Any,
) -> None:  # fmt: skip
    """Bars to the right with their intervals; behind each its value in the format `number` if given."""
    bar = {"height": 0.6, "color": PALETTE[0], **bar}
    axes.barh(places, table[column], xerr=error_bars(table, column), error_kw=error_kw, **bar)
    for row, (value, high) in enumerate(zip(table[column], _ends(table, column)[1], strict=True)):
        if number:
            axes.text(max(value, high), row, f"  {value:{number}}", va="center", fontsize=fontsize)
    axes.grid(axis="y", visible=False)


def error_bars(table: pd.DataFrame, column: str) -> list[pd.Series]:
    """How far the interval of a column (`_ends`) goes below and above it, as matplotlib takes it."""
    low, high = _ends(table, column)
    return [table[column] - low, high - table[column]]


def _ends(table: pd.DataFrame, column: str) -> list[pd.Series]:
    """The columns `column`_low and `column`_high, or low and high."""
    return [table[f"{column}_{end}" if f"{column}_{end}" in table else end] for end in ("low", "high")]


def use_whole_numbers(axes: Axes) -> None:
    """Ticks at whole numbers, also under a single point: there is no turn 2.5."""
    low, high = axes.get_xlim()
    if high - low < 1:
        axes.set_xlim((low + high - 1) / 2, (low + high + 1) / 2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def legend_below(figure: Figure, axes: list[Axes], columns: int) -> None:
    """One legend for all panels, below them; a label that several panels have stands once."""
    drawn = [axis.get_legend_handles_labels() for axis in axes]
    handles = {text: line for lines, texts in drawn for line, text in zip(lines, texts, strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)
