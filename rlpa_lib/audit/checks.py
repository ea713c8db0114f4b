"""Turn-wise arithmetic of tables 1, 2, 4 and 5: averages, eq. 8 under both readings, numbers of users, copies between tables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from rlpa_lib.evaluation.metrics import normalized_improvement
from rlpa_lib.evaluation.paper_tables import SETTINGS, TURNS, Finding, Tables, curve, label, strip_date, version

STATED_USERS = 74  # appendix C.2, both settings
STATED_VERSIONS = {"GPT-4o": "20241120", "Claude-3.5-Sonnet": "20241022", "Claude-3.5-Haiku": "20241022"}  # table 3
READINGS = ("global", "running")
_SCORES = ("avg", "n_ir", "n_r2")
_CANDIDATE_USERS = range(5, 151)
_OFF_FOR_ROW = 3  # as many cells off the table's grid are a matter of the row, fewer are slips of single cells
_TIE = 1e-9


def on_grid(percent: np.ndarray, users: int, decimals: int = 2) -> np.ndarray:
    """GRIM test: which percentages, rounded to `decimals`, are a whole number of `users`; booleans of the input's shape."""
    exact = 100 * np.round(np.asarray(percent) * users / 100) / users
    return np.abs(percent - exact) <= 0.5 * 10.0**-decimals + _TIE


def find_users(percent: np.ndarray, candidates: range = _CANDIDATE_USERS) -> list[int]:
    """All numbers of users for which every percentage of a row passes the GRIM test."""
    return [users for users in candidates if on_grid(percent, users).all()]


def infer_users(rows: pd.DataFrame) -> int:
    """The number of users that fits most cells of a table; the stated 74 wins ties, then the smallest."""
    values = rows[list(TURNS)].to_numpy(dtype=float)
    fits = {users: int(on_grid(values, users).sum()) for users in _CANDIDATE_USERS}
    best = max(fits.values())
    return STATED_USERS if fits[STATED_USERS] == best else min(users for users, n in fits.items() if n == best)


def infer_row_users(percent: np.ndarray, users: int) -> int:
    """The table's number of users, or the smallest multiple of it (to 10) that fits a row which does not fit `users`."""
    if (~on_grid(percent, users)).sum() < _OFF_FOR_ROW:
        return users
    multiples = [users * m for m in range(2, 11)]
    fits = [on_grid(percent, multiple).mean() for multiple in multiples]
    return multiples[int(np.argmax(fits))] if max(fits) >= 0.8 else users


def recover_curve(percent: np.ndarray, users: int) -> tuple[np.ndarray, bool]:
    """The row in unrounded percent when every cell is a whole number of users, and whether it is; else the row as printed."""
    grid = infer_row_users(percent, users)
    if on_grid(percent, grid).all():
        return 100 * np.round(percent * grid / 100) / grid, True
    return percent, False


def infer_reading(rows: pd.DataFrame) -> str:
    """Which reading of eq. 8 reproduces more of a table's printed N-IR and N-R² cells."""
    users = infer_users(rows)
    return max(READINGS, key=lambda norm: sum(len(_matches(row, users, norm)) for _, row in rows.iterrows()))


def check_turnwise(tables: Tables) -> Iterator[Finding]:
    """Findings inside tables 2, 4 and 5: settings, duplicates, versions, users, averages, N-IR and N-R²."""
    main = infer_reading(tables.rows("table4")) if len(tables.rows("table4")) else "global"
    for table in SETTINGS:
        rows = tables.rows(table)
        if rows.empty:
            yield Finding(table, "all rows", "table", "missing_row", None, None, False, "turnwise.csv holds no row of this table")
            continue
        users, norm = infer_users(rows), infer_reading(rows)
        if norm != main:
            yield _reading_finding(table, norm, main)
        yield from _labels(table, rows)
        yield from _granularity(table, rows, users)
        for index, row in rows.iterrows():
            yield from _scores(tables, table, index, row, users, norm)


def check_copies(tables: Tables) -> Iterator[Finding]:
    """Table 1 against tables 4 and 5 cell by cell, and the RLPA row of table 2 against table 4."""
    one = tables.rows("table1")
    seen: set[tuple[str, str]] = set()
    for _, row in one.iterrows():
        key = (strip_date(row["model"]), row["method"])
        if key in seen:
            yield Finding("table1", label(row), "model", "duplicate_row", label(row), None, False, "two rows have this label")
        seen.add(key)
        for table, setting in (("table4", "vanilla"), ("table5", "extended")):
            yield from _copy(row, f"{setting}_", _find(tables.rows(table), key), "table1", table)
    for table in ("table4", "table5"):
        for _, row in tables.rows(table).iterrows():
            if (strip_date(row["model"]), row["method"]) not in seen:
                yield Finding(table, label(row), "model", "missing_row", label(row), None, False, "table 1 has no such row")
    for _, row in tables.rows("table2").iterrows():
        if row["method"] == "RLPA":
            yield from _copy(row, "", _find(tables.rows("table4"), (row["model"], "RLPA")), "table2", "table4")


