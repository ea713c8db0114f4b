"""Pieces of the report page, read from a run directory: tables, figures, dialogues, times, commands."""

import base64
import itertools
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd

from rlpa_lib.evaluation.tables import CLOSED, estimate_columns
from rlpa_lib.report.claims import LABELS, read_interval, read_number, read_table
from rlpa_lib.runs import record as records
from rlpa_lib.runs import storage
from rlpa_lib.settings import config
from rlpa_lib.settings.base import BENCHMARKS
from rlpa_lib.settings.config import InputError

SAMPLED = ("rlpa", "rlpa_prompting", "base")
SAMPLED_USERS = 2
MOST_ROWS = 40
SOURCE_KEYS = ("run", "seed", "params", "commit", "data_sha256")


@dataclass(frozen=True)
class Cell:
    """A table cell: text, an interval below it, and for a percentage the low, mid and high of its bar."""

    text: str
    interval: str = ""
    bar: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Grid:
    """A table: heads of columns, rows of a head and cells (none: not run), and the head of row heads."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""
    head: str = "method"


def build_score_grid(run_dir: Path, name: str, columns: Mapping[str, tuple[str, int]]) -> Grid:
    """A table of the paper: a row for every method and closed model, and for any other model that was run.

    `columns` maps a CSV column to (head, decimals); columns that are missing from the CSV are left out.
    """
    table = read_table(run_dir, name)
    if table is None or "method" not in table:
        table = pd.DataFrame({"method": []})
    own = records.read(run_dir)["params"]["policy"]["model"].rstrip("/").rpartition("/")[2]
    found = {}
    for _, row in table.iterrows():
        model = row.get("model", own)
        label = row["method"] if model == own else f"{model}, {row['method']}"
        cells = (_score(row, c, f".{decimals}f") for c, (_, decimals) in columns.items() if c in table)
        found[label] = tuple(cells)
    heads = tuple(head for column, (head, _) in columns.items() if column in table) or ("result",)
    expected = [*LABELS.values(), *(f"{model}, {method}" for model, method in CLOSED)]
    rows = tuple((label, found.get(label, ())) for label in dict.fromkeys([*expected, *found]))
    return Grid(name, heads, rows)


def _score(row: pd.Series, column: str, style: str) -> Cell:
    value, low, high = read_interval(row, column)
    interval = "" if math.isnan(low) else f"{low:{style}} to {high:{style}}"
    has_bar = interval and column.endswith("avg")
    bar = tuple(min(100.0, max(0.0, x)) for x in (low, value, high)) if has_bar else None
    return Cell("–") if math.isnan(value) else Cell(f"{value:{style}}", interval, bar)


def build_paired_grid(run_dir: Path, name: str) -> Grid | None:
    """RLPA minus each other row: difference with its interval, p and Holm's p; None when it was not run."""
    table = read_table(run_dir, name)
    if table is None or not {"benchmark", "method", "difference"} <= set(table):
        return None
    table, rows = table.rename(columns={"low": "difference_low", "high": "difference_high"}), []
    for _, row in table.iterrows():
        chances = [Cell(_p(read_number(row, column))) for column in ("p", "p_holm")]
        cells = Cell(str(row["benchmark"])), _score(row, "difference", "+.1f"), *chances
        rows.append((str(row["method"]), cells))
    return Grid(name, ("benchmark", "difference, points", "p", "p, Holm"), tuple(rows), head="RLPA minus")


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def build_grid(table: pd.DataFrame, name: str) -> Grid:
    """The first rows of any table; its first column heads the rows, x_low and x_high go below x."""
    columns = estimate_columns(table)
    head, *heads = (str(column).replace("_", " ") for column in columns)
    shown = table.head(MOST_ROWS).to_dict("records")
    rows = tuple((_text(row[columns[0]]), tuple(_plain(row, c) for c in columns[1:])) for row in shown)
    note = f"The first {MOST_ROWS} of {len(table)} rows; all of them are in the run directory."
    return Grid(name, tuple(heads), rows, note if len(table) > MOST_ROWS else "", head)


def _plain(row: Mapping[str, Any], column: str) -> Cell:
    ends = [row.get(f"{column}_{end}") for end in ("low", "high")]
    known = all(isinstance(x, float) and not math.isnan(x) for x in ends)
    return Cell(_text(row[column]), " to ".join(map(_text, ends)) if known else "")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.3g}"
    return LABELS.get(value, value) if isinstance(value, str) else str(value)


def load_other_tables(run_dir: Path, shown: Sequence[str]) -> list[Grid]:
    """Every table of the run that has no place of its own on the page."""
    names = sorted(file.stem for file in (run_dir / "tables").glob("*.csv") if file.stem not in shown)
    return [build_grid(table, name) for name in names if (table := read_table(run_dir, name)) is not None]


def load_pictures(run_dir: Path) -> list[dict[str, Any]]:
    """Every figures/*.png of the run as a data URI with its facts, the paper's first, by number."""

    def place(file: Path) -> tuple[int, int, str]:
        match = re.fullmatch(r"fig(\d+)(.*)", file.stem)
        return (0, int(match[1]), match[2]) if match else (1, 0, file.stem)

    return [_load_picture(file) for file in sorted((run_dir / "figures").glob("*.png"), key=place)]


