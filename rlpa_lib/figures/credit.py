"""Figures of training that need several runs: the two credit schemes side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from rlpa_lib.evaluation import scoring, tables
from rlpa_lib.figures.frame import PALETTE, panels, whole
from rlpa_lib.runs import record, storage

# what may differ between two runs that are compared as credit schemes
_OWN_PPO = ("iterations", "reward_parts", "history_profiles", "kl_coef", "epochs")


def comparable_runs(run_dir: Path, name: str = "ppo") -> list[Path]:
    """This run and those beside it with the same users, model, judge, rollouts and amount of training, whatever their credit scheme and seed."""
    folders = sorted(file.parents[1] for file in run_dir.parent.glob(f"*/metrics/{name}.jsonl"))
    wanted = _common(run_dir)
    return [folder for folder in folders if (folder / "record.json").exists() and _common(folder) == wanted]


def _common(folder: Path) -> str:
    params = record.read(folder)["params"]
    rollout = {key: value for key, value in params["rollout"].items() if key != "continuation"}
    ppo = {key: params["ppo"][key] for key in _OWN_PPO}
    return storage.hash_json([params["personas"], params["policy"], params["user"], params["judge"], rollout, ppo])


def scheme(params: dict) -> str:
    """The credit scheme of a run's settings in words."""
    discount, continuation = params["ppo"]["turn_discount"], params["rollout"]["continuation"]
    if discount > 0:
        return f"MDP, discount {discount:g}, {continuation}"
    return f"bandit, {continuation}" + (", updated once a cohort" if params["ppo"]["update_every"] == "dialogue" else "")


def training_by_turn(folders: Sequence[Path], name: str = "ppo") -> pd.DataFrame:
    """Mean reward of each cohort's turns from dialogues/: columns scheme, seed, run, cohort, turn, reward, chosen_reward, format_rate.

    `reward` is over all samples of a turn, `chosen_reward` over those with which the dialogues went on.
    """
    tables = []
    for folder in folders:
        made_by = record.read(folder)
        for update in storage.read_jsonl(folder / "metrics" / f"{name}.jsonl", appended=True):
            file = folder / "dialogues" / name / f"update-{update['update']:04d}.jsonl"
            rows = [
                {"turn": row["turn"], "reward": row["reward"]["total"], "format_rate": float(row["reward"]["format_ok"]),
                 "chosen_reward": row["reward"]["total"] if row["chosen"] else float("nan")}
                for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()) if row["reward"]
            ]  # fmt: skip
            means = pd.DataFrame(rows).groupby("turn", as_index=False).mean()
            own = {"scheme": scheme(made_by["params"]), "seed": made_by["seed"], "run": folder.name, "cohort": update["iteration"]}
            tables.append(means.assign(**own))
    columns = ["scheme", "seed", "run", "cohort", "turn", "reward", "chosen_reward", "format_rate"]
    return pd.concat(tables, ignore_index=True)[columns]


def credit_curves(by_turn: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Learning curves of the credit schemes: reward by cohort, and reward by turn over the last third of the cohorts.

    Thin lines are seeds, the thick line their mean, the band its 95 % t interval over seeds (none for a single seed).
    """
    late = by_turn[by_turn["cohort"] > by_turn["cohort"].max() * 2 / 3]
    parts = [("cohort", by_turn, "cohort of new users"), ("turn", late, "turn, last third of the cohorts")]
    drawn, highest = [], 0.0
    with panels(2, 2, (11, 4), sharey=True) as (figure, axes):
        for axis, (x, part, label) in zip(axes, parts, strict=True):
            for color, (name, rows) in zip(PALETTE, part.groupby("scheme"), strict=False):
                seeds = rows.groupby(["seed", x])["reward"].mean().unstack("seed")
                mean, half, highest = seeds.mean(axis=1), reach(seeds), max(highest, seeds.max(axis=None))
                axis.plot(seeds.index, seeds, color=color, linewidth=0.7, alpha=0.6)
                axis.plot(mean.index, mean, color=color, linewidth=2.5, marker="o", label=f"{name} ({seeds.shape[1]} seeds)")
                axis.fill_between(mean.index, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
                drawn.append(pd.DataFrame({"panel": x, "scheme": name, "x": mean.index, "mean": mean, "low": mean - half, "high": mean + half,
                                           "seeds": seeds.shape[1]}))  # fmt: skip
            axis.set_xlabel(label)
            whole(axis)
        axes[0].set_ylim(0, 1.1 * highest)  # one scale for both panels
        axes[0].set_ylabel("reward of a turn, mean over samples")
        axes[0].legend(frameon=False, loc="lower right")
    return figure, pd.concat(drawn, ignore_index=True)


def held_out(folders: Sequence[Path]) -> pd.DataFrame:
    """Alignment of the trained policy with held-out users by scheme and benchmark, in percent, with 95 % intervals over seeds and users; the
    first scheme's minus it over the seeds that both have. Runs without that row are left out; three seeds at least.
    """
    scores: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for folder in folders:
        made_by = record.read(folder)
        for benchmark in made_by["params"]["evaluation"]["benchmarks"]:
            if (file := folder / "judgements" / f"rlpa-{benchmark}.jsonl").is_file():
                found = scoring.score_table(storage.read_jsonl(file, appended=True))
                scores.setdefault((benchmark, scheme(made_by["params"])), {})[made_by["seed"]] = found
    lines = []
    for (benchmark, name), own in scores.items():
        first = scores[next(key for key in scores if key[0] == benchmark)]
        both = sorted(own.keys() & first.keys())
        if len(both) < 3:
            continue
        mean = np.stack([own[seed] for seed in both])
        line = {"benchmark": benchmark, "scheme": name, "seeds": len(both), **tables.percent("avg", mean)}
        line |= {f"al{k + 1}": 100 * float(mean[:, :, k].mean()) for k in range(mean.shape[2])}
        if own is not first:
            line |= tables.percent("first_minus", np.stack([first[seed] - own[seed] for seed in both]))
        lines.append(line)
    return pd.DataFrame(lines)


def reach(seeds: pd.DataFrame) -> pd.Series:
    """Half width of the 95 % t interval of the mean over the columns; NaN with a single one."""
    n = seeds.shape[1]
    return seeds.std(axis=1, ddof=1) / n**0.5 * (stats.t.ppf(0.975, n - 1) if n > 1 else float("nan"))
