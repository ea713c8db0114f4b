"""Figures 3, 4a, 4b, 5, 14 and 15, and what the paper does not draw: the swap test, prices, several seeds,
profiles through a change, time and memory, users who do not cooperate."""

import re
from collections.abc import Mapping, Sequence
from itertools import cycle

import pandas as pd
from matplotlib.figure import Figure

from rlpa_lib.evaluation import tables
from rlpa_lib.evaluation.breakdown import mean_table
from rlpa_lib.evaluation.paper_tables import TURNS, read_printed_row
from rlpa_lib.evaluation.tables import CLOSED
from rlpa_lib.figures import frame
from rlpa_lib.figures.frame import GREY, PALETTE, Drawn, draw_band, draw_bars, error_bars, panels, turn_panels
from rlpa_lib.settings.kinds import METHODS

Wanted = Sequence[tuple[str, str]]
# Panels (model, method) in the paper's order: figure 3, and 14 and 15 (a) to (l). No model: the run's own.
_OWN = ("sft", "dpo", "self_critic", "rlpa", "base", "cot", "reminder", "rag")
FIGURE_14 = (*(("", METHODS[name].label) for name in _OWN), *CLOSED[:4])
FIGURE_3 = FIGURE_14[:4]
CONTROLS = {METHODS["oracle"].label: "--", METHODS["random"].label: ":"}  # line styles of ceiling and floor
# what a line shows -> its look
_LINES = {
    "change": {"color": PALETTE[0], "marker": "o", "label": "the user changes"},
    "no change": {"color": GREY, "linestyle": "--", "label": "same users, no change"},
    "old": {"color": PALETTE[1], "marker": "s", "label": "old value"},
    "new": {"color": PALETTE[0], "marker": "o", "label": "new value"},
    "profile score": {"color": PALETTE[0], "marker": "o", "label": "profile score"},
    "recall": {"color": PALETTE[2], "marker": "D", "label": "recall"},
    "Theoretical Max": {"color": "black", "linestyle": "--", "label": "Theoretical Max"},
    "best score": {"color": GREY, "linestyle": ":", "label": "best score"},
    "own": {"color": PALETTE[0], "marker": "o", "label": "own persona"},
    "swapped": {"color": PALETTE[1], "marker": "s", "label": "another user's persona"},
}


