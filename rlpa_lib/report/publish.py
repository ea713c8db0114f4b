"""What is committed under figures/: the results of several seeds together, made from their run directories alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from rlpa_lib import figures
from rlpa_lib.evaluation import scoring, tables
from rlpa_lib.evaluation.tables import Scores
from rlpa_lib.figures import credit
from rlpa_lib.runs import record as records
from rlpa_lib.runs import storage
from rlpa_lib.settings.config import InputError

RUNS = "runs.jsonl"
REMEMBERED = ("params_name", "params_sha256", "seed", "status", "start", "end", "resumed", "code", "hardware")


# Of the run that was finished last, whose notebooks pool the seeds beside it, and of one run (the analyses, which say so): copied as drawn there.
POOLED_BY_NOTEBOOKS = ("fig18",)
SHOWN_OF_ONE_RUN = ("fig4a", "conflict_profiles", "fig4b", "fig5", "difficult", "grpo", "prompting_cost")


def publish(run_dirs: Sequence[Path], out: Path) -> list[Path]:
    """Write <scale>_seeds (table), <scale>_alignment and <scale>_reward (figures), compare the credit schemes if runs under another one lie
    beside these, copy the figures of single notebooks (as <scale>_<name>) and the table of the ablations, and add one line a run to
    runs.jsonl, unfinished runs included.

    Only finished runs are pooled. InputError: among those, settings differ or a seed comes twice, or there are fewer than three.
    """
    read = [(folder, records.read(folder)) for folder in run_dirs]
    done = sorted(((d, f) for d, f in read if f["status"] == "done"), key=lambda pair: pair[1]["seed"])
    _check(done)
    _remember(read, out / RUNS)
    if len(done) < 3:
        raise InputError(f"{out}: {len(done)} finished runs, at least three seeds are needed")
    facts = [f for _, f in done]
    by_seed = [read_scores(folder, f["params"]["evaluation"]) for folder, f in done]
    scale, model = Path(facts[0]["params_name"]).stem, facts[0]["params"]["policy"]["model"]
    source = {"runs": [folder.name for folder, _ in done], "seeds": [f["seed"] for f in facts], "params_sha256": facts[0]["params_sha256"],
              "library_sha256": sorted({f["code"]["library_sha256"] for f in facts}), "commits": sorted({str(f["code"]["commit"]) for f in facts})}
    table = tables.seeds_table(by_seed, model)
    written = [storage.write_bytes(out / f"{scale}_seeds.csv", table.to_csv(index=False).encode())]
    caption = ("AVG, N-IR and N-R² (eq. 8 with all turns; _running: as printed) of each row, and RLPA's AVG minus the row's; "
               "95 % intervals over seeds and users")  # fmt: skip
    written.append(storage.write_json(out / f"{scale}_seeds.json", {**source, "caption": caption}))
    rewards = {f"seed {f['seed']}": figures.cohort_rewards(folder) for folder, f in done}
    drawn = {
        "alignment": (figures.alignment_over_seeds(by_seed), "Turn-wise alignment over all seeds; bands: 95 % over seeds and users",
                      "Share of users with an aligned response at each turn, one line a method, for the two benchmarks"),
        "reward": (figures.training_curve(rewards, facts[0]["params"]["rollout"]["turns"]),
                   "Training reward of each seed, cohort by cohort; bands: 95 % over the cohort's dialogues",
                   "Total, profile and response reward and format rate over the cohorts, one line a seed"),
    }  # fmt: skip
    for name, ((figure, data), caption, alt) in drawn.items():
        written += _save(figure, data, out / f"{scale}_{name}", {**source, "caption": caption, "alt": alt})
    last = max(done, key=lambda pair: pair[1]["end"] or "")[0]
    written += _credit_schemes(last, out, scale)
    written += [file for name in POOLED_BY_NOTEBOOKS for file in _copied(last / "figures", name, out, scale)]
    written += [file for name in SHOWN_OF_ONE_RUN for file in _copied(done[0][0] / "figures", name, out, scale)]
    written += _copied(last / "tables", "table2_seeds", out, scale)
    return [*written, out / RUNS]


def _credit_schemes(run_dir: Path, out: Path, scale: str) -> list[Path]:
    """<scale>_credit_schemes (training) and <scale>_credit_held_out (evaluation), where runs under another credit scheme lie beside this one."""
    together = credit.comparable_runs(run_dir)
    by_turn = credit.training_by_turn(together)
    if by_turn["scheme"].nunique() < 2:
        return []
    facts = [records.read(folder) for folder in together]
    source = {"runs": [folder.name for folder in together], "seeds": [f["seed"] for f in facts],
              "library_sha256": sorted({f["code"]["library_sha256"] for f in facts}), "commits": sorted({str(f["code"]["commit"]) for f in facts})}
    alt = "Mean reward by cohort and by turn, one line a credit scheme; thin lines are seeds"
    caption = "Reward in training under the credit schemes, mean over all samples of a turn; bands: 95 % over seeds"
    figure, data = credit.credit_curves(by_turn)
    held = credit.held_out(together)
    told = {**source, "caption": "Alignment of the trained policy with held-out users by credit scheme, percent; 95 % over seeds and users"}
    return [*_save(figure, data, out / f"{scale}_credit_schemes", {**source, "caption": caption, "alt": alt}),
            storage.write_bytes(out / f"{scale}_credit_held_out.csv", held.to_csv(index=False).encode()),
            storage.write_json(out / f"{scale}_credit_held_out.json", told)]  # fmt: skip


def _copied(folder: Path, name: str, out: Path, scale: str) -> list[Path]:
    """A figure with its data and source, or a table, under the scale's name; nothing where the run did not draw it."""
    found = [file for ending in (".csv", ".json", ".png") if (file := folder / f"{name}{ending}").is_file()]
    return [storage.write_bytes(out / f"{scale}_{file.name}", file.read_bytes()) for file in found]


