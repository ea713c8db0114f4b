"""One PPO training from its settings: in this process, or the same under `accelerate launch` on many."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from rlpa_lib import runs
from rlpa_lib.agents import models, parties
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.personas.sources import hash_split
from rlpa_lib.rlpa import warmup
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.rlpa.networks import ROLES
from rlpa_lib.rlpa.processes import Processes
from rlpa_lib.rlpa.trainer import Trainer
from rlpa_lib.runs import record
from rlpa_lib.runs.run import Run
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import POLICIES

CONFIGURATIONS = config.PARAMS_DIR / "accelerate"
PATIENCE = timedelta(hours=3)  # how long a process waits for the others: a user model's server may be slow


def train(
    run: Run, params: str, overrides: Sequence[str] = (), *, name: str = "ppo", changes: Sequence[str] = (),
    until: int | None = None, say: Callable[[str], None] = print,
) -> list[dict]:  # fmt: skip
    """Train as `run.accelerate` says, here or in processes of their own; the metrics of all updates.

    `changes` are settings of this training alone (an ablation's); `until` stops after that many updates.
    """
    if run.cfg.run.accelerate is None:
        return prepare(run, name=name, changes=changes, say=say).train(until=until, say=say)
    launch(run, params, overrides, name=name, changes=changes, until=until, say=say)
    return run.read_metrics(name)


def prepare(
    run: Run, *, name: str = "ppo", changes: Sequence[str] = (), accelerator: Accelerator | None = None,
    say: Callable[[str], None] = print,
) -> Trainer:  # fmt: skip
    """The trainer of a run with all its parties, after the warm-up if there is one, noted in the record."""
    if changes:  # settings of this training alone; the record keeps the run's own
        run = replace(run, cfg=config.change_config(run.cfg, changes, "--change"))
    cfg = run.cfg
    accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
    processes = Processes(accelerator)
    n = cfg.personas.train_users
    people = processes.on_main(lambda: parties.load_people(cfg, "train", n, run.seed, run))
    if cfg.policy.warm_up and cfg.policy.adapter is None:
        warm = str(warmup.make_adapter(run, people, accelerator, say))
        cfg = cfg.model_copy(update={"policy": cfg.policy.model_copy(update={"adapter": warm})})
    model, tokenizer = models.load_model(cfg)
    learner = Learner(model, cfg, seed=run.seed, accelerator=accelerator)
    weights = {role: sum(p.numel() for p in learner.parameters(role).values()) for role in ROLES}
    facts = {"users": len(people), "users_hash": hash_split(people)}
    facts |= {"processes": processes.world, "trained_weights": weights}
    processes.on_main(lambda: run.note(f"training_{name}", facts))
    user = judge = policy = None
    if processes.main:  # it alone asks users, judges and servers
        user, judge = parties.make_user(cfg, "train", run.seed, run), parties.make_reward_judge(cfg, run)
        policy = parties.make_policy(cfg, run) if POLICIES[cfg.policy.kind].needs_servers else None
    system = prompt_files.load_prompt("policy", cfg.run.prompt_set, cfg.run.prompt_dir)
    return Trainer(
        run, learner, tokenizer, user, judge=judge, personas=people, system_prompt=system, name=name,
        policy=policy,
    )


def launch(
    run: Run, params: str, overrides: Sequence[str], *, name: str, changes: Sequence[str] = (),
    until: int | None = None, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Run `python -m rlpa_lib train` under `accelerate launch`, pass its lines on. RuntimeError: failed."""
    file = find_configuration(run.cfg.run.accelerate)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    command += ["-m", "rlpa_lib", "train", "--scale", params, "--seed", str(run.seed)]
    command += ["--run-dir", str(run.dir), "--name", name]
    command += [part for text in config.anchor_paths(overrides) for part in ("--set", text)]
    command += [part for text in changes for part in ("--change", text)]
    command += [] if until is None else ["--until", str(until)]
    lines: list[str] = []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=record.REPOSITORY, **pipes) as process:
        for line in process.stdout:
            lines.append(line.rstrip())
            say(lines[-1])
    if process.returncode:
        # our own last words if there are any; the launcher's report says which process ended
        told = [line for line in lines if line.startswith("rlpa_lib: ")] or lines[-5:]
        reason = " | ".join(dict.fromkeys(told))
        raise RuntimeError(f"training ended with exit code {process.returncode}: {reason}")


def find_configuration(name: str) -> Path:
    """A file of params/accelerate by its name, or any other by its path. InputError: there is none."""
    for file in (CONFIGURATIONS / f"{name}.yaml", Path(name)):
        if file.is_file():
            return file
    known = ", ".join(sorted(path.stem for path in CONFIGURATIONS.glob("*.yaml")))
    raise InputError(f"run.accelerate: no such file, and none of {known}: {name}")


def work(
    scale: str, seed: int, run_dir: Path, overrides: Sequence[str], name: str, changes: Sequence[str] = (),
    until: int | None = None,
) -> int:  # fmt: skip
    """What each process under `accelerate launch` does; 0 at the end. Only the main one opens the run."""
    cfg = config.load_config(scale, overrides)
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[patience])
    processes, say = Processes(accelerator), partial(print, flush=True)  # a notebook reads it through a pipe
    with processes.watched():
        run = processes.on_main(lambda: runs.open_run(scale, seed, run_dir, overrides))
        if not processes.main:  # on another machine the folder may be another, and nothing is written there
            run = Run(cfg, seed, (record.REPOSITORY / run_dir.expanduser()).resolve())
            runs.set_threads(cfg.run.threads)
            runs.set_seed(seed)
        trainer = prepare(run, name=name, changes=changes, accelerator=accelerator, say=say)
        trainer.train(until=until, say=say)
        accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0
