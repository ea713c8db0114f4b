"""Tokens and processor seconds of an update's passes over the samples of a run, packed as rows and as trees:
`python tests/benchmarks/bench_trees.py runs/mini-0 [UPDATE]` (a minute, not a test). With PYTHONPATH another
commit's library can be measured on the same samples."""

import json
import random
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch

from rlpa_lib.agents import models
from rlpa_lib.rlpa import ppo
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.settings import config

REPEATS = 3


def read_groups(file: Path) -> list:
    """Prompts with their completions, token ids, of all rows of dialogues/ppo/update-*.jsonl."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        (tuple(group["prompt_ids"]), tuple(tuple(s["completion"]["token_ids"]) for s in group["samples"]))
        for row in rows for group in row["groups"]
    ]  # fmt: skip


def train(learner: Learner, groups: list, minibatch: int) -> int:
    """Forward and backward of the policy, minibatch by minibatch; tokens through the network."""
    order = list(range(len(groups)))
    random.Random(0).shuffle(order)
    tokens = 0
    for some in ppo.split_groups([len(completions) for _, completions in groups], minibatch, order):
        for _, packed, _ in learner.passes(groups, some):
            tokens += packed.input_ids_BL.numel()
            run = learner.network(packed, "policy")
            learner.network.backward(run.logprobs_ST.sum(), "policy")
    return tokens


def refer(learner: Learner, groups: list) -> int:
    """The reference's passes with the critic's features; tokens through the network."""
    tokens = 0
    with torch.no_grad():
        for _, packed, _ in learner.passes(groups, range(len(groups))):
            tokens += packed.input_ids_BL.numel()
            learner.network(packed, "reference", features=True)
    return tokens


def main(run_dir: str, update: str = "6") -> None:
    groups = read_groups(Path(run_dir) / "dialogues" / "ppo" / f"update-{int(update):04d}.jsonl")
    print(f"{sum(len(completions) for _, completions in groups)} samples of {len(groups)} prompts")
    for packing in ("rows", "tree"):
        cfg = config.load_config("mini", [f"ppo.packing={packing}"])
        torch.set_num_threads(cfg.run.threads)
        learner = Learner(models.load_model(cfg)[0], cfg, seed=0)
        trained = partial(train, learner, groups, cfg.ppo.minibatch)
        works = {"update": trained, "reference": partial(refer, learner, groups)}
        for name, work in works.items():
            tokens, times = work(), []
            for _ in range(REPEATS):
                start = time.process_time()
                work()
                times.append(time.process_time() - start)
            print(f"{packing:5} {name:10} {tokens:7,} tokens {median(times):6.2f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
