"""Compare the two critics: a head on the frozen reference's features against a LoRA of its own, under both
credit schemes.

    python tests/benchmarks/bench_critics.py --scale mini --seed 0 --updates 20 --run-dir runs/critics

Prints, for the second half of the updates, how much of the returns' variance the values explain before they
are trained on them, the reward, and the seconds of an update.
"""

import argparse
from pathlib import Path
from statistics import fmean

from rlpa_lib import runs
from rlpa_lib.rlpa import training
from rlpa_lib.runs import record
from rlpa_lib.settings import config

SCHEMES = {
    "bandit": [],
    "mdp": [
        "ppo.turn_discount=0.9", "ppo.update_every=dialogue", "rollout.continuation=random",
        "ppo.value_clip=null", "ppo.advantage_norm=cohort",
    ],
}


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--scale", default="mini")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument(
        "--updates", type=int, default=20, help="bandit: one a turn; mdp: a tenth of them, one a cohort"
    )
    options.add_argument("--schemes", nargs="+", default=list(SCHEMES), choices=list(SCHEMES))
    options.add_argument("--run-dir", type=Path, default=Path("runs/critics"))
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    asked = options.parse_args()
    for scheme in asked.schemes:
        for critic in ("head", "lora"):
            keys = [*asked.set, *SCHEMES[scheme], f"ppo.critic={critic}", "run.tensorboard=false"]
            cfg = config.load_config(asked.scale, keys)
            run = runs.claim(
                cfg, asked.seed, record.REPOSITORY / asked.run_dir / f"{scheme}-{critic}-{asked.seed}",
                asked.scale,
            )
            runs.set_threads(cfg.run.threads)
            until = asked.updates if scheme == "bandit" else max(2, asked.updates // cfg.rollout.turns)
            rows = training.prepare(run).train(until=until, say=lambda line: None)
            late = rows[len(rows) // 2 :]
            explained, reward = (
                fmean(row[name] for row in late) for name in ("explained_variance", "reward_total")
            )
            seconds = fmean(row["seconds_experience"] + row["seconds_update"] for row in rows)
            told = (
                f"explained variance {explained:6.3f}  reward {reward:.3f}  "
                f"{seconds:.1f} s for experience and update"
            )
            print(f"{scheme:7} {critic:5} {told}", flush=True)


if __name__ == "__main__":
    main()
