"""Learning curves: PPO's and its ablations' (figure 18), SFT's and DPO's, GRPO beside PPO, and the credit
schemes of several runs beside each other, in training and with held-out users."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from rlpa_lib.evaluation import tables
from rlpa_lib.evaluation.intervals import ratio_interval
from rlpa_lib.figures.frame import PALETTE, Drawn, draw_band, panels, use_whole_numbers
from rlpa_lib.runs import record, storage

# column -> (field of a sample's reward, label)
PARTS = {"reward_total": ("total", "total reward (0 to 2)"),
         "reward_profile": ("profile", "profile reward, F1"),
         "reward_response": ("response", "response reward"),
         "format_rate": ("format_ok", "format rate")}  # fmt: skip
# Figure 18's own: panel -> (column of the metrics, label)
PANELS = {"reward": ("reward_total", "what each is rewarded for"),
          "profile": ("reward_profile", "profile reward"),
          "response": ("reward_response", "response reward"),
          "format_rate": ("format_rate", "format rate")}  # fmt: skip
# settings of PPO that runs have in common if they are compared as credit schemes
_COMMON_PPO = ("iterations", "reward_parts", "history_profiles", "kl_coef", "epochs")


def learning_curves(histories: Mapping[str, Sequence[dict]], columns: Mapping[str, str]) -> Drawn:
    """One panel a column of the metrics (name -> label of its axis), one line a training, over optimiser
    steps.

    This is a log of the very batches that were trained on; nothing is estimated, so there is no interval.
    """
    data = pd.concat([pd.DataFrame(h)[["step", *columns]].assign(row=name) for name, h in histories.items()])
    return _draw_trainings(data, "row", "step", "optimiser step", columns, 3.5 * len(columns)), data


def training_curve(by_run: Mapping[str, pd.DataFrame], turns: int) -> Drawn:
    """Figure 18: `cohort_rewards` of each run (its name first), one panel for each part."""
    data = pd.concat([frame.assign(run=name) for name, frame in by_run.items()], ignore_index=True)
    labels = {part: label for part, (_, label) in PARTS.items()}
    figure = _draw_trainings(data, "run", "cohort", f"cohort (of {turns} turns each)", labels, 13)
    for axes, part in zip(figure.axes, PARTS, strict=True):
        axes.set_ylim(0, max(1.0, 1.05 * np.nanmax(data[[part, f"{part}_high"]].to_numpy())))
    return figure, data


def _draw_trainings(
    data: pd.DataFrame, by: str, x: str, xlabel: str, columns: Mapping[str, str], width: float
) -> Figure:
    """One panel a column (name -> label), one line a value of `by`, with a band where there are intervals."""
    with panels(len(columns), len(columns), (width, 3.2), sharex=True) as (figure, grid):
        for axes, (column, label) in zip(grid, columns.items(), strict=True):
            for (name, part), color in zip(data.groupby(by, sort=False), PALETTE, strict=False):
                if f"{column}_low" in part:
                    draw_band(axes, part, column, x=x, color=color, marker="o", label=name)
                else:
                    axes.plot(part[x], part[column], marker="o", markersize=3, color=color, label=name)
            axes.set(xlabel=xlabel, ylabel=label)
            use_whole_numbers(axes)
        grid[0].legend(frameon=False)
    return figure


def reward_by_samples(
    grpo: Sequence[dict], ppo: Sequence[dict], samples: Mapping[str, int], block: int
) -> Drawn:
    """Mean reward over samples judged so far, GRPO against PPO; `samples` a step of each ("GRPO", "PPO").

    Either may be empty. PPO's steps are turns of a cohort, easy ones first, so each of its points is a mean
    over a cohort (`iteration`); a point of GRPO is one over `block` steps. Bands: 95 % t intervals over the
    steps or turns of a point (none for a single one).
    """
    rows = [("GRPO", r["step"] * samples["GRPO"], (r["step"] - 1) // block, r["reward"]) for r in grpo]
    rows += [("PPO", r["update"] * samples["PPO"], r["iteration"], r["reward_total"]) for r in ppo]
    data = pd.DataFrame(rows, columns=["method", "samples", "group", "reward"])
    reward = {"reward": ("reward", "mean"), "sem": ("reward", "sem"), "steps": ("reward", "size")}
    data = data.groupby(["method", "group"], as_index=False).agg(samples=("samples", "max"), **reward)
    half = data.pop("sem") * stats.t.ppf(0.975, data["steps"] - 1)
    data = data.assign(reward_low=data["reward"] - half, reward_high=data["reward"] + half)
    with panels(1, 1, (5.5, 3.4)) as (figure, [axes]):
        for (name, part), color in zip(data.groupby("method"), PALETTE, strict=False):
            draw_band(axes, part, "reward", x="samples", color=color, marker="o", markersize=4, label=name)
        axes.set(xlabel="samples judged", ylabel="mean reward of a turn")
        axes.legend(frameon=False)
    return figure, data


def _read_samples(folder: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(cohort, sample) of each sample of a training that a judge could read, from a run's directory."""
    for update in storage.read_jsonl(folder / "metrics/ppo.jsonl", appended=True):
        file = folder / "dialogues/ppo" / f"update-{update['update']:04d}.jsonl"
        samples = map(json.loads, file.read_text(encoding="utf-8").splitlines())
        yield from ((update["iteration"], sample) for sample in samples if sample["reward"])


