"""What an evaluation costs beside generation: `python tests/benchmarks/bench_evaluation.py [users] [turns]`
(a few minutes, not a test).

Plays the rows of the miniature that need no adapter and divides all seconds by those inside
`Policy.generate`. Processor seconds of this process, so that a busy machine disturbs little. Then an estimate
for 74 + 74 users x 10 turns, with trained rows counted as the untrained row of the same form (SFT and DPO as
Base; RLPA, GRPO and style-only as RLPA prompting).
"""

import sys
import tempfile
import time
from pathlib import Path

import torch

from rlpa_lib import runs
from rlpa_lib.agents import models, parties
from rlpa_lib.agents.local_policy import LocalPolicy
from rlpa_lib.evaluation import played, rows
from rlpa_lib.methods.retrieval import load_encoder
from rlpa_lib.methods.table import Parts, build_method
from rlpa_lib.personas.sources import load_personas
from rlpa_lib.settings import config

FULL = 148 * 10  # answers of a row at mini
LIKE = {
    "base": 3, "reminder": 1, "self_critic": 1, "cot": 1, "rag": 1, "rlpa_prompting": 5, "random": 1,
    "oracle": 1,
}


class Timed:
    """A policy with a stop watch."""

    def __init__(self, policy):
        self.policy, self.seconds, self.tokens, self.prompts = policy, 0.0, 0, 0

    def generate(self, messages, n, **options):
        start = time.process_time()
        answers = self.policy.generate(messages, n, **options)
        self.seconds += time.process_time() - start
        self.tokens += sum(c.n_generated for group in answers for c in group)
        self.prompts += sum(len(group[0].prompt_ids) for group in answers)
        return answers


def play(run, method, users) -> float:
    """Processor seconds of one row on both benchmarks."""
    cfg, start = run.cfg, time.process_time()
    for benchmark in cfg.evaluation.benchmarks:
        people, user = load_personas(cfg.personas, benchmark, users, 0), parties.make_user(cfg, "test", 0)
        played.evaluate_row(
            run, method, benchmark, people, user, parties.make_evaluation_judge(cfg),
            parties.make_reward_judge(cfg),
        )
    return time.process_time() - start


def main(users: int = 24, turns: int = 10) -> None:
    cfg = config.load_config(
        "mini",
        [f"evaluation.users={users}", f"evaluation.turns={turns}", f"evaluation.methods=[{', '.join(LIKE)}]"],
    )
    torch.set_num_threads(cfg.run.threads)
    model, tokenizer = models.load_model(cfg)
    encoder, total, generating, estimate = load_encoder(cfg.evaluation.encoder), 0.0, 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        run = runs.claim(cfg, 0, Path(folder) / "run", "params/mini.yaml")
        for name, times in LIKE.items():
            timed = Timed(
                LocalPolicy(
                    model, tokenizer, max_prompt_tokens=cfg.rollout.max_prompt_tokens, portion=rows.PORTION
                )
            )
            seconds = play(
                run,
                build_method(Parts(name, cfg, None if name in ("random", "oracle") else timed, encoder)),
                users,
            )
            total, generating = total + seconds, generating + timed.seconds
            estimate += times * seconds * FULL / (2 * users * turns)
            rate = timed.tokens / timed.seconds if timed.seconds else 0.0
            print(
                f"{name:15} {seconds:7.2f} s, of which generation {timed.seconds:7.2f} s; "
                f"{timed.prompts:7d} prompt tokens, {timed.tokens:6d} generated, {rate:5.0f} a second",
                flush=True,
            )
    print(
        f"{len(LIKE)} rows, {users} + {users} users, {turns} turns: {total:.1f} s "
        f"= {total / generating:.3f} x generation ({generating:.1f} s)"
    )
    print(
        f"estimate for {sum(LIKE.values())} rows, 74 + 74 users, 10 turns: "
        f"{estimate / 60:.1f} minutes of one core, {cfg.run.threads} thread(s)"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