def _find(rows: pd.DataFrame, key: tuple[str, str]) -> pd.Series | None:
    return next((row for _, row in rows.iterrows() if (strip_date(row["model"]), row["method"]) == key), None)


def _copy(row: pd.Series, prefix: str, other: pd.Series | None, here: str, there: str) -> Iterator[Finding]:
    if other is None:
        yield Finding(here, label(row), f"{prefix}avg", "missing_row", label(row), None, False, f"{there} has no such row")
        return
    for column in _SCORES if prefix else (*TURNS, *_SCORES):
        printed, source = float(row[prefix + column]), float(other[column])
        if abs(printed - source) > _TIE:
            note = f"{there} prints {source:g}; perhaps a value was copied from a neighbouring row"
            yield Finding(here, label(row), prefix + column, "cross_table", printed, source, False, note)


def _labels(table: str, rows: pd.DataFrame) -> Iterator[Finding]:
    seen: set[tuple[str, str]] = set()
    for _, row in rows.iterrows():
        if row["setting"] != SETTINGS[table]:
            yield Finding(table, label(row), "setting", "label", row["setting"], SETTINGS[table], False, "the table's caption names this setting")
        key, stated = (strip_date(row["model"]), row["method"]), STATED_VERSIONS.get(strip_date(row["model"]))
        if key in seen:
            yield Finding(table, label(row), "model", "duplicate_row", label(row), None, False, "two rows have this label")
        seen.add(key)
        if version(row["model"]) and version(row["model"]) != stated:
            note = "table 3 names another release; perhaps a slip in one of the two labels, or a second model was meant"
            yield Finding(table, label(row), "model", "version", version(row["model"]), stated, False, note)


def _granularity(table: str, rows: pd.DataFrame, users: int) -> Iterator[Finding]:
    if users != STATED_USERS:
        note = f"every row fits {users} users; perhaps one of the {STATED_USERS} sampled personas was dropped"
        yield Finding(table, "all rows", "k1..k10", "granularity", STATED_USERS, users, False, note)
    for _, row in rows.iterrows():
        values = curve(row)
        grid = infer_row_users(values, users)
        off = ~on_grid(values, users)
        if off.sum() >= _OFF_FOR_ROW:
            note = f"{off.sum()} of 10 values are no whole number of {users} users"
            if grid != users:
                note += f"; they fit tenths of a user ({grid} marks): perhaps repeated runs or graded scores were averaged in this row only"
            yield Finding(table, label(row), "k1..k10", "granularity", users, grid if grid != users else None, False, note)
            off = ~on_grid(values, grid) if grid != users else np.zeros_like(off)
        for column, value in zip(np.array(TURNS)[off], values[off], strict=True):
            nearest = round(100 * round(value * grid / 100) / grid, 2)
            note = f"no whole number of {grid} marks gives this percentage"
            yield Finding(table, label(row), str(column), "granularity", float(value), nearest, False, note)


def _scores(tables: Tables, table: str, index: int, row: pd.Series, users: int, norm: str) -> Iterator[Finding]:
    levels, exact = recover_curve(curve(row), users)
    digits = tables.decimals("turnwise", index, "avg", 2)
    slack = _TIE if exact else 0.5 * 10.0**-2
    if abs(row["avg"] - levels.mean()) > 0.5 * 10.0**-digits + slack:
        note = "mean of the ten printed turns; perhaps a digit slip, or an average kept from another run"
        yield Finding(table, label(row), "avg", "average", row["avg"], round(float(levels.mean()), 2), True, note)
    wrong = set(_SCORES[1:]) - set(_matches(row, users, norm))
    values = dict(zip(_SCORES[1:], normalized_improvement(curve(row), norm), strict=True))
    for column in sorted(wrong):
        note = f"eq. 8 with the {norm} reading, which reproduces the other rows of this table"
        yield Finding(table, label(row), column, "improvement", row[column], round(values[column], 3), True, note)


def _matches(row: pd.Series, users: int, norm: str) -> list[str]:
    # Both the rounded turns (from which the paper's cells follow to the digit) and the users behind them count as a source.
    sources = [normalized_improvement(levels, norm) for levels in (curve(row), recover_curve(curve(row), users)[0])]
    return [name for i, name in enumerate(_SCORES[1:]) if any(abs(row[name] - pair[i]) <= 0.0005 + _TIE for pair in sources)]


def _reading_finding(table: str, norm: str, main: str) -> Finding:
    note = (
        f"N-IR and N-R² of this table follow the {norm} reading of eq. 8, those of table 4 the {main} one; perhaps two versions of one script. "
        "Eq. 8 as printed is the running reading. The two settings of table 1 are not comparable, and rankings change under one reading"
    )
    return Finding(table, "all rows", "n_ir, n_r2", "reading", norm, main, True, note)