def cohort_rewards(folder: Path) -> pd.DataFrame:
    """Mean over the samples of each cohort of new users, with 95 % intervals over its dialogues.

    Columns cohort, dialogues, reward_total (0 to 2), reward_profile, reward_response, format_rate.
    """
    cohorts: dict[int, dict[str, list]] = {}
    for cohort, sample in _read_samples(folder):
        rewards = [sample["reward"][field] for field, _ in PARTS.values()]
        cohorts.setdefault(cohort, {}).setdefault(sample["dialogue"], []).append(rewards)
    rows = []
    for cohort, dialogues in sorted(cohorts.items()):
        row = {"cohort": cohort, "dialogues": len(dialogues)}
        sums = np.array([np.sum(rewards, axis=0) for rewards in dialogues.values()])
        counts = [len(rewards) for rewards in dialogues.values()]
        for part, sums_E in zip(PARTS, sums.T, strict=True):
            limits = (0.0, 2.0 if part == "reward_total" else 1.0)
            row |= ratio_interval(sums_E, counts, limits).columns(part)
        rows.append(row)
    return pd.DataFrame(rows)


def reward_rows(histories: Mapping[int, Mapping[str, list[dict]]]) -> pd.DataFrame:
    """seed -> training -> metrics of its updates, as rows: seed, run, update, iteration and the PANELS.

    `reward` is what the training itself was rewarded for (PRR 0..2, PR and RR 0..1), the others are logged
    whether rewarded or not. Sum is PR's profile reward plus RR's response reward at the same step; it has no
    parts, because no one policy earned it.
    """
    names = {"update": "update", "iteration": "iteration", **{column: p for p, (column, _) in PANELS.items()}}
    columns = ["seed", "run", *names.values()]
    found = []
    for seed, trainings in histories.items():
        own = {name: pd.DataFrame(history, columns=list(names)) for name, history in trainings.items()}
        if {"PR", "RR"} <= set(own):
            profile, response = own["PR"]["reward_profile"], own["RR"]["reward_response"]
            total = profile.to_numpy() + response.to_numpy()  # as many updates in both, or an error
            own["Sum"] = own["PR"][["update", "iteration"]].assign(reward_total=total)
        found += [table.rename(columns=names).assign(seed=seed, run=name) for name, table in own.items()]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def _average_seeds(rows: pd.DataFrame, x: str, column: str) -> pd.DataFrame:
    """Mean over seeds of a column at each x with its 95 % t interval (NaN for one seed): mean, low, high,
    seeds."""
    seeds = rows.groupby(["seed", x])[column].mean().unstack("seed")
    n, mean = seeds.shape[1], seeds.mean(axis=1)
    half = seeds.std(axis=1, ddof=1) / n**0.5 * (stats.t.ppf(0.975, n - 1) if n > 1 else np.nan)
    return pd.DataFrame({"mean": mean, "low": mean - half, "high": mean + half, "seeds": n})


