"""Pieces of the report page, read from a run directory: tables with intervals, figures, dialogues, times, the command to repeat."""

from __future__ import annotations

import base64
import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rlpa_lib.evaluation.presentation import estimate_columns
from rlpa_lib.evaluation.tables import LABELS
from rlpa_lib.report.claims import read_number, read_table
from rlpa_lib.runs import storage
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

CLOSED_MODELS = ("GPT-4o-mini", "GPT-4o", "Claude-3.5-Sonnet", "Claude-3.5-Haiku", "DeepSeek-V3")
SAMPLED = ("rlpa", "rlpa_prompting", "base")
SAMPLED_USERS = 2
MOST_ROWS = 40


@dataclass(frozen=True)
class Cell:
    """A table cell: text, an interval below it, and for a percentage the places (low, mid, high) of its bar."""

    text: str
    interval: str = ""
    bar: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Grid:
    """A table: heads of its columns, and rows of a head and cells; a row without cells was not run. `head` is over the row heads."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""
    head: str = "method"


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI, with caption, alt text, pixel size (0 = unknown), the data that it draws and where it comes from."""

    name: str
    caption: str
    alt: str
    src: str
    width: int
    height: int
    data: Grid | None
    source: str


def build_score_grid(run_dir: Path, name: str, columns: Mapping[str, tuple[str, int]]) -> Grid:
    """A table of the paper: every method and closed model has a row, in a fixed order; what the CSV does not hold was not run.

    `columns` maps a CSV column to (head, decimals); columns that are missing from the CSV are left out.
    """
    table = read_table(run_dir, name)
    if table is None or "method" not in table:
        table = pd.DataFrame({"method": []})
    shown = {column: head for column, head in columns.items() if column in table}
    rows: list[tuple[str, tuple[Cell, ...]]] = []
    for method, label in LABELS.items():
        found = table[table["method"].isin((label, method))]
        cells = tuple(_score(found.iloc[0], column, columns[column][1]) for column in shown) if len(found) else ()
        rows.append((label, cells))
    rows += [(f"{model}, Self-Critic", ()) for model in CLOSED_MODELS]
    return Grid(name, tuple(head for head, _ in shown.values()) or ("result",), tuple(rows))


def _score(row: pd.Series, column: str, decimals: int) -> Cell:
    value, low, high = (read_number(row, f"{column}{part}") for part in ("", "_low", "_high"))
    if math.isnan(value):
        return Cell("–")
    interval = "" if math.isnan(low) else f"{low:.{decimals}f} to {high:.{decimals}f}"
    bar = tuple(min(100.0, max(0.0, x)) for x in (low, value, high)) if interval and column.endswith("avg") else None
    return Cell(f"{value:.{decimals}f}", interval, bar)


def build_paired_grid(run_dir: Path, name: str) -> Grid | None:
    """RLPA minus each other row: difference with its interval, p and Holm-corrected p; None when it was not run."""
    table = read_table(run_dir, name)
    if table is None or not {"benchmark", "method", "difference"} <= set(table):
        return None
    rows = []
    for _, row in table.iterrows():
        low, high, p, p_holm = (read_number(row, column) for column in ("low", "high", "p", "p_holm"))
        difference = Cell(f"{row['difference']:+.1f}", "" if math.isnan(low) else f"{low:+.1f} to {high:+.1f}")
        rows.append((str(row["method"]), (Cell(str(row["benchmark"])), difference, Cell(_p(p)), Cell(_p(p_holm)))))
    return Grid(name, ("benchmark", "difference, points", "p", "p, Holm"), tuple(rows), head="RLPA minus")


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def build_grid(table: pd.DataFrame, name: str, rows: int = MOST_ROWS) -> Grid:
    """Any table with its own column names, at most `rows` of it; the first column heads the rows, x_low and x_high go below x."""
    columns = estimate_columns(table)
    heads = [str(column).replace("_", " ") for column in columns]
    lines = tuple((_text(row[columns[0]]), tuple(_plain(row, column) for column in columns[1:])) for row in table.head(rows).to_dict("records"))
    note = f"The first {rows} of {len(table)} rows; all of them are in the run directory." if len(table) > rows else ""
    return Grid(name, tuple(heads[1:]), lines, note, heads[0])


def _plain(row: Mapping[str, Any], column: str) -> Cell:
    ends = [row.get(f"{column}_{end}", math.nan) for end in ("low", "high")]
    whole = all(isinstance(x, float) and not math.isnan(x) for x in ends)
    return Cell(_text(row[column]), " to ".join(map(_text, ends)) if whole else "")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.3g}"
    return LABELS.get(value, value) if isinstance(value, str) else str(value)


def load_pictures(run_dir: Path) -> list[Picture]:
    """Every figures/*.png of the run, the paper's first and by number; caption and alt text from the JSON beside it."""
    files = sorted((run_dir / "figures").glob("*.png"), key=lambda file: _order(file.stem))
    return [_picture(file) for file in files]


def _order(name: str) -> tuple[int, int, str]:
    match = re.fullmatch(r"fig(\d+)(.*)", name)
    return (0, int(match[1]), match[2]) if match else (1, 0, name)