def read_scores(run_dir: Path, settings: dict[str, Any]) -> Scores:
    """(method, benchmark) -> scores (E, K) of every row that was judged in a run directory."""
    files = {(m, b): run_dir / "judgements" / f"{m}-{b}.jsonl" for m in settings["methods"] for b in settings["benchmarks"]}
    return {key: scoring.score_table(storage.read_jsonl(file, appended=True)) for key, file in files.items() if file.is_file()}


def _check(done: Sequence[tuple[Path, dict]]) -> None:
    seen: dict[int, Path] = {}
    for folder, one in done:
        if one["params_sha256"] != done[0][1]["params_sha256"]:
            raise InputError(f"{folder}: its settings are not those of {done[0][0]}; runs that are pooled differ in the seed alone")
        if one["seed"] in seen:
            raise InputError(f"{folder}: seed {one['seed']} is already that of {seen[one['seed']]}")
        seen[one["seed"]] = folder


def _remember(read: Sequence[tuple[Path, dict]], file: Path) -> None:
    old = storage.read_jsonl(file, appended=True) if file.is_file() else []
    for folder, one in read:
        row = {"run": folder.name, **{key: one[key] for key in REMEMBERED}}
        if row not in old:
            storage.append_jsonl(file, row)


def _save(figure: Figure, data: pd.DataFrame, stem: Path, facts: dict[str, Any]) -> list[Path]:
    picture, csv = io.BytesIO(), data.to_csv(index=False).encode()
    figure.savefig(picture, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
    return [storage.write_bytes(stem.with_suffix(".csv"), csv),
            storage.write_json(stem.with_suffix(".json"), {"name": stem.name, "data_sha256": storage.sha256(csv), **facts}),
            storage.write_bytes(stem.with_suffix(".png"), picture.getvalue())]  # fmt: skip
