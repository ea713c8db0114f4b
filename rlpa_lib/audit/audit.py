"""The paper's printed numbers against each other: every check of a folder of tables, findings as JSON.

Checks of tables 1, 2, 4 and 5 stand here, those of tables 6-10 in `appendix`, of sentences in `claims`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from rlpa_lib.audit import appendix, resolution
from rlpa_lib.audit.claims import check_claims
from rlpa_lib.audit.resolution import QWEN, STATED_USERS, TIE, on_grid
from rlpa_lib.evaluation import paper_tables
from rlpa_lib.evaluation.metrics import normalized_improvement
from rlpa_lib.evaluation.paper_tables import PAPER_TABLES, TURNS, Finding, MissingRow, Tables, curve, label
from rlpa_lib.runs import storage
from rlpa_lib.settings.config import InputError

_RELEASES = {"GPT-4o": "20241120", "Claude-3.5-Sonnet": "20241022", "Claude-3.5-Haiku": "20241022"}  # table 3
_SCORES = ("avg", "n_ir", "n_r2")
_NOTES = {
    "reading": "N-IR and N-R² of this table follow the {norm} reading of eq. 8, those of table 4 the {usual} "
    "one; perhaps two versions of one script. Eq. 8 as printed is the running reading. The two settings of "
    "table 1 are not comparable, and rankings change under one reading",
    "version": "table 3 names another release; perhaps a slip in one of the two labels, "
    "or a second model was meant",
    "tenths": "; they fit tenths of a user ({grid} marks): perhaps repeated runs or graded scores were "
    "averaged in this row only",
    "first turn": "at k = 1 the user has said only 'Hello', so this gap cannot be personalisation "
    "(recomputed: highest AL(1) of any other row); perhaps training taught openings that the judge passes",
    "profile judge": "the reward model named in section 4.1 has the largest error of the models tested as "
    "profile judge (recomputed: smallest MSE); perhaps cost decided, or another model counted overlaps: the "
    "paper does not name the profile judge, the released code uses this one",
}


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
            _write(findings, Path(json_path))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for f in findings:
        numbers = f"printed {f.printed}, recomputed {f.recomputed}"
        print(f"{f.table:8} {f.row} | {f.column} [{f.kind}] {numbers}")
    print(f"{len(findings)} findings, {sum(f.changes_claim for f in findings)} of them change a claim")
    return 0


def _write(findings: list[Finding], path: Path) -> None:
    try:
        storage.write_json(path, findings)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def check_turnwise(tables: Tables) -> Iterator[Finding]:
    """Findings inside tables 2, 4 and 5: settings, duplicates, versions, users, averages, N-IR and N-R²."""
    usual = resolution.infer_reading(tables.rows("table4")) if len(tables.rows("table4")) else "global"
    for table in paper_tables.SETTINGS:
        rows = tables.rows(table)
        if rows.empty:
            note = "turnwise.csv holds no row of this table"
            yield Finding(table, "all rows", "table", "missing_row", printed=None, note=note)
            continue
        users, norm = resolution.infer_users(rows), resolution.infer_reading(rows)
        if norm != usual:
            note = _NOTES["reading"].format(norm=norm, usual=usual)
            yield Finding(
                table, "all rows", "n_ir, n_r2", "reading", printed=norm, recomputed=usual,
                changes_claim=True, note=note,
            )
        yield from _check_labels(table, rows)
        yield from _check_granularity(table, rows, users)
        for _, row in rows.iterrows():
            yield from _check_scores(tables, table, row, users, norm)


def check_copies(tables: Tables) -> Iterator[Finding]:
    """Table 1 against tables 4 and 5 cell by cell, and the RLPA row of table 2 against table 4."""
    sources = (("table4", "vanilla_"), ("table5", "extended_"))
    known = {_key(row) for _, row in tables.rows("table1").iterrows()}
    yield from _find_duplicates("table1", tables.rows("table1"))
    for _, row in tables.rows("table1").iterrows():
        for table, prefix in sources:
            yield from _check_copy(tables, row, "table1", table, prefix)
    for table, _ in sources:
        for _, row in tables.rows(table).iterrows():
            if _key(row) not in known:
                note = "table 1 has no such row"
                yield Finding(table, label(row), "model", "missing_row", printed=label(row), note=note)
    for _, row in tables.rows("table2").query("method == 'RLPA'").iterrows():
        yield from _check_copy(tables, row, "table2", "table4")


def _key(row: pd.Series) -> tuple[str, str]:
    return paper_tables.strip_date(row["model"]), row["method"]


def _find_duplicates(table: str, rows: pd.DataFrame) -> Iterator[Finding]:
    keys = [_key(row) for _, row in rows.iterrows()]
    for i, (_, row) in enumerate(rows.iterrows()):
        if keys[i] in keys[:i]:
            note = "two rows have this label"
            yield Finding(table, label(row), "model", "duplicate_row", printed=label(row), note=note)


def _check_copy(tables: Tables, row: pd.Series, here: str, there: str, prefix: str = "") -> Iterator[Finding]:
    other = next((r for _, r in tables.rows(there).iterrows() if _key(r) == _key(row)), None)
    if other is None:
        note = f"{there} has no such row"
        yield Finding(here, label(row), f"{prefix}avg", "missing_row", printed=label(row), note=note)
        return
    for column in _SCORES if prefix else (*TURNS, *_SCORES):
        printed, source = float(row[prefix + column]), float(other[column])
        if abs(printed - source) > TIE:
            note = f"{there} prints {source:g}; perhaps a value was copied from a neighbouring row"
            yield Finding(
                here, label(row), prefix + column, "cross_table", printed=printed, recomputed=source,
                note=note,
            )


def _check_labels(table: str, rows: pd.DataFrame) -> Iterator[Finding]:
    yield from _find_duplicates(table, rows)
    for _, row in rows.iterrows():
        if row["setting"] != (setting := paper_tables.SETTINGS[table]):
            note = "the table's caption names this setting"
            yield Finding(
                table, label(row), "setting", "label", printed=row["setting"], recomputed=setting, note=note
            )
        stated = _RELEASES.get(paper_tables.strip_date(row["model"]))
        printed = paper_tables.version(row["model"])
        if printed and printed != stated:
            yield Finding(
                table, label(row), "model", "version", printed=printed, recomputed=stated,
                note=_NOTES["version"],
            )


def _check_granularity(table: str, rows: pd.DataFrame, users: int) -> Iterator[Finding]:
    if users != STATED_USERS:
        note = f"every row fits {users} users; perhaps one of the {STATED_USERS} sampled personas was dropped"
        yield Finding(
            table, "all rows", "k1..k10", "granularity", printed=STATED_USERS, recomputed=users, note=note
        )
    for _, row in rows.iterrows():
        values = curve(row)
        grid, off = resolution.infer_row_users(values, users), ~on_grid(values, users)
        if off.sum() >= resolution.OFF_FOR_ROW:
            note, fitting = f"{off.sum()} of 10 values are no whole number of {users} users", None
            off = np.zeros_like(off)
            if grid != users:
                note += _NOTES["tenths"].format(grid=grid)
                fitting, off = grid, ~on_grid(values, grid)
            yield Finding(
                table, label(row), "k1..k10", "granularity", printed=users, recomputed=fitting, note=note
            )
        for column, value in zip(np.array(TURNS)[off], values[off], strict=True):
            nearest = round(100 * round(value * grid / 100) / grid, 2)
            note = f"no whole number of {grid} marks gives this percentage"
            yield Finding(
                table, label(row), str(column), "granularity", printed=float(value), recomputed=nearest,
                note=note,
            )


def _check_scores(tables: Tables, table: str, row: pd.Series, users: int, norm: str) -> Iterator[Finding]:
    levels, exact = resolution.recover_curve(curve(row), users)
    if appendix.differs(tables, "turnwise", row.name, "avg", levels.mean(), TIE if exact else 0.5 * 10.0**-2):
        note = "mean of the ten printed turns; perhaps a digit slip, or an average kept from another run"
        mean = round(float(levels.mean()), 2)
        yield Finding(
            table, label(row), "avg", "average", printed=row["avg"], recomputed=mean, changes_claim=True,
            note=note,
        )
    values = zip(("n_ir", "n_r2"), normalized_improvement(curve(row), norm), strict=True)
    for column, value in values:
        if column not in resolution.match_improvement(row, users, norm):
            note = f"eq. 8 with the {norm} reading, which reproduces the other rows of this table"
            yield Finding(
                table, label(row), column, "improvement", printed=row[column], recomputed=round(value, 3),
                changes_claim=True, note=note,
            )


def _check_meaning(tables: Tables) -> Iterator[Finding]:
    for table in ("table4", "table5"):
        others = float(tables.rows(table).query("method != 'RLPA'")["k1"].max())
        try:
            ours = float(tables.row(table, QWEN, "RLPA")["k1"])
        except MissingRow:
            continue  # a folder without RLPA makes no such comparison
        if ours > others:
            note = _NOTES["first turn"]
            yield Finding(
                table, f"{QWEN} | RLPA", "k1", "construct", printed=ours, recomputed=others,
                changes_claim=True, note=note,
            )
    rows = tables.rows("table8")
    for chosen in rows.query("model == 'GPT-4o-mini'")["mse"][:1]:
        if chosen == rows["mse"].max():
            least, note = float(rows["mse"].min()), _NOTES["profile judge"]
            yield Finding(
                "table8", "GPT-4o-mini", "mse", "construct", printed=float(chosen), recomputed=least,
                note=note,
            )


def _contradict_claims(tables: Tables) -> Iterator[Finding]:
    for claim in check_claims(tables):
        if claim.verdict == "does not hold":
            results = claim.where.startswith(("abstract", "section 4.2", "section 5"))
            note = f"{claim.text}. {claim.charitable}".strip()
            stated, evidence = claim.stated, claim.evidence
            yield Finding(
                "text", claim.key, claim.where, "claim", printed=stated, recomputed=evidence,
                changes_claim=results, note=note,
            )
