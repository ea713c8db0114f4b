"""SFT, DPO and GRPO from a run's settings: in this process, or in processes of their own as `run.accelerate`
says.

Under accelerate every process holds all weights, also where a configuration would spread PPO's: what these
stages train are adapters. Each process has its share of every batch; the main one writes adapters, metrics
and checkpoints. On several machines the run directory must be shared, because all read checkpoints.
"""

import gc
from collections.abc import Callable, Sequence

from rlpa_lib.agents import models, parties, placement
from rlpa_lib.methods import grpo, preferences, trainers
from rlpa_lib.methods.preferences import Conversation
from rlpa_lib.rlpa.processes import Processes, count_processes, launch
from rlpa_lib.runs.run import Run
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import USERS

Say = Callable[[str], None]


def train(
    run: Run, params: str, overrides: Sequence[str], stage: str, *, say: Say = print
) -> dict[str, list[dict]]:
    """Train a stage ("sft", "dpo", "grpo") with all its variants; adapter -> metrics of every step. A killed
    run goes on from its checkpoint. InputError: data or adapters that it needs are not there, a batch cannot
    be shared, or the model does not fit."""
    check_shares(run.cfg, [stage])
    if run.cfg.run.accelerate is None:
        return train_here(run, stage, say=say)
    launch(run, params, overrides, stage=stage, say=say)
    return {name: run.read_metrics(name) for name, _ in list_trainings(run.cfg, stage)}


def train_here(
    run: Run, stage: str, *, processes: Processes | None = None, say: Say = print
) -> dict[str, list[dict]]:
    """What `train` does in this process, alone or as one of several."""
    cfg, processes = run.cfg, processes or Processes()
    placed = placement.place(cfg, stage)
    processes.on_main(lambda: placed.note(run))
    if stage == "grpo":
        people = processes.on_main(
            lambda: parties.load_people(cfg, "train", cfg.personas.train_users, run.seed, run)
        )
        user = parties.make_user(cfg, "train", run.seed, run) if processes.main else None
        judge = parties.make_reward_judge(cfg, run) if processes.main else None
        rows = grpo.train_grpo(run, *models.load_model(cfg), user, judge, people, say, processes)
        return {grpo.NAME: rows}
    talks, found = processes.on_main(lambda: load_talks(run, stage)), {}
    fit = {"sft": trainers.train_sft, "dpo": trainers.train_dpo}[stage]
    for name, variant in list_trainings(cfg, stage):
        found[name] = fit(run, *models.load_model(cfg), talks, variant, say, processes)
        gc.collect()  # a trainer refers to itself, and its model would be in the next one's way
    return found


def list_trainings(cfg: Config, stage: str) -> list[tuple[str, str]]:
    """(adapter, variant) of a stage."""
    if stage == "grpo":
        return [(grpo.NAME, "")]
    return [(trainers.name_row(stage, variant), variant) for variant in getattr(cfg, stage).variants]


def load_talks(run: Run, stage: str) -> list[Conversation]:
    """The conversations of SFT or DPO. InputError: see `preferences.load_preferences`."""
    cfg = run.cfg
    user = parties.make_user(cfg, "train", run.seed) if USERS[cfg.user.kind].scripted else None
    return preferences.load_preferences(cfg, user, getattr(cfg, stage).conversations, run.seed, run)


def check_shares(cfg: Config, stages: Sequence[str]) -> None:
    """InputError: a batch of these stages cannot be shared evenly by the processes of `run.accelerate`."""
    if cfg.run.accelerate is None:
        return
    world = count_processes(cfg.run.accelerate)
    for stage in stages:
        for name, variant in list_trainings(cfg, stage):
            batch = trainers.choose_batch(cfg, stage, variant)
            if batch % world:
                why = f"{batch} samples a step ({name}) cannot be shared evenly by {world} processes"
                raise InputError(f"{stage}.batch: {why} (run.accelerate={cfg.run.accelerate})")
