"""One page that tells a whole run: report.html, made from the run directory alone and readable without a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from rlpa_lib.report import claims, parts, replication
from rlpa_lib.report.claims import VERDICTS, read_table
from rlpa_lib.report.parts import Grid, build_grid, build_score_grid
from rlpa_lib.runs import record as records
from rlpa_lib.runs import storage
from rlpa_lib.runs.run import Run

_PAPER_POLICY = "Qwen/Qwen2.5-3B-Instruct"
_TABLE_1 = {
    f"{benchmark}_{column}": (f"{benchmark} {head}", decimals)
    for benchmark in ("vanilla", "extended")
    for column, head, decimals in (("avg", "AVG, %", 1), ("n_ir", "N-IR", 3), ("n_r2", "N-R²", 3))
}
_TURNS = {**{f"k{k}": (f"k={k}", 1) for k in range(1, 71)}, "avg": ("AVG, %", 1), "n_ir": ("N-IR", 3), "n_r2": ("N-R²", 3),
          "n_ir_running": ("N-IR, as printed in eq. 8", 3), "n_r2_running": ("N-R², as printed in eq. 8", 3)}  # fmt: skip
_SHOWN = ("table1", "table4", "table5", "paired", "paired_without_k1", "diagnostics", "swap", "training", "replication_map")


def build_report(run: Run) -> Path:
    """Write report.html into the run directory and return its path; parts that were not run are shown as such."""
    html = _template().render(**gather_context(run))
    return storage.write_bytes(run.path("report.html"), html.encode())


def tabulate_claims(run: Run) -> pd.DataFrame:
    """The page's first table: the paper's claims with this run's verdicts and evidence."""
    return claims.to_frame(claims.check_claims(run.dir))


def gather_context(run: Run) -> dict[str, Any]:
    """Everything that the template shows."""
    facts = records.read(run.dir)
    found = claims.check_claims(run.dir)
    counts = Counter(claim.verdict for claim in found if not claim.where.startswith(claims.OURS))
    make, command = parts.build_commands(facts, run.dir)
    return {
        "scale": _scale(facts),
        "run_name": run.dir.name,
        "record": facts,
        "notice": _notice(facts),
        "code_changed": any(session["code"]["library_sha256"] != facts["code"]["library_sha256"] for session in facts["resumed"]),
        "claims": found,
        "rule": claims.RULE,
        "counts": [(verdict, counts[verdict]) for verdict in VERDICTS],
        "times": parts.read_times(run.dir),
        "settings": parts.list_settings(facts["params"]),
        "notes": _notes(facts),
        "grids": _grids(run.dir),
        "others": parts.load_other_tables(run.dir, _SHOWN),
        "pictures": parts.load_pictures(run.dir),
        "dialogues": parts.load_dialogues(run.dir),
        "make": make,
        "command": command,
        **_paper_items(run),
    }


def _template():
    source = (resources.files("rlpa_lib.report") / "report.html.j2").read_text(encoding="utf-8")
    # Everything is escaped: model output, params and file names are texts that somebody else wrote.
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(source)


def _scale(facts: Mapping[str, Any]) -> str:
    return Path(facts["params_name"]).stem


def _notice(facts: Mapping[str, Any]) -> str:
    """What this run's numbers cannot be read as; empty for the paper's own model with language models as users and judges."""
    params, scale = facts["params"], _scale(facts)
    rules = [role for role in ("user", "judge", "evaluator") if params[role]["kind"] != "llm"]
    if scale == "smoke":
        return "This is a smoke run. It tests that everything works; its numbers mean nothing, and nothing about Qwen2.5-3B."
    if params["policy"]["model"] == "tiny":
        return "This is a miniature: a tiny model, users and judges made of rules. A miniature's result says nothing about Qwen2.5-3B."
    if params["policy"]["model"] != _PAPER_POLICY:
        return f"The policy is {params['policy']['model']}. The result says nothing about Qwen2.5-3B."
    return f"Made of rules here, not language models: {', '.join(rules)}. Scores cannot be compared with the paper's." if rules else ""


def _notes(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts that notebooks added to the record, such as hashes of splits."""
    own = {"params_name", "params", "params_sha256", "seed", "code", "hardware", "packages", "start", "end", "status", "resumed"}
    return [(key.replace("_", " "), str(value)) for key, value in facts.items() if key not in own]


def _grids(run_dir: Path) -> dict[str, Grid | None]:
    grids: dict[str, Grid | None] = {"table1": build_score_grid(run_dir, "table1", _TABLE_1)}
    grids |= {name: build_score_grid(run_dir, name, _TURNS) for name in ("table4", "table5")}
    grids |= {name: parts.build_paired_grid(run_dir, name) for name in ("paired", "paired_without_k1")}
    for name in ("diagnostics", "swap", "training"):
        table = read_table(run_dir, name)
        grids[name] = None if table is None else build_grid(table, name)
    return grids


def _paper_items(run: Run) -> dict[str, Any]:
    """Deviations from the paper by kind, and the paper's tables and figures of which this run holds nothing."""
    rows = replication.load_map()
    table = replication.build_table({"this run's": run.cfg}, rows)
    deviations = {kind: table[(table["kind"] == kind) & (table["why"] != "")].to_dict("records") for kind in replication.KINDS.values()}
    drawn = {file.stem for folder in ("tables", "figures") for file in (run.dir / folder).glob("*.*")}
    absent = [
        (row["item"], row["title"], row["planned"] if row["status"] == "not yet" else "")
        for row in rows
        if row["kind"] in ("table", "figure")
        and row["item"].replace("figure ", "fig").replace("table ", "table") not in drawn
        and row["item"] not in ("figure 1", "figure 2")
    ]
    not_yet = [(row["kind"], row["item"], row["here"]) for row in rows if row["status"] == "not yet" and row["kind"] not in ("table", "figure")]
    return {"deviations": deviations, "absent": absent, "not_yet": not_yet}
