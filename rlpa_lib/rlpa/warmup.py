"""Warm-up: scripted replies teach a pretrained model the reply format before PPO, which rewards no other.

The adapter is where PPO begins, and PPO's reference.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rlpa_lib.agents import models, world
from rlpa_lib.agents.prompt_tokens import find_answer_end, fit_prompt
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.dialogue import policy_view
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import render_reply
from rlpa_lib.rlpa import ppo
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.rlpa.networks import POLICY
from rlpa_lib.rlpa.packing import Group
from rlpa_lib.rlpa.processes import Processes
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import Config

NAME = "warmup"
BATCH = 8  # replies a step


def make_adapter(
    run: Run, people: Sequence[Persona], processes: Processes, say: Callable[[str], None] = print
) -> Path:
    """The folder adapters/warmup, made if not there: one pass over `policy.warm_up` replies, `BATCH` a step.

    The loss (nats a token of the replies) of every step goes to metrics/warmup.jsonl.
    """
    folder, cfg = run.path(f"adapters/{NAME}"), run.cfg
    if processes.on_main(folder.exists):
        return folder
    # the learner gets the warm-up's settings in the places of PPO's
    steps = {"lr": cfg.policy.warm_up_lr, "minibatch": BATCH, "micro_batch": cfg.sft.micro_batch}
    settings = cfg.ppo.model_copy(update={**steps, "packing": "rows", "critic": "head"})
    policy = cfg.policy.model_copy(update={"adapter": None, "tuning": "lora"})
    cfg = cfg.model_copy(update={"ppo": settings, "policy": policy})
    model, tokenizer = models.load_model(cfg)
    learner = Learner(model, cfg, seed=run.seed, processes=processes)
    processes.on_main(lambda: run.write_jsonl(f"metrics/{NAME}.jsonl", []))  # a former try stopped
    groups = make_replies(cfg, tokenizer, people, run.seed)
    starts = range(0, len(groups), BATCH)
    learner.network.train()
    for done, first in enumerate(starts):
        batch = list(range(first, min(first + BATCH, len(groups))))
        loss = learner.within_memory(partial(_accumulate, learner, groups, batch))
        loss = processes.add_up_numbers({"loss": loss})["loss"]
        norms = learner.step(ppo.lr_scale(done, len(starts), cfg.ppo.warmup, cfg.ppo.lr_floor))
        if processes.main:
            run.log_metrics(NAME, {"step": done + 1, "steps": len(starts), "loss": loss, **norms})
            say(f"warm-up {done + 1}/{len(starts)}: loss {loss:.3f} nats a token")
    return learner.save_policy(folder)


def make_replies(cfg: Config, tokenizer, people: Sequence[Persona], seed: int) -> list[Group]:
    """`policy.warm_up` prompts, each with one reply, from dialogues of agenda users with scripted assistants.

    The assistants are the miniature's mixed crowd: well formed, of middling quality.
    """
    system, made = prompt_files.load_prompt("policy", cfg.run.prompt_set, cfg.run.prompt_dir), []
    end = find_answer_end(tokenizer)
    for person in people:
        moments = world.play_crowd(person, derive_seed(seed, NAME), "rlpa")
        draw = random.Random(derive_seed(seed, NAME, person.id))
        for dialogue, profile, response in draw.sample(moments, min(2, len(moments))):
            view = policy_view(dialogue, system, cfg.ppo.history_profiles)
            ids, _ = fit_prompt(tokenizer, view, cfg.rollout.max_prompt_tokens)
            reply = tokenizer(render_reply(profile, response), add_special_tokens=False)["input_ids"]
            made.append((tuple(ids), ((*reply, end),)))
        if len(made) >= cfg.policy.warm_up:
            break
    return made[: cfg.policy.warm_up]


def _accumulate(learner: Learner, groups: list[Group], batch: list[int]) -> float:
    """Add the gradients of the mean negative log-likelihood of these replies; this process's part of the
    loss."""
    total, loss = sum(len(groups[i][1][0]) for i in batch), 0.0
    for _, packed, idle in learner.passes(groups, batch):
        error = -(learner.network(packed, POLICY).logprobs_ST * packed.keep_ST).sum() / total
        (error * 0 if idle else error).backward()
        loss += 0.0 if idle else float(error.detach())
    return loss
