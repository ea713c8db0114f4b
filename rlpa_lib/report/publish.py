"""What is committed under figures/: results of several seeds together, from their run directories alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from rlpa_lib import figures
from rlpa_lib.evaluation import tables
from rlpa_lib.figures import training
from rlpa_lib.runs import record as records
from rlpa_lib.runs import storage
from rlpa_lib.settings.config import InputError

RUNS = "runs.jsonl"
REMEMBERED = ("params_name", "params_sha256", "seed", "status", "start", "end", "resumed", "code", "hardware")
# Copied from the run that ended last, whose notebooks pool the seeds beside it.
POOLED_BY_NOTEBOOKS = ("figures/fig18", "tables/table2_seeds")
# Copied from the first seed: analyses of one run, which say so.
SHOWN_OF_ONE_RUN = ("fig4a", "conflict_profiles", "fig4b", "fig5", "difficult", "grpo", "prompting_cost")


def publish(run_dirs: Sequence[Path], out: Path) -> list[Path]:
    """Pool finished runs that differ in the seed alone, and note each run, finished or not, in runs.jsonl.

    Writes <scale>_seeds (table), _alignment and _reward (figures), a comparison of the credit schemes if runs
    under another lie beside these, and copies of what single notebooks drew. InputError: settings differ, a
    seed comes twice, or fewer than three runs are finished.
    """
    read = [(folder, records.read(folder)) for folder in run_dirs]
    done = sorted(((d, f) for d, f in read if f["status"] == "done"), key=lambda pair: pair[1]["seed"])
    _check(done)
    _remember(read, out / RUNS)
    if len(done) < 3:
        raise InputError(f"{out}: {len(done)} finished runs, at least three seeds are needed")
    first, params = done[0][1], done[0][1]["params"]
    prefix = f"{out}/{Path(first['params_name']).stem}_"
    source = _describe_runs(done) | {"params_sha256": first["params_sha256"]}
    rows = (params["evaluation"]["methods"], params["evaluation"]["benchmarks"])
    by_seed = [training.read_scores(folder, *rows) for folder, _ in done]
    table = tables.seeds_table(by_seed, params["policy"]["model"])
    caption = ("AVG, N-IR and N-R² (eq. 8 with all turns; _running: as printed) of each row, and RLPA's AVG "
               "minus the row's; 95 % intervals over seeds and users")  # fmt: skip
    written = _save(f"{prefix}seeds", table, {**source, "caption": caption})
    figure, data = figures.alignment_over_seeds(by_seed)
    caption = "Turn-wise alignment over all seeds; bands: 95 % over seeds and users"
    alt = "Share of users with an aligned response at each turn, one line a method, for the two benchmarks"
    written += _save(f"{prefix}alignment", data, {**source, "caption": caption, "alt": alt}, figure)
    rewards = {f"seed {f['seed']}": figures.cohort_rewards(folder) for folder, f in done}
    figure, data = figures.training_curve(rewards, params["rollout"]["turns"])
    caption = "Training reward of each seed, cohort by cohort; bands: 95 % over the cohort's dialogues"
    alt = "Total, profile and response reward and format rate over the cohorts, one line a seed"
    written += _save(f"{prefix}reward", data, {**source, "caption": caption, "alt": alt}, figure)
    last = max(done, key=lambda pair: pair[1]["end"] or "")[0]
    written += _compare_credit_schemes(last, prefix)
    stems = [last / name for name in POOLED_BY_NOTEBOOKS]
    stems += [done[0][0] / "figures" / name for name in SHOWN_OF_ONE_RUN]
    for file in (stem.with_suffix(ending) for stem in stems for ending in (".csv", ".json", ".png")):
        if file.is_file():
            written.append(storage.write_bytes(Path(f"{prefix}{file.name}"), file.read_bytes()))
    return [*written, out / RUNS]


def _compare_credit_schemes(run_dir: Path, prefix: str) -> list[Path]:
    """<scale>_credit_schemes and _credit_held_out, if runs under another scheme lie beside this one."""
    together = training.comparable_runs(run_dir)
    by_turn = training.training_by_turn(together)
    if by_turn["scheme"].nunique() < 2:
        return []
    source = _describe_runs([(folder, records.read(folder)) for folder in together])
    figure, data = training.credit_curves(by_turn)
    caption = "Reward in training under the credit schemes, mean over all samples of a turn"
    caption += "; bands: 95 % over seeds"
    alt = "Mean reward by cohort and by turn, one line a credit scheme; thin lines are seeds"
    written = _save(f"{prefix}credit_schemes", data, {**source, "caption": caption, "alt": alt}, figure)
    caption = "Alignment of the trained policy with held-out users by credit scheme, percent"
    caption += "; 95 % over seeds and users"
    held_out = training.held_out(together)
    return written + _save(f"{prefix}credit_held_out", held_out, {**source, "caption": caption})


def _describe_runs(runs: Sequence[tuple[Path, dict]]) -> dict[str, Any]:
    codes = [facts["code"] for _, facts in runs]
    return {
        "runs": [folder.name for folder, _ in runs],
        "seeds": [facts["seed"] for _, facts in runs],
        "library_sha256": sorted({code["library_sha256"] for code in codes}),
        "commits": sorted({str(code["commit"]) for code in codes}),
    }


def _check(done: Sequence[tuple[Path, dict]]) -> None:
    seen: dict[int, Path] = {}
    for folder, one in done:
        if one["params_sha256"] != done[0][1]["params_sha256"]:
            same = "runs that are pooled differ in the seed alone"
            raise InputError(f"{folder}: its settings are not those of {done[0][0]}; {same}")
        if one["seed"] in seen:
            raise InputError(f"{folder}: seed {one['seed']} is already that of {seen[one['seed']]}")
        seen[one["seed"]] = folder


def _remember(read: Sequence[tuple[Path, dict]], file: Path) -> None:
    old = storage.read_jsonl(file, appended=True) if file.is_file() else []
    for folder, one in read:
        row = {"run": folder.name, **{key: one[key] for key in REMEMBERED}}
        if row not in old:
            storage.append_jsonl(file, row)


def _save(stem: str, data: pd.DataFrame, facts: dict[str, Any], figure: Figure | None = None) -> list[Path]:
    """A table, or a figure with the data that it draws, and where they come from."""
    csv = data.to_csv(index=False).encode()
    facts = {"name": Path(stem).name, "data_sha256": storage.sha256(csv), **facts}
    written = [storage.write_bytes(Path(f"{stem}.csv"), csv), storage.write_json(Path(f"{stem}.json"), facts)]
    if figure is not None:
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
        written.append(storage.write_bytes(Path(f"{stem}.png"), picture.getvalue()))
    return written
