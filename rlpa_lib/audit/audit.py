"""The paper's printed numbers against each other: run every check on a folder of tables and write the findings as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import pandas as pd

from rlpa_lib.audit.appendix import check_ranges, check_table6, check_table7, check_table8, check_tables9_10
from rlpa_lib.audit.checks import check_copies, check_turnwise
from rlpa_lib.audit.claims import check_claims
from rlpa_lib.audit.resolution import compare_first_turn
from rlpa_lib.evaluation.paper_tables import PAPER_TABLES, Finding, MissingRow, Tables, load
from rlpa_lib.settings.config import InputError

_CHECKS = (check_ranges, check_copies, check_turnwise, check_table6, check_table7, check_table8, check_tables9_10)


def audit(tables: Tables) -> list[Finding]:
    """All findings: arithmetic first, then construct (what a number can mean), then text claims that the tables contradict."""
    found = chain.from_iterable(check(tables) for check in _CHECKS)
    return [*found, *_construct(tables), *_contradicted(tables)]


def main(tables_dir: str | Path = PAPER_TABLES, json_path: str | Path | None = None) -> int:
    """Audit a folder, write the findings to `json_path` if given, print a summary; 0 when done, 2 on bad input (one line on stderr)."""
    try:
        findings = audit(load(tables_dir))
        if json_path is not None:
            _write(findings, Path(json_path))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for finding in findings:
        print(f"{finding.table:8} {finding.row} | {finding.column} [{finding.kind}] printed {finding.printed}, recomputed {finding.recomputed}")
    print(f"{len(findings)} findings, {sum(f.changes_claim for f in findings)} of them change a claim")
    return 0


def to_frame(findings: list[Finding]) -> pd.DataFrame:
    """Findings as a table, one row each, columns as the JSON's keys."""
    return pd.DataFrame([asdict(finding) for finding in findings], columns=list(Finding.__dataclass_fields__))


def _write(findings: list[Finding], path: Path) -> None:
    rows = [asdict(finding) for finding in findings]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".part")
        draft.write_text(json.dumps(rows, indent=2, ensure_ascii=False, default=float) + "\n", encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error


def _construct(tables: Tables) -> Iterator[Finding]:
    for table in ("table4", "table5"):
        try:
            ours, others = compare_first_turn(tables, table)
        except MissingRow:
            continue  # a folder without RLPA makes no such comparison
        if ours > others:
            note = (
                "at k = 1 the user has said only 'Hello', so this gap cannot be personalisation (recomputed: highest AL(1) of any other row); "
                "perhaps training taught openings that the judge passes"
            )
            yield Finding(table, "Qwen2.5-3B-Instruct | RLPA", "k1", "construct", ours, others, True, note)
    rows = tables.rows("table8")
    chosen = rows[rows["model"] == "GPT-4o-mini"]
    if len(chosen) and (chosen["mse"].iloc[0] == rows["mse"].max()):
        note = (
            "the reward model named in section 4.1 has the largest error of the models tested as profile judge (recomputed: smallest MSE); "
            "perhaps cost decided, or another model counted overlaps: the paper does not name the profile judge, the released code uses this one"
        )
        yield Finding("table8", "GPT-4o-mini", "mse", "construct", float(chosen["mse"].iloc[0]), float(rows["mse"].min()), False, note)


def _contradicted(tables: Tables) -> Iterator[Finding]:
    for claim in check_claims(tables):
        if claim.verdict == "does not hold":
            results = claim.where.startswith(("abstract", "section 4.2", "section 5"))
            note = f"{claim.text}. {claim.charitable}".strip()
            yield Finding("text", claim.key, claim.where, "claim", claim.stated, claim.evidence, results, note)