def turnwise_panels(
    table: pd.DataFrame, benchmark: str, wanted: Wanted, columns: int, model: str, paper_model: str = ""
) -> Drawn:
    """Figures 3, 14, 15 from table 4 or 5: AL(k) in percent, one panel a row, floor and ceiling in each.

    `model` is the run's own, as in `policy.model`; other models' rows stand in panels of their name alone. A
    panel without a row says so. `paper_model` (only at the paper's scale) adds the printed curve.
    """
    data = _read_curves(table, benchmark, wanted, model, paper_model)
    controls = [(data[data["method"] == name], name, style) for name, style in CONTROLS.items()]
    size = (2.5 * columns + 0.4, 2.2 * -(-len(wanted) // columns) + 0.6)
    titles = [model or method for model, method in wanted]
    with turn_panels(titles, columns, size, "AL(k), %") as (figure, grid):
        for axes, (model, method) in zip(grid, wanted, strict=True):
            for line, name, linestyle in controls:
                if len(line):
                    pale = {"color": GREY, "strength": 0.1, "linewidth": 1}
                    draw_band(axes, line, "al", linestyle=linestyle, label=name, **pale)
            part = data[(data["panel_model"] == model) & (data["method"] == method)]
            ours, paper = part[part["source"] == "ours"], part[part["source"] == "paper"]
            if len(ours):
                style = {"color": PALETTE[0], "marker": "o", "label": "this run, 95 % interval"}
                draw_band(axes, ours, "al", strength=0.25, markersize=3, **style)
            else:
                axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", va="center", color=GREY)
            if len(paper):
                style = {"color": PALETTE[1], "marker": "s", "markersize": 3, "linewidth": 1}
                axes.plot(paper["turn"], paper["al"], label="paper", **style)
    return figure, data


def _read_curves(
    table: pd.DataFrame, benchmark: str, wanted: Wanted, model: str, paper_model: str
) -> pd.DataFrame:
    """Long form: panel_model, model, method, source (ours or paper), turn, al, low, high."""
    turns = sorted(int(c[1:]) for c in table.columns if re.fullmatch(r"k\d+", c))
    lines, (own, _) = [], tables.label_row("base", model)
    for row in table.to_dict("records"):
        panel = "" if row["model"] == own else row["model"]
        if (panel, row["method"]) in wanted or row["method"] in CONTROLS:
            key = panel, row["model"], row["method"], "ours"
            lines += [(*key, k, *(row[f"k{k}{end}"] for end in ("", "_low", "_high"))) for k in turns]
    for panel, method in wanted if paper_model else ():
        key = panel, panel or paper_model, method, "paper"
        printed = read_printed_row(tables.TABLE_OF[benchmark], *key[1:3])
        lines += [(*key, k, printed[turn], None, None) for k, turn in enumerate(TURNS, start=1) if printed]
    names = ["panel_model", "model", "method", "source", "turn", "al", "low", "high"]
    return pd.DataFrame(lines, columns=names).astype({"al": float, "low": float, "high": float})


def personal_part(curves: Mapping[str, pd.DataFrame], benchmark: str, columns: int = 4) -> Drawn:
    """The swap test by turn: shares aligned with the own and with another user's persona; between them lies
    what is personal. One panel a row key, from `breakdown.by_turn`."""
    names = tables.arrange_rows(curves)
    titles = [model or method for model, method in (tables.label_row(name, "") for name in names)]
    size = (2.5 * columns + 0.4, 2.1 * -(-len(names) // columns) + 0.6)
    label = f"aligned responses, % ({benchmark})"
    with turn_panels(titles, columns, size, label, 2, title_size=9) as (figure, grid):
        for axes, name in zip(grid, names, strict=True):
            percent, turns = 100 * curves[name].drop(columns="turn"), curves[name]["turn"]
            between = {"color": PALETTE[0], "alpha": 0.2, "linewidth": 0}
            axes.fill_between(turns, percent["swapped"], percent["own"], **between)
            for column in ("own", "swapped"):
                bars = {"yerr": error_bars(percent, column), "markersize": 3, "elinewidth": 0.8}
                axes.errorbar(turns, percent[column], **bars, **_LINES[column])
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
    n, names = len(benchmarks), tables.arrange_rows(data["method"].unique())
    with turn_panels(benchmarks, n, (5 * n, 4.2), "AL(k), %", 5, title_size=12) as (figure, grid):
        for axes, benchmark in zip(grid, benchmarks, strict=True):
            for number, name in enumerate(names):
                part = data[(data["benchmark"] == benchmark) & (data["method"] == name)]
                again, place = divmod(number, len(PALETTE))  # colours begin again, dashed
                line = {"color": PALETTE[place], "linestyle": "--" if again else "-", "linewidth": 1.4}
                line = {"color": "black", "linewidth": 2.5, "zorder": 3} if name == "rlpa" else line
                line |= {"marker": "o", "markersize": 4, "label": tables.name_row(name)}
                draw_band(axes, part, "al", strength=0.12, **line)
    return figure, data


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


def conflict_alignment(data: pd.DataFrame, at: int) -> Drawn:
    """Figure 4a: AL(k) in percent around the change at turn `at`, from `conflict.alignment_curves`."""
    return _draw_rows(data, "al", "users", 3, 2.1, "AL(k), %", at), data


def conflict_profiles(data: pd.DataFrame, at: int) -> Drawn:
    """Share of inferred profiles that hold the old and the new value, from `conflict.profile_curves`."""
    percent = data.assign(**(100 * data[["share", "low", "high"]]))
    return _draw_rows(percent, "share", "value", 3, 2.6, "profiles that hold it, %", at), data


def long_term_progress(data: pd.DataFrame) -> Drawn:
    """Figure 4b: `long_term.progress_table` by turn; a thin line is the AVG of the profile score."""
    return _draw_rows(data, "value", "measure", 2, 3.4, "%"), data


def _draw_rows(
    data: pd.DataFrame, column: str, by: str, columns: int, height: float, label: str, at: int | None = None
) -> Figure:
    """One panel of `height` a row of the evaluation: `column` with its band, a line for each value of `by`,
    and the turn of the change or else the average profile score."""
    names = tables.arrange_rows(data["method"].unique())
    columns = min(columns, len(names))
    size = max(4.2, 2.6 * columns + 0.4), height * -(-len(names) // columns) + 0.7
    with turn_panels(list(map(tables.name_row, names)), columns, size, label) as (figure, grid):
        for axes, name in zip(grid, names, strict=True):
            lines = dict(list(data[data["method"] == name].groupby(by)))
            for key in (key for key in _LINES if key in lines):
                draw_band(axes, lines[key], column, strength=0.18, markersize=3.5, **_LINES[key])
            if at is not None:
                axes.axvline(at - 0.5, color=PALETTE[3], linewidth=1, label="change")
            else:
                thin = {"color": PALETTE[0], "linewidth": 0.8, "linestyle": "-."}
                axes.axhline(lines["profile score"][column].mean(), label="AVG of the profile score", **thin)
    return figure


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
    ours = zip(table["model"], table["method"], strict=True)
    names = [f"{method}\n{model}" for model, method in [*ours, *missing]]
    kinds = (("avg", "AVG, %", PALETTE[0]), ("tokens", "reasoning tokens a turn", PALETTE[1]))
    with panels(2, 2, (8, 0.9 + 0.52 * len(names)), sharey=True) as (figure, grid):
        for axes, (key, label, color) in zip(grid, kinds, strict=True):
            draw_bars(axes, table, key, range(len(table)), {"capsize": 3}, ".1f", 9, color=color)
            for row in range(len(table), len(names)):
                axes.text(0, row, "  not run", va="center", color=GREY, fontsize=9)
            axes.set(xlabel=label, xlim=(0, 1.2 * max(1.0, table[f"{key}_high"].max())))
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
            colors = [GREY if m == "willing" else PALETTE[0] for m in part["manner"]]
            places, caps = list(map(manners.index, part["manner"])), {"capsize": 2, "linewidth": 1}
            draw_bars(axes, part, "avg", places, caps, height=0.65, color=colors)
            axes.set(title=method, xlim=(0, 100))
            axes.set_yticks(range(len(manners)), manners)
        grid[0].invert_yaxis()  # shared by all panels
        figure.supxlabel("AVG from turn 2 on, %", fontsize=10)
    return figure, table
