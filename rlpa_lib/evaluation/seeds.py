"""Runs that differ in nothing but the seed: trained rows are compared over training seeds."""

from __future__ import annotations

from pathlib import Path

from rlpa_lib.evaluation import rows, scoring
from rlpa_lib.evaluation.tables import Scores
from rlpa_lib.runs import record
from rlpa_lib.runs.run import Run
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError


def find_siblings(run: Run) -> list[Run]:
    """The run and, only to read from, those beside it with the same settings and another seed, by seed."""
    found = {run.seed: run}
    for file in sorted(run.dir.parent.glob("*/record.json")):
        try:
            facts = record.read(file.parent)
        except InputError:  # somebody else's file beside our runs
            continue
        seed = facts.get("seed")
        if isinstance(seed, int) and facts.get("params") == config.dump_config(run.cfg):
            found.setdefault(seed, Run(run.cfg, seed, Path(file.parent)))
    return [found[seed] for seed in sorted(found)]


def load_seed_scores(run: Run) -> Scores:
    """Scores (E, K) of every row that this run has finished with the code and weights that are there now."""
    scores = {}
    for row in rows.list_rows(run.cfg):
        if row.adapter and not (run.dir / "adapters" / row.adapter / "adapter_model.safetensors").is_file():
            continue
        for benchmark in run.cfg.evaluation.benchmarks:
            judged = scoring.read_finished(run, row.name, benchmark, rows.version(run, row))
            if judged is not None:
                scores[row.name, benchmark] = scoring.score_table(judged)
    return scores
