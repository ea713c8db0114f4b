"""What is committed under figures/: results of several seeds together, from their run directories alone."""

import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
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
    prefix, evaluated = f"{out}/{Path(first['params_name']).stem}_", params["evaluation"]
    source = _describe_runs(done) | {"params_sha256": first["params_sha256"]}
    names = evaluated["methods"], evaluated["benchmarks"]
    by_seed = [training.read_scores(folder, *names) for folder, _ in done]
    rewards = {f"seed {f['seed']}": figures.cohort_rewards(folder) for folder, f in done}
    table = tables.seeds_table(by_seed, params["policy"]["model"])
    written = _save(prefix, "seeds", source, None, table)
    written += _save(prefix, "alignment", source, *figures.alignment_over_seeds(by_seed))
    curve = figures.training_curve(rewards, params["rollout"]["turns"])
    written += _save(prefix, "reward", source, *curve)
    last = max(done, key=lambda pair: pair[1]["end"] or "")[0]
    together = training.comparable_runs(last)
    by_turn = training.training_by_turn(together)
    if by_turn["scheme"].nunique() > 1:
        source = _describe_runs([(folder, records.read(folder)) for folder in together])
        written += _save(prefix, "credit_schemes", source, *training.credit_curves(by_turn))
        written += _save(prefix, "credit_held_out", source, None, training.held_out(together))
    stems = [last / name for name in POOLED_BY_NOTEBOOKS]
    stems += [done[0][0] / "figures" / name for name in SHOWN_OF_ONE_RUN]
    for file in (stem.with_suffix(ending) for stem in stems for ending in (".csv", ".json", ".png")):
        if file.is_file():
            written.append(storage.write_bytes(Path(f"{prefix}{file.name}"), file.read_bytes()))
    return [*written, out / RUNS]


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


def _save(
    prefix: str, name: str, source: dict[str, Any], figure: Figure | None, data: pd.DataFrame
) -> list[Path]:
    """A table, or a figure with the data that it draws, and where they come from."""
    captions = (resources.files("rlpa_lib.report") / "captions.yaml").read_text(encoding="utf-8")
    csv, stem = data.to_csv(index=False).encode(), f"{prefix}{name}"
    facts = {"name": Path(stem).name, "data_sha256": storage.sha256(csv), **source}
    facts |= yaml.safe_load(captions)[name]
    written = [storage.write_bytes(Path(f"{stem}.csv"), csv), storage.write_json(Path(f"{stem}.json"), facts)]
    if figure is not None:
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
        written.append(storage.write_bytes(Path(f"{stem}.png"), picture.getvalue()))
    return written
