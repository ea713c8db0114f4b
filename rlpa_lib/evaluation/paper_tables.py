"""The paper's tables, read from a folder of CSVs, and an audit's findings about their cells."""

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from rlpa_lib.settings.config import InputError

PAPER_TABLES = Path(__file__).parent / "paper"
TURNS = tuple(f"k{turn}" for turn in range(1, 11))
SETTINGS = {"table2": "vanilla", "table4": "vanilla", "table5": "extended"}
_SCORES = ("avg", "n_ir", "n_r2")
_SCHEMA = {
    "table1": (("model", "method"), tuple(f"{b}_{s}" for b in ("vanilla", "extended") for s in _SCORES)),
    "turnwise": (("table", "setting", "model", "method"), (*TURNS, *_SCORES)),
    "table6": (("model",), ("coherence", "stability", "proactivity", "persona_fit", "all_avg", "kappa")),
    "table7": (("system_label",), ("total", "same", "different", "uncertain", "accuracy_pct")),
    "table8": (("model",), ("exact_acc", "fuzzy_acc", "mse", "rmse")),
    "table9": (("model_label",), ("human_1", "human_0")),
    "table10": ((), ("accuracy", "precision", "recall", "f1", "specificity", "cohens_kappa")),
}
_VERSION = re.compile(r"-(20\d{6})$")


class MissingRow(LookupError):
    """A row that a check or claim needs is not in the tables."""


@dataclass(frozen=True)
class Finding:
    """A discrepancy: place, printed and recomputed value, whether a claim changes, what may explain it."""

    table: str
    row: str
    column: str
    kind: str
    printed: float | str | None
    recomputed: float | str | None = None
    changes_claim: bool = False
    note: str = ""


@dataclass(frozen=True)
class Tables:
    """The seven CSVs by name, as floats (blanks NaN) and as printed; 2, 4 and 5 are parts of turnwise."""

    numbers: dict[str, pd.DataFrame]
    text: dict[str, pd.DataFrame]

    def rows(self, table: str) -> pd.DataFrame:
        """Numeric rows of one printed table; an empty frame when the folder has none of it."""
        rows = self.numbers["turnwise" if table in SETTINGS else table]
        return rows[rows["table"] == table] if table in SETTINGS else rows

    def row(self, table: str, model: str, method: str = "") -> pd.Series:
        """The first row with this model (release date ignored) and method; MissingRow if there is none."""
        rows = self.rows(table)
        rows = rows[rows["model"].map(strip_date) == model]
        rows = rows[rows["method"] == method] if method else rows
        if rows.empty:
            raise MissingRow(f"{table} has no row {model} {method}".strip())
        return rows.iloc[0]

    def decimals(self, source: str, index: int, column: str, at_least: int) -> int:
        """Printed decimals of a cell, but `at_least` this many: the CSVs drop trailing zeros."""
        return max(at_least, len(self.text[source].at[index, column].partition(".")[2]))


def curve(row: pd.Series) -> np.ndarray:
    """The ten AL(k) of a turnwise row, in percent, shape (K,)."""
    return row.loc[TURNS[0] : TURNS[-1]].to_numpy(dtype=float)


def strip_date(model: str) -> str:
    """A model name without the release date at its end."""
    return _VERSION.sub("", model)


def version(model: str) -> str:
    """The release date at the end of a model name, or an empty string."""
    return next(iter(_VERSION.findall(model)), "")


def label(row: pd.Series) -> str:
    """How findings name a row: its model and method, or whichever label it has."""
    names = ("model", "method", "system_label", "model_label")
    return " | ".join(str(row[name]) for name in names if name in row.index) or "only row"


def load(folder: str | Path) -> Tables:
    """Read a folder's seven CSVs. InputError names file, row and column of what is wrong."""
    text, numbers = {name: _read(Path(folder) / f"{name}.csv", name) for name in _SCHEMA}, {}
    for name, table in text.items():
        columns = {
            column: [_to_number(cell, name, row, column) for row, cell in enumerate(table[column], start=1)]
            for column in _SCHEMA[name][1]
        }
        numbers[name] = table.assign(**columns)
    return Tables(numbers, text)


def read_printed_row(table: str, model: str, method: str) -> dict[str, str]:
    """Column -> text of one row of the paper as printed; empty when the paper has no such row."""
    tables = load(PAPER_TABLES)
    try:
        index = tables.row(table, model, method).name
    except MissingRow:
        return {}
    return tables.text["turnwise" if table in SETTINGS else table].loc[index].to_dict()


def _read(path: Path, name: str) -> pd.DataFrame:
    labels, values = _SCHEMA[name]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a CSV table ({error})") from error
    if len(lines) < 2:
        raise InputError(f"{path}: needs a header and at least one row")
    header = [cell.strip() for cell in lines[0]]
    for column in (*labels, *values):
        if (count := header.count(column)) != 1:
            raise InputError(f"{path}: column {column} must be there once, found {count} times")
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise InputError(f"{path}: row {number} has {len(line)} cells, the header has {len(header)}")
    frame = pd.DataFrame(lines[1:], columns=header, dtype=str)
    return frame[[*labels, *values]].apply(lambda column: column.str.strip())


def _to_number(cell: str, name: str, row: int, column: str) -> float:
    # Only table 7 prints dashes: its overall row has no counts.
    if cell == "" and name == "table7":
        return math.nan
    where = f"{name}.csv, row {row}, column {column}"
    try:
        value = float(cell)
    except ValueError as error:
        raise InputError(f"{where}: {cell!r} is not a number") from error
    if not math.isfinite(value):
        raise InputError(f"{where}: {cell!r} is not a finite number")
    return value