def _picture(file: Path) -> Picture:
    beside, table = file.with_suffix(".json"), file.with_suffix(".csv")
    facts = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    png = file.read_bytes()
    width, height = (int.from_bytes(png[start : start + 4]) for start in (16, 20)) if png[:4] == b"\x89PNG" else (0, 0)
    data = build_grid(pd.read_csv(table), file.stem) if table.is_file() and table.stat().st_size > 1 else None
    made_by = ("run", "seed", "params", "commit", "data_sha256")
    source = ", ".join(f"{key.replace('_', ' ')} {str(facts[key])[:40]}" for key in made_by if facts.get(key) is not None)
    src = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    alt = facts.get("alt") or f"Figure {file.stem}; no description was recorded"
    return Picture(file.stem, facts.get("caption") or file.stem, alt, src, width, height, data, source)


def load_dialogues(run_dir: Path) -> list[dict[str, Any]]:
    """The first users of a benchmark (unselected), each as RLPA and the untrained methods met them, with marks where judged."""
    for benchmark in ("vanilla", "extended"):
        files = {m: run_dir / "dialogues" / f"{m}-{benchmark}.jsonl" for m in SAMPLED}
        found = {m: storage.read_jsonl(file)[:SAMPLED_USERS] for m, file in files.items() if file.is_file()}
        if found:
            marks = {m: _marks(run_dir, f"{m}-{benchmark}") for m in found}
            return [_dialogue(found[m][i], m, benchmark, marks[m]) for i in range(SAMPLED_USERS) for m in found if i < len(found[m])]
    return []


def _marks(run_dir: Path, name: str) -> dict[tuple[str, int], str]:
    """(user, turn) -> "1" or "0 (R, F failed)" from judgements/<name>.jsonl."""
    file = run_dir / "judgements" / f"{name}.jsonl"
    marks = {}
    for row in storage.read_jsonl(file) if file.is_file() else ():
        failed = ", ".join(criterion for criterion, passed in (row["marks"] or {}).items() if not passed)
        marks[row["user"], row["turn"]] = "not judged" if row["score"] is None else f"{row['score']}" + (f" ({failed} failed)" if failed else "")
    return marks


def _dialogue(row: Mapping[str, Any], method: str, benchmark: str, marks: Mapping[tuple[str, int], str]) -> dict[str, Any]:
    turns = [
        {
            "user": turn["user"]["text"],
            "profile": turn["reply"]["profile"]["items"],
            "response": turn["reply"]["response"],
            "broken": None if turn["reply"]["format_ok"] else turn["completion"],
            "mark": marks.get((row["persona_id"], place), ""),
        }
        for place, turn in enumerate(row["turns"], start=1)
    ]
    return {"method": LABELS[method], "benchmark": benchmark, "user": row["persona_id"], "turns": turns}


def read_times(run_dir: Path) -> list[tuple[str, str, str]]:
    """(notebook, time, how it ended) of the executed copies, in order; copies that are being written are left out."""
    times = []
    for file in sorted((run_dir / "notebooks").glob("*.ipynb")):
        name, _, state = file.name.removesuffix(".ipynb").partition(".")
        if state == "running":
            continue
        facts = json.loads(file.read_text(encoding="utf-8")).get("metadata", {}).get("papermill", {})
        seconds = facts.get("duration")
        times.append((name, "–" if seconds is None else format_seconds(seconds), "failed" if state == "failed" or facts.get("exception") else "done"))
    return times


def format_seconds(seconds: float) -> str:
    """12 s, or 3 min 05 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def build_commands(record: Mapping[str, Any], run_dir: Path) -> tuple[str, str]:
    """The exact commands that repeat the run: the make target, and the same without make."""
    scale, folder = _scale(record["params_name"]), f"runs/{run_dir.name}"
    changes = list(_changes(record))
    make = ["make", "reproduce", f"SCALE={scale}", f"SEED={record['seed']}", f"RUN_DIR={folder}", *([f"SET={' '.join(changes)}"] if changes else [])]
    direct = ["python", "-m", "rlpa_lib", "reproduce", "--scale", scale, "--seed", str(record["seed"]), "--run-dir", folder]
    return shlex.join(make), shlex.join([*direct, *(word for change in changes for word in ("--set", change))])


def _scale(params_name: str) -> str:
    """What --scale takes: the bare name of a scale that ships, else the path of the params file."""
    return params_name.removeprefix("params/").removesuffix(".yaml") if params_name.startswith("params/") else params_name


def _changes(record: Mapping[str, Any]) -> Iterator[str]:
    """`section.key=value` of every setting in which the run differs from the params file that it names."""
    try:
        cfg = config.load_config(_scale(record["params_name"]))
    except InputError:  # a params file of the user's own that has moved: the record still lists every setting
        return
    usual = config.dump_config(cfg)
    for section, values in record["params"].items():
        for key, value in values.items():
            if usual.get(section, {}).get(key) != value:
                yield f"{section}.{key}={_yaml(value)}"


def _yaml(value: Any) -> str:
    """A value as --set reads it; YAML takes 1e-05 for text, so a mantissa gets its point."""
    if isinstance(value, list):
        return f"[{','.join(map(_yaml, value))}]"
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"^(-?\d+)e", r"\1.0e", text) if isinstance(value, float) else text


def list_settings(params: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(section.key, value) of every setting."""
    return [(f"{section}.{key}", str(_yaml(value))) for section, values in params.items() for key, value in values.items()]


def load_other_tables(run_dir: Path, shown: Sequence[str]) -> list[Grid]:
    """Every table of the run that has no place of its own on the page."""
    names = sorted(file.stem for file in (run_dir / "tables").glob("*.csv") if file.stem not in shown)
    return [build_grid(table, name) for name in names if (table := read_table(run_dir, name)) is not None]
