"""One PPO training from its settings: in this process, or the same under `accelerate launch` on many."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from rlpa_lib import runs
from rlpa_lib.agents import parties
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile
from rlpa_lib.personas.sources import hash_split
from rlpa_lib.rlpa import warmup
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.rlpa.networks import CRITIC, POLICY
from rlpa_lib.rlpa.processes import Processes
from rlpa_lib.rlpa.trainer import Trainer
from rlpa_lib.runs import record
from rlpa_lib.runs.run import Run
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

CONFIGURATIONS = config.PARAMS_DIR / "accelerate"
PATIENCE = timedelta(hours=3)  # how long a process waits for the others, who may be waiting for a user model's server


def train(
    run: Run, params: str, overrides: Sequence[str] = (), *, name: str = "ppo", changes: Sequence[str] = (), until: int | None = None,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """Train as `run.accelerate` says: here, or in processes of their own whose lines are passed on; the metrics of all updates.

    `changes` are settings of this training alone (an ablation's); `until` stops after that many updates.
    """
    if run.cfg.run.accelerate is None:
        return prepare(apply_changes(run, changes), name=name, say=say).train(until=until, say=say)
    launch(run, params, overrides, name=name, changes=changes, until=until, say=say)
    return run.read_metrics(name)


def apply_changes(run: Run, changes: Sequence[str]) -> Run:
    """The run with settings of one training; its record keeps the run's own."""
    return replace(run, cfg=config.change_config(run.cfg, changes, "--change")) if changes else run


def prepare(run: Run, *, name: str = "ppo", accelerator: Accelerator | None = None, say: Callable[[str], None] = print) -> Trainer:
    """The trainer of a run with all its parties, after the warm-up if one is asked for; what it trains is noted in the record."""
    cfg = run.cfg
    accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
    processes = Processes(accelerator)
    people = _people(run, processes)
    if cfg.policy.warm_up and cfg.policy.adapter is None:
        warm = str(warmup.adapter(run, people, accelerator, say))
        cfg = cfg.model_copy(update={"policy": cfg.policy.model_copy(update={"adapter": warm})})
    model, tokenizer = parties.load_model(cfg)
    learner = Learner(model, cfg, seed=run.seed, accelerator=accelerator)
    weights = {role: sum(p.numel() for p in learner.parameters(role).values()) for role in (POLICY, CRITIC)}
    facts = {"users": len(people), "users_hash": hash_split(people), "processes": processes.world, "trained_weights": weights}
    processes.on_main(lambda: run.note(f"training_{name}", facts))
    # only the main process asks users, judges and servers
    user, judge = (parties.make_user(cfg, "train", run.seed, run), parties.make_reward_judge(cfg, run)) if processes.main else (None, None)
    policy = parties.make_policy(cfg, run) if cfg.policy.kind == "vllm" and processes.main else None
    system = prompt_files.load_prompt("policy", cfg.run.prompt_set, cfg.run.prompt_dir)
    return Trainer(run, learner, tokenizer, user, judge, people, system_prompt=system, name=name, policy=policy)


def launch(
    run: Run, params: str, overrides: Sequence[str], *, name: str, changes: Sequence[str] = (), until: int | None = None,
    say: Callable[[str], None],
) -> None:
    """Run `python -m rlpa_lib train` under `accelerate launch` and pass its lines on. RuntimeError with what it said last when it fails."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(configuration(run.cfg.run.accelerate)), "-m", "rlpa_lib"]
    command += ["train", "--scale", params, "--seed", str(run.seed), "--run-dir", str(run.dir), "--name", name]
    command += [part for text in config.anchor_paths(overrides) for part in ("--set", text)]
    command += [part for text in changes for part in ("--change", text)] + ([] if until is None else ["--until", str(until)])
    lines: list[str] = []
    process = subprocess.Popen(command, cwd=record.REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with process:
        for line in process.stdout:
            lines.append(line.rstrip())
            say(lines[-1])
    if process.returncode:
        told = [line for line in lines if line.startswith("rlpa_lib: ")] or lines[-5:]  # the launcher's own report says which process ended
        raise RuntimeError(f"training ended with exit code {process.returncode}: " + " | ".join(dict.fromkeys(told)))


def configuration(name: str) -> Path:
    """A file of params/accelerate by its name, or any other by its path. InputError: there is none."""
    file = CONFIGURATIONS / f"{name}.yaml"
    if file.is_file():
        return file
    if Path(name).is_file():
        return Path(name)
    raise InputError(f"run.accelerate: no such file, and none of {', '.join(sorted(p.stem for p in CONFIGURATIONS.glob('*.yaml')))}: {name}")


def worker(
    scale: str, seed: int, run_dir: Path, overrides: Sequence[str], name: str, changes: Sequence[str] = (), until: int | None = None
) -> int:
    """What each process under `accelerate launch` does; 0 when all is done. Only the main one opens the run directory."""
    cfg = config.load_config(scale, overrides)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    processes = Processes(accelerator)
    with processes.watched():
        opened: list[Run] = []
        processes.on_main(lambda: opened.append(runs.open_run(scale, seed, run_dir, overrides)))
        if not processes.main:
            opened.append(Run(cfg, seed, (record.REPOSITORY / run_dir.expanduser()).resolve()))
            runs.set_threads(cfg.run.threads)
            runs.set_seed(seed)
        prepare(apply_changes(opened[0], changes), name=name, accelerator=accelerator, say=_aloud).train(until=until, say=_aloud)
        processes.wait()
    accelerator.end_training()
    return 0


def _aloud(line: str) -> None:
    print(line, flush=True)  # a notebook reads it through a pipe


def _people(run: Run, processes: Processes) -> list[Persona]:
    def read() -> list[dict]:
        found = parties.load_people(run.cfg, "train", run.cfg.personas.train_users, run.seed, run)
        return [{**vars(person), "profile": person.profile.to_json()} for person in found]

    return [replace(Persona(**row), profile=Profile.from_json(row["profile"])) for row in processes.on_main(read)]
