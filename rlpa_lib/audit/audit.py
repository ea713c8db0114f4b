"""The paper's printed numbers against each other: every check of a folder of tables, findings as JSON.

Checks of tables 1, 2, 4 and 5 stand here, those of tables 6-10 in `appendix`, of sentences in `claims`.
"""

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from rlpa_lib.audit import appendix, resolution
from rlpa_lib.audit.appendix import report
from rlpa_lib.audit.claims import OURS, check_claims
from rlpa_lib.audit.resolution import QWEN, STATED_USERS, TIE, name_rows, on_grid
from rlpa_lib.evaluation import paper_tables
from rlpa_lib.evaluation.metrics import normalized_improvement
from rlpa_lib.evaluation.paper_tables import PAPER_TABLES, TURNS, Finding, Tables, curve, label
from rlpa_lib.runs import storage
from rlpa_lib.settings.config import InputError

_RELEASES = {"GPT-4o": "20241120", "Claude-3.5-Sonnet": "20241022", "Claude-3.5-Haiku": "20241022"}  # table 3
_SCORES = ("avg", "n_ir", "n_r2")


def audit(tables: Tables) -> list[Finding]:
    """All findings: arithmetic first, then what a number can mean, then claims that the tables contradict."""
    checks = (
        appendix.check_ranges, check_copies, check_turnwise, appendix.check_table6, appendix.check_table7,
        appendix.check_table8, appendix.check_tables9_10, _check_meaning, _contradict_claims,
    )  # fmt: skip
    return [finding for check in checks for finding in check(tables)]


def main(tables_dir: str | Path = PAPER_TABLES, json_path: str | Path | None = None) -> int:
    """Audit a folder, write the findings to `json_path` if given, print them; 0 if done, 2 on bad input."""
    try:
        findings = audit(paper_tables.load(tables_dir))
        if json_path is not None:
            storage.write_json(Path(json_path), findings)
    except (InputError, OSError) as error:
        unwritten = f"{json_path}: cannot be written ({error.strerror})" if isinstance(error, OSError) else ""
        print(f"error: {unwritten or error}", file=sys.stderr)
        return 2
    for f in findings:
        print(f"{f.table:8} {f.row} | {f.column} [{f.kind}] printed {f.printed}, recomputed {f.recomputed}")
    print(f"{len(findings)} findings, {sum(f.changes_claim for f in findings)} of them change a claim")
    return 0


def check_turnwise(tables: Tables) -> Iterator[Finding]:
    """Findings inside tables 2, 4 and 5: settings, duplicates, versions, users, averages, N-IR and N-R²."""
    usual = resolution.infer_reading(tables.rows("table4")) if len(tables.rows("table4")) else "global"
    for table in paper_tables.SETTINGS:
        rows = tables.rows(table)
        if rows.empty:
            yield report("no rows", table, "all rows", "table", None)
            continue
        users, norm = resolution.infer_users(rows), resolution.infer_reading(rows)
        if norm != usual:
            yield report("other reading", table, "all rows", "n_ir, n_r2", norm, usual)
        yield from _check_labels(table, rows)
        yield from _check_granularity(table, rows, users)
        for _, row in rows.iterrows():
            yield from _check_scores(tables, table, row, users, norm)


def check_copies(tables: Tables) -> Iterator[Finding]:
    """Table 1 against tables 4 and 5 cell by cell, and the RLPA row of table 2 against table 4."""
    first, sources = tables.rows("table1"), {"table4": "vanilla_", "table5": "extended_"}
    yield from _find_duplicates("table1", first)
    for _, row in first.iterrows():
        for table, prefix in sources.items():
            yield from _check_copy(tables, row, "table1", table, prefix)
    for table in sources:
        rows = tables.rows(table)
        for _, row in rows[~name_rows(rows).isin(name_rows(first))].iterrows():
            yield report("no such row", table, row, "model", label(row), there="table 1")
    for _, row in tables.rows("table2").query("method == 'RLPA'").iterrows():
        yield from _check_copy(tables, row, "table2", "table4")