def reward_progress(rows: pd.DataFrame) -> Drawn:
    """Figure 18 (appendix I): PRR, PR, RR and Sum (PR's and RR's own rewards together) by training step.

    Four panels of `reward_rows`. Thin: every step (its cohort stands at one turn, so steps differ by turn);
    thick: a cohort's mean at its last step; band: 95 % t interval of that over seeds, if there are several.
    """
    drawn = []
    with panels(4, 2, (10, 6.4), sharex=True) as (figure, grid):
        for axes, (column, (_, label)) in zip(grid, PANELS.items(), strict=True):
            for color, name in zip(PALETTE, ("PRR", "PR", "RR", "Sum"), strict=False):
                part = rows[(rows["run"] == name) & rows[column].notna()]
                if part.empty:
                    continue
                steps = part.groupby("update")[column].mean()
                axes.plot(steps.index, steps, color=color, linewidth=0.7, alpha=0.5)
                points = _average_seeds(part, "iteration", column)
                points.insert(0, "step", part.groupby("iteration")["update"].max())
                style = {"linewidth": 2.5, "marker": "o", "linestyle": "--" if name == "Sum" else "-"}
                draw_band(axes, points, "mean", x="step", color=color, label=name, **style)
                drawn.append(pd.DataFrame({"panel": column, "run": name, **points}))
            axes.set(title=label, ylim=(0, None))
        for axes in grid[2:]:
            axes.set_xlabel("training step (update)")
            use_whole_numbers(axes)
        grid[0].legend(frameon=False, ncols=4, loc="lower right")
    return figure, pd.concat(drawn, ignore_index=True)


def comparable_runs(run_dir: Path) -> list[Path]:
    """This run and those beside it with the same users, model, judge, rollouts and amount of training."""

    def hash_common_settings(folder: Path) -> str:
        params = record.read(folder)["params"]
        rollout = {key: value for key, value in params["rollout"].items() if key != "continuation"}
        ppo = {key: params["ppo"][key] for key in _COMMON_PPO}
        same = [params[section] for section in ("personas", "policy", "user", "judge")]
        return storage.hash_json([*same, rollout, ppo])

    folders = sorted(file.parents[1] for file in run_dir.parent.glob("*/metrics/ppo.jsonl"))
    wanted = hash_common_settings(run_dir)
    return [f for f in folders if (f / "record.json").exists() and hash_common_settings(f) == wanted]


def _name_scheme(params: dict) -> str:
    """The credit scheme of a run's settings in words."""
    discount, continuation = params["ppo"]["turn_discount"], params["rollout"]["continuation"]
    if discount > 0:
        return f"MDP, discount {discount:g}, {continuation}"
    late = ", updated once a cohort" if params["ppo"]["update_every"] == "dialogue" else ""
    return f"bandit, {continuation}{late}"


def training_by_turn(folders: Sequence[Path]) -> pd.DataFrame:
    """Mean reward of each cohort's turns by scheme, seed and run: reward, chosen_reward, format_rate.

    `reward` is over all samples of a turn, `chosen_reward` over those with which the dialogues went on.
    """
    rows = []
    for folder in folders:
        made_by = record.read(folder)
        run = _name_scheme(made_by["params"]), made_by["seed"], folder.name
        for cohort, s in _read_samples(folder):
            total = s["reward"]["total"]
            chosen = total if s["chosen"] else np.nan
            rows.append((*run, cohort, s["turn"], total, chosen, s["reward"]["format_ok"]))
    keys = ["scheme", "seed", "run", "cohort", "turn"]
    samples = pd.DataFrame(rows, columns=[*keys, "reward", "chosen_reward", "format_rate"])
    return samples.groupby(keys, as_index=False, sort=False).mean()


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
                points = _average_seeds(rows, x, "reward").rename_axis("x").reset_index()
                line = {"color": color, "linewidth": 2.5, "label": f"{name} ({seeds.shape[1]} seeds)"}
                draw_band(axes, points, "mean", x="x", marker="o", **line)
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
        found = read_scores(folder, ["rlpa"], made_by["params"]["evaluation"]["benchmarks"])
        for (_, benchmark), some in found.items():
            scores.setdefault((benchmark, _name_scheme(made_by["params"])), {})[made_by["seed"]] = some
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


def read_scores(run_dir: Path, methods: Sequence[str], benchmarks: Sequence[str]) -> tables.Scores:
    """(method, benchmark) -> scores (E, K) of every row that was judged in a run directory."""
    files = {key: run_dir / "judgements" / f"{'-'.join(key)}.jsonl" for key in product(methods, benchmarks)}
    found = {key: storage.read_jsonl(file, appended=True) for key, file in files.items() if file.is_file()}
    return {key: tables.score_table(rows) for key, rows in found.items()}
