"""One page that tells a whole run: report.html, from the run directory alone, readable without a network."""

from collections import Counter
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from rlpa_lib.report import claims, parts, replication
from rlpa_lib.report.claims import read_table
from rlpa_lib.report.parts import Grid, build_grid, build_score_grid
from rlpa_lib.runs import record as records
from rlpa_lib.runs import storage
from rlpa_lib.runs.run import Run
from rlpa_lib.settings.base import BENCHMARKS
from rlpa_lib.settings.kinds import EVALUATORS, JUDGES, USERS

_PAPER_POLICY = "Qwen/Qwen2.5-3B-Instruct"
# column: its head and decimals
_IMPROVEMENT = {"avg": ("AVG, %", 1), "n_ir": ("N-IR", 3), "n_r2": ("N-R²", 3)}
_TABLE_1 = {f"{benchmark}_{column}": (f"{benchmark} {head}", decimals)
            for benchmark in BENCHMARKS for column, (head, decimals) in _IMPROVEMENT.items()}  # fmt: skip
_TURNS = {
    **{f"k{k}": (f"k={k}", 1) for k in range(1, 71)}, **_IMPROVEMENT,
    "n_ir_running": ("N-IR, as printed in eq. 8", 3), "n_r2_running": ("N-R², as printed in eq. 8", 3),
}  # fmt: skip
_SCORES = {"table1": _TABLE_1, "table4": _TURNS, "table5": _TURNS}
_RECORD = {"params_name", "params", "params_sha256", "seed", "code", "hardware", "packages", "start", "end",
           "status", "resumed"}  # fmt: skip


def build_report(run: Run) -> Path:
    """Write report.html into the run directory and return its path; what was not run is shown as such."""
    source = (resources.files("rlpa_lib.report") / "report.html.j2").read_text(encoding="utf-8")
    # Everything is escaped: model output, params and file names are texts that somebody else wrote.
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = page.from_string(source).render(**_gather_context(run))
    return storage.write_bytes(run.path("report.html"), html.encode())


def tabulate_claims(run: Run) -> pd.DataFrame:
    """The page's first table: the paper's claims with this run's verdicts and evidence."""
    return pd.DataFrame(claims.check_claims(run.dir))


def _gather_context(run: Run) -> dict[str, Any]:
    """Everything that the template shows."""
    facts, found = records.read(run.dir), claims.check_claims(run.dir)
    counts = Counter(claim.verdict for claim in found if not claim.where.startswith(claims.OURS))
    make, command = parts.build_commands(facts, run.dir)
    grids, library = _build_grids(run.dir), facts["code"]["library_sha256"]
    return {
        "scale": Path(facts["params_name"]).stem, "run_name": run.dir.name, "record": facts,
        "notice": _warn(facts),
        "code_changed": any(session["code"]["library_sha256"] != library for session in facts["resumed"]),
        "claims": found, "counts": [(verdict, counts[verdict]) for verdict in claims.VERDICTS],
        "times": parts.read_times(run.dir), "settings": parts.list_settings(facts["params"]),
        # facts that notebooks added to the record, such as hashes of splits
        "notes": [(key.replace("_", " "), str(value)) for key, value in facts.items() if key not in _RECORD],
        "grids": grids, "others": parts.load_other_tables(run.dir, (*grids, "replication_map")),
        "pictures": parts.load_pictures(run.dir), "dialogues": parts.load_dialogues(run.dir),
        "make": make, "command": command, **_list_paper_items(run),
    }  # fmt: skip


def _warn(facts: Mapping[str, Any]) -> str:
    """What this run's numbers cannot be read as; empty for the paper's model among language models."""
    params, model = facts["params"], facts["params"]["policy"]["model"]
    roles = {"user": USERS, "judge": JUDGES, "evaluator": EVALUATORS}
    scripted = [role for role, kinds in roles.items() if kinds[params[role]["kind"]].scripted]
    if Path(facts["params_name"]).stem == "smoke":
        return ("This is a smoke run. It tests that everything works; its numbers mean nothing, "
                "and nothing about Qwen2.5-3B.")  # fmt: skip
    if model == "tiny":
        return ("This is a miniature: a tiny model, users and judges made of rules. "
                "A miniature's result says nothing about Qwen2.5-3B.")  # fmt: skip
    if model != _PAPER_POLICY:
        return f"The policy is {model}. The result says nothing about Qwen2.5-3B."
    rules = f"Made of rules here, not language models: {', '.join(scripted)}."
    return f"{rules} Scores cannot be compared with the paper's." if scripted else ""


def _build_grids(run_dir: Path) -> dict[str, Grid | None]:
    """The tables that have a place of their own on the page; None where one was not run."""
    grids = {name: build_score_grid(run_dir, name, columns) for name, columns in _SCORES.items()}
    paired = {name: parts.build_paired_grid(run_dir, name) for name in ("paired", "paired_without_k1")}
    plain = {name: read_table(run_dir, name) for name in ("diagnostics", "swap", "training")}
    return grids | paired | {n: None if table is None else build_grid(table, n) for n, table in plain.items()}


def _list_paper_items(run: Run) -> dict[str, Any]:
    """Deviations from the paper by kind, and the paper's tables and figures that this run does not hold."""
    rows = replication.load_map()
    table = replication.build_table({"this run's": run.cfg}, rows)
    deviating = table[table["why"] != ""]
    drawn = {file.stem for folder in ("tables", "figures") for file in (run.dir / folder).glob("*.*")}
    absent, not_yet = [], []
    for row in rows:
        missing, item = row["status"] == "not yet", row["item"]
        if row["kind"] not in ("table", "figure"):
            not_yet += [(row["kind"], item, row["here"])] if missing else []
        elif item.replace("figure ", "fig").replace("table ", "table") not in {*drawn, "fig1", "fig2"}:
            absent.append((item, row["title"], row["planned"] if missing else ""))
    kinds = replication.KINDS.values()
    deviations = {kind: deviating[deviating["kind"] == kind].to_dict("records") for kind in kinds}
    return {"deviations": deviations, "absent": absent, "not_yet": not_yet}