def _load_picture(file: Path) -> dict[str, Any]:
    beside, table, png = file.with_suffix(".json"), file.with_suffix(".csv"), file.read_bytes()
    facts = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    drawn = table.is_file() and table.stat().st_size > 1
    sizes = [int.from_bytes(png[start : start + 4]) if png[:4] == b"\x89PNG" else 0 for start in (16, 20)]
    made_by = [key for key in SOURCE_KEYS if facts.get(key) is not None]
    return {
        "name": file.stem,
        "caption": facts.get("caption") or file.stem,
        "alt": facts.get("alt") or f"Figure {file.stem}; no description was recorded",
        "src": f"data:image/png;base64,{base64.b64encode(png).decode()}",
        **dict(zip(("width", "height"), sizes, strict=True)),  # in pixels, 0 if unknown
        "data": build_grid(pd.read_csv(table), file.stem) if drawn else None,
        "source": ", ".join(f"{key.replace('_', ' ')} {str(facts[key])[:40]}" for key in made_by),
    }


def load_dialogues(run_dir: Path) -> list[dict[str, Any]]:
    """The first users of a benchmark (unselected) as RLPA and the untrained methods met them, with marks."""
    found = []
    for benchmark, method in itertools.product(BENCHMARKS, SAMPLED):
        file = run_dir / "dialogues" / f"{method}-{benchmark}.jsonl"
        if file.is_file() and (not found or found[0]["benchmark"] == benchmark):
            marks = _load_marks(run_dir / "judgements" / file.name)
            facts = {"method": LABELS[method], "benchmark": benchmark, "marks": marks}
            talks = enumerate(storage.read_jsonl(file)[:SAMPLED_USERS])
            found += [{**talk, **facts, "place": place} for place, talk in talks]
    return sorted(found, key=itemgetter("place"))


def _load_marks(file: Path) -> dict[tuple[str, int], str]:
    """(user, turn) -> "1" or "0 (R, F failed)" from a file of judgements."""
    marks = {}
    for row in storage.read_jsonl(file) if file.is_file() else ():
        failed = ", ".join(criterion for criterion, passed in (row["marks"] or {}).items() if not passed)
        mark = f"{row['score']}" + (f" ({failed} failed)" if failed else "")
        marks[row["user"], row["turn"]] = "not judged" if row["score"] is None else mark
    return marks


def read_times(run_dir: Path) -> list[tuple[str, str, str]]:
    """(notebook, time, how it ended) of the executed copies, in order, without those that still run."""
    times = []
    for file in sorted((run_dir / "notebooks").glob("*.ipynb")):
        name, _, state = file.name.removesuffix(".ipynb").partition(".")
        if state != "running":
            facts = json.loads(file.read_text(encoding="utf-8")).get("metadata", {}).get("papermill", {})
            minutes, rest = divmod(round(facts.get("duration") or 0), 60)
            time = f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
            end = "failed" if state == "failed" or facts.get("exception") else "done"
            times.append((name, "–" if facts.get("duration") is None else time, end))
    return times


def build_commands(record: Mapping[str, Any], run_dir: Path) -> tuple[str, str]:
    """The exact commands that repeat the run: the make target, and the same without make."""
    scale, seed, folder = _scale(record["params_name"]), str(record["seed"]), f"runs/{run_dir.name}"
    changes = _list_changes(record)
    make = ["make", "reproduce", f"SCALE={scale}", f"SEED={seed}", f"RUN_DIR={folder}"]
    make += [f"SET={' '.join(changes)}"] if changes else []
    direct = ["python", "-m", "rlpa_lib", "reproduce", "--scale", scale, "--seed", seed, "--run-dir", folder]
    direct += [word for change in changes for word in ("--set", change)]
    return shlex.join(make), shlex.join(direct)


def _scale(params_name: str) -> str:
    """What --scale takes: the bare name of a scale that ships, else the path of the params file."""
    return re.sub(r"^params/(.*?)(\.yaml)?$", r"\1", params_name)


def _list_changes(record: Mapping[str, Any]) -> list[str]:
    """`section.key=value` of every setting in which the run differs from the params file that it names."""
    try:
        usual = config.dump_config(config.load_config(_scale(record["params_name"])))
    except InputError:  # a params file of the user's own that has moved: the record still lists every setting
        return []
    known = dict(list_settings(usual))
    return [f"{key}={value}" for key, value in list_settings(record["params"]) if known.get(key) != value]


def format_value(value: Any) -> str:
    """A value as --set reads it; YAML takes 1e-05 for text, so a mantissa gets its point."""
    if isinstance(value, list):
        return f"[{','.join(map(format_value, value))}]"
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"^(-?\d+)e", r"\1.0e", text) if isinstance(value, float) else text


def list_settings(params: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(section.key, value) of every setting."""
    sections = params.items()
    return [(f"{s}.{key}", format_value(value)) for s, values in sections for key, value in values.items()]
