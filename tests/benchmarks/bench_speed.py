"""Ratios behind the speed choices, measured in one run: `python tests/benchmarks/bench_speed.py` (about two
minutes, not a test).

Each pair does the same work on the tiny model: N samples of a prompt packed behind one copy of it against one
row each (update), and prompts prefilled once against once per sample (sampling).
"""

import time
from statistics import median

import torch

from rlpa_lib.agents import models
from rlpa_lib.agents.local_policy import LocalPolicy
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.dialogue import policy_view
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.mini.play import play_crowd
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.settings import config

PROMPTS, SAMPLES, REPEATS = 8, 4, 3


def seconds(action) -> float:
    """Median wall time of three runs after one that is not counted."""
    action()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return median(times)


def update(learner: Learner, groups: list) -> None:
    """Forward and backward of the policy over all samples."""
    learner.network(learner.pack(groups), "policy").logprobs_ST.sum().backward()


def main() -> None:
    cfg = config.load_config("mini")
    torch.set_num_threads(cfg.run.threads)
    model, tokenizer = models.load_model(cfg)
    moments = [play_crowd(person, 0, "rlpa")[7][0] for person in builtin_personas("train", PROMPTS, 0)]
    views = [policy_view(d, prompt_files.load_prompt("policy", "mini")) for d in moments]
    policy = LocalPolicy(model, tokenizer)
    shared = seconds(lambda: policy.generate(views, SAMPLES, seed=0, temperature=1.0, max_new_tokens=96))
    apart = seconds(
        lambda: [
            policy.generate([v], 1, seed=s, temperature=1.0, max_new_tokens=96)
            for v in views
            for s in range(SAMPLES)
        ]
    )
    batched = seconds(
        lambda: [
            policy.generate(views, 1, seed=s, temperature=1.0, max_new_tokens=96) for s in range(SAMPLES)
        ]
    )
    samples = policy.generate(views, SAMPLES, seed=0, temperature=1.0, max_new_tokens=96)
    groups = [(g[0].prompt_ids, tuple(c.token_ids for c in g)) for g in samples]
    times = {}
    for packing in ("tree", "rows"):
        learner = Learner(
            models.load_model(cfg)[0], config.load_config("mini", [f"ppo.packing={packing}"]), seed=0
        )
        times[packing] = seconds(lambda: update(learner, groups))  # noqa: B023 - called before the next round
    print(f"prompt tokens {sum(len(g[0]) for g in groups) / len(groups):.0f}, {cfg.run.threads} thread(s)")
    print(
        "sampling: samples behind a shared prompt against one prompt each, "
        f"batched: {batched / shared:.2f} x; one by one: {apart / shared:.2f} x"
    )
    print(f"update: tree against rows: {times['rows'] / times['tree']:.2f} x")


if __name__ == "__main__":
    main()
