"""Warm-up: a pretrained model that does not know the reply format learns it from scripted replies before PPO, which else has no reward to
start from. Its adapter is where PPO begins, and PPO's reference."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import Accelerator

from rlpa_lib.agents import parties, world
from rlpa_lib.agents.prompt_tokens import fit_prompt
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.dialogue import policy_view
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import render_reply
from rlpa_lib.rlpa import checkpoints, experience, ppo
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.rlpa.networks import POLICY
from rlpa_lib.rlpa.packing import Group
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import Config

NAME = "warmup"
BATCH = 8  # replies a step


def adapter(run: Run, people: Sequence[Persona], accelerator: Accelerator, say: Callable[[str], None] = print) -> Path:
    """The folder adapters/warmup, made when it is not there: one pass over `policy.warm_up` replies in steps of `BATCH`.

    The loss (nats a token of the replies) of every step goes to metrics/warmup.jsonl.
    """
    cfg = _settings(run.cfg)
    model, tokenizer = parties.load_model(cfg)
    learner = Learner(model, cfg, seed=run.seed, accelerator=accelerator)
    folder, processes = run.path(f"adapters/{NAME}"), learner.processes
    if processes.on_main(folder.exists):
        return folder
    processes.on_main(lambda: run.write_jsonl(f"metrics/{NAME}.jsonl", []))  # a former try that was stopped
    groups = replies(cfg, tokenizer, people, run.seed)
    steps = range(0, len(groups), cfg.ppo.minibatch)
    learner.network.train()
    for done, start in enumerate(steps):
        batch = list(range(start, min(start + cfg.ppo.minibatch, len(groups))))
        row = {"step": done + 1, "steps": len(steps), "loss": _gradients(learner, groups, batch)}
        row |= learner.step(ppo.lr_scale(done, len(steps), cfg.ppo.warmup, cfg.ppo.lr_floor))
        if processes.main:
            run.log_metrics(NAME, row)
            say(f"warm-up {row['step']}/{row['steps']}: loss {row['loss']:.3f} nats a token")
    return checkpoints.save_adapter(learner, folder)


def replies(cfg: Config, tokenizer, people: Sequence[Persona], seed: int) -> list[Group]:
    """`policy.warm_up` prompts, each with its one reply, from dialogues of agenda users with the miniature's mixed crowd of scripted
    assistants: well formed, of middling quality. The same for the same seed."""
    system, made = prompt_files.load_prompt("policy", cfg.run.prompt_set, cfg.run.prompt_dir), []
    for person in people:
        moments = world.play_crowd(person, derive_seed(seed, NAME), "rlpa")
        for dialogue, profile, response in random.Random(derive_seed(seed, NAME, person.id)).sample(moments, min(2, len(moments))):
            view = policy_view(dialogue, system, cfg.ppo.history_profiles)
            ids, _ = fit_prompt(tokenizer, view, cfg.rollout.max_prompt_tokens)
            said = tokenizer(render_reply(profile, response), add_special_tokens=False)["input_ids"]
            made.append((tuple(ids), ((*said, tokenizer.eos_token_id),)))
        if len(made) >= cfg.policy.warm_up:
            break
    return made[: cfg.policy.warm_up]


def _settings(cfg: Config) -> Config:
    """The run's settings with the warm-up's in the learner's places."""
    steps = {"lr": cfg.policy.warm_up_lr, "minibatch": BATCH, "micro_batch": cfg.sft.micro_batch, "packing": "rows", "critic": "head"}
    policy = {"adapter": None, "tuning": "lora"}
    return cfg.model_copy(update={"ppo": cfg.ppo.model_copy(update=steps), "policy": cfg.policy.model_copy(update=policy)})


def _gradients(learner: Learner, groups: list[Group], batch: list[int]) -> float:
    """Add the gradients of the mean negative log-likelihood of these replies; the loss."""
    total = sum(len(groups[i][1][0]) for i in batch)
    loss = 0.0
    for part, idle in experience.share_passes(learner, experience.plan_passes(learner, groups, batch)):
        packed = learner.pack([groups[i] for i in part])
        error = -(learner.run(packed, POLICY).logprobs_ST * packed.keep_ST).sum() / total
        learner.accelerator.backward(error * 0 if idle else error)
        loss += 0.0 if idle else float(error.detach())
    return learner.processes.add_up_numbers({"loss": loss})["loss"]
