"""Several runs beside each other: the credit schemes in training and with held-out users."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rlpa_lib.evaluation import tables
from rlpa_lib.figures.frame import PALETTE, Drawn, draw_band, panels, use_whole_numbers
from rlpa_lib.figures.training import average_seeds, read_samples
from rlpa_lib.runs import record, storage

# settings of PPO that runs have in common if they are compared as credit schemes
_COMMON_PPO = ("iterations", "reward_parts", "history_profiles", "kl_coef", "epochs")


def comparable_runs(run_dir: Path, name: str = "ppo") -> list[Path]:
    """This run and those beside it with the same users, model, judge, rollouts and amount of training."""
    folders = sorted(file.parents[1] for file in run_dir.parent.glob(f"*/metrics/{name}.jsonl"))
    wanted = _hash_common_settings(run_dir)
    return [f for f in folders if (f / "record.json").exists() and _hash_common_settings(f) == wanted]


def _hash_common_settings(folder: Path) -> str:
    params = record.read(folder)["params"]
    rollout = {key: value for key, value in params["rollout"].items() if key != "continuation"}
    ppo = {key: params["ppo"][key] for key in _COMMON_PPO}
    return storage.hash_json([*(params[s] for s in ("personas", "policy", "user", "judge")), rollout, ppo])


def name_scheme(params: dict) -> str:
    """The credit scheme of a run's settings in words."""
    discount, continuation = params["ppo"]["turn_discount"], params["rollout"]["continuation"]
    if discount > 0:
        return f"MDP, discount {discount:g}, {continuation}"
    late = ", updated once a cohort" if params["ppo"]["update_every"] == "dialogue" else ""
    return f"bandit, {continuation}{late}"


def training_by_turn(folders: Sequence[Path], name: str = "ppo") -> pd.DataFrame:
    """Mean reward of each cohort's turns by scheme, seed and run: reward, chosen_reward, format_rate.

    `reward` is over all samples of a turn, `chosen_reward` over those with which the dialogues went on.
    """
    means = []
    for folder in folders:
        made_by = record.read(folder)
        run = {"scheme": name_scheme(made_by["params"]), "seed": made_by["seed"], "run": folder.name}
        for update, samples in read_samples(folder, name):
            rows = [(s["turn"], s["reward"]["total"], s["chosen"], s["reward"]["format_ok"]) for s in samples]
            frame = pd.DataFrame(rows, columns=["turn", "reward", "chosen", "format_rate"])
            frame["chosen_reward"] = frame["reward"].where(frame.pop("chosen"))
            by_turn = frame.groupby("turn", as_index=False).mean()
            means.append(by_turn.assign(**run, cohort=update["iteration"]))
    columns = ["scheme", "seed", "run", "cohort", "turn", "reward", "chosen_reward", "format_rate"]
    return pd.concat(means, ignore_index=True)[columns]


def credit_curves(by_turn: pd.DataFrame) -> Drawn:
    """Credit schemes in training: reward by cohort, and by turn over the last third of the cohorts.

    Thin lines are seeds, thick ones their mean, bands 95 % t intervals over seeds (none for a single one).
    """
    late = by_turn[by_turn["cohort"] > by_turn["cohort"].max() * 2 / 3]
    parts = [("cohort", by_turn, "cohort of new users"), ("turn", late, "turn, last third of the cohorts")]
    drawn, highest = [], 0.0
    with panels(2, 2, (11, 4), sharey=True) as (figure, grid):
        for axes, (x, part, label) in zip(grid, parts, strict=True):
            for color, (name, rows) in zip(PALETTE, part.groupby("scheme"), strict=False):
                seeds = rows.groupby([x, "seed"])["reward"].mean().unstack("seed")
                axes.plot(seeds.index, seeds, color=color, linewidth=0.7, alpha=0.6)
                highest = max(highest, seeds.max(axis=None))
                points = average_seeds(rows, x, "reward").rename_axis("x").reset_index()
                label_ = f"{name} ({seeds.shape[1]} seeds)"
                draw_band(axes, points, "mean", x="x", color=color, linewidth=2.5, marker="o", label=label_)
                drawn.append(pd.DataFrame({"panel": x, "scheme": name, **points}))
            axes.set_xlabel(label)
            use_whole_numbers(axes)
        grid[0].set_ylim(0, 1.1 * highest)  # one scale for both panels
        grid[0].set_ylabel("reward of a turn, mean over samples")
        grid[0].legend(frameon=False, loc="lower right")
    return figure, pd.concat(drawn, ignore_index=True)


def held_out(folders: Sequence[Path]) -> pd.DataFrame:
    """Alignment of the trained policy with held-out users by scheme and benchmark, in percent.

    With 95 % intervals over seeds and users, and the first scheme's minus it, over the seeds that both have.
    Runs without that row are left out; three seeds at least.
    """
    scores: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for folder in folders:
        made_by = record.read(folder)
        for benchmark in made_by["params"]["evaluation"]["benchmarks"]:
            if (file := folder / "judgements" / f"rlpa-{benchmark}.jsonl").is_file():
                found = tables.score_table(storage.read_jsonl(file, appended=True))
                scores.setdefault((benchmark, name_scheme(made_by["params"])), {})[made_by["seed"]] = found
    lines = []
    for (benchmark, name), own in scores.items():
        first = scores[next(key for key in scores if key[0] == benchmark)]
        both = sorted(own.keys() & first.keys())
        if len(both) < 3:
            continue
        own_SEK, first_SEK = (np.stack([some[seed] for seed in both]) for some in (own, first))
        line = {"benchmark": benchmark, "scheme": name, "seeds": len(both)}
        line |= tables.average_over_seeds("avg", own_SEK)
        line |= {f"al{k + 1}": 100 * float(own_SEK[:, :, k].mean()) for k in range(own_SEK.shape[2])}
        if own is not first:
            line |= tables.average_over_seeds("first_minus", first_SEK - own_SEK)
        lines.append(line)
    return pd.DataFrame(lines)