def _find_duplicates(table: str, rows: pd.DataFrame) -> Iterator[Finding]:
    for _, row in rows[name_rows(rows).duplicated()].iterrows():
        yield report("row twice", table, row, "model", label(row))


def _check_copy(tables: Tables, row: pd.Series, here: str, there: str, prefix: str = "") -> Iterator[Finding]:
    others = tables.rows(there)
    others = others[name_rows(others) == f"{paper_tables.strip_date(row['model'])} {row['method']}"]
    if others.empty:
        yield report("no such row", here, row, f"{prefix}avg", label(row), there=there)
        return
    for column in _SCORES if prefix else (*TURNS, *_SCORES):
        printed, source = row[prefix + column], others[column].iloc[0]
        if abs(printed - source) > TIE:
            yield report("other copy", here, row, prefix + column, printed, source, there=there)


def _check_labels(table: str, rows: pd.DataFrame) -> Iterator[Finding]:
    yield from _find_duplicates(table, rows)
    for _, row in rows.iterrows():
        if row["setting"] != (setting := paper_tables.SETTINGS[table]):
            yield report("other setting", table, row, "setting", row["setting"], setting)
        stated = _RELEASES.get(paper_tables.strip_date(row["model"]))
        if (printed := paper_tables.version(row["model"])) and printed != stated:
            yield report("other release", table, row, "model", printed, stated)


def _check_granularity(table: str, rows: pd.DataFrame, users: int) -> Iterator[Finding]:
    if users != STATED_USERS:
        yield report("other users", table, "all rows", "k1..k10", STATED_USERS, users)
    for _, row in rows.iterrows():
        values = curve(row)
        grid, off = resolution.infer_row_users(values, users), ~on_grid(values, users)
        if grid != users:
            yield report("row of tenths", table, row, "k1..k10", users, grid, off=off.sum())
            off = ~on_grid(values, grid)
        elif off.sum() >= resolution.OFF_FOR_ROW:
            yield report("row off the grid", table, row, "k1..k10", users, off=off.sum())
            continue
        for column in itertools.compress(TURNS, off):
            nearest = round(100 * round(row[column] * grid / 100) / grid, 2)
            yield report("cell off the grid", table, row, column, row[column], nearest, grid=grid)


def _check_scores(tables: Tables, table: str, row: pd.Series, users: int, norm: str) -> Iterator[Finding]:
    levels, exact = resolution.recover_curve(curve(row), users)
    if appendix.differs(tables, "turnwise", row, "avg", levels.mean(), TIE if exact else 0.5 * 10.0**-2):
        yield report("average of turns", table, row, "avg", row["avg"], round(float(levels.mean()), 2))
    fitting = resolution.match_improvement(row, users, norm)
    for column, value in zip(("n_ir", "n_r2"), normalized_improvement(curve(row), norm), strict=True):
        if column not in fitting:
            yield report("improvement", table, row, column, row[column], round(value, 3), norm=norm)


def _check_meaning(tables: Tables) -> Iterator[Finding]:
    for table in ("table4", "table5"):
        rows = tables.rows(table)
        others = float(rows.query("method != 'RLPA'")["k1"].max())
        for ours in rows[name_rows(rows) == OURS]["k1"][:1]:
            if ours > others:
                yield report("first turn", table, f"{QWEN} | RLPA", "k1", ours, others)
    rows = tables.rows("table8")
    for chosen in rows.query("model == 'GPT-4o-mini'")["mse"][:1]:
        if chosen == rows["mse"].max():
            yield report("profile judge", "table8", "GPT-4o-mini", "mse", chosen, float(rows["mse"].min()))


def _contradict_claims(tables: Tables) -> Iterator[Finding]:
    for claim in check_claims(tables):
        if claim.verdict == "does not hold":
            results = claim.where.startswith(("abstract", "section 4.2", "section 5"))
            told = claim.stated, claim.evidence, results, f"{claim.text}. {claim.charitable}".strip()
            yield Finding("text", claim.key, claim.where, "claim", *told)
