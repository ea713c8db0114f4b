"""PPO from a run's settings: the parties and networks of a training, then the loop over cohorts of users."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import TypeAdapter

from rlpa_lib.agents import models, own_servers, parties, placement
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.judging import Judge
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.protocols import Policy, SimulatedUser
from rlpa_lib.personas.sources import hash_split
from rlpa_lib.rlpa import experience, ppo, rollout, silence, warmup
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.rlpa.networks import ROLES
from rlpa_lib.rlpa.processes import MainOnly, Processes, SharedPolicy, launch
from rlpa_lib.rlpa.rollout import KeptTurn, Sampling, TurnGroup
from rlpa_lib.runs import storage
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings import config
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import POLICIES

COMPARED = "ablation-PRR"  # the weights with both rewards that 21_ablations takes from 20_ppo


def train(
    run: Run, params: str, overrides: Sequence[str] = (), *, name: str = "ppo", changes: Sequence[str] = (),
    until: int | None = None, say: Callable[[str], None] = print,
) -> list[dict]:
    """Train as `run.accelerate` says, here or in processes of their own; the metrics of all updates.

    `changes` are settings of this training alone (an ablation's); `until` stops after that many updates.
    """
    if run.cfg.run.accelerate is None:
        return prepare(run, name=name, changes=changes, say=say).train(until=until, say=say)
    changes = [*changes, *own_servers.lend(run.cfg)]
    launch(run, params, overrides, name=name, changes=changes, until=until, say=say)
    return run.read_metrics(name)


def work(
    run: Run, name: str, changes: Sequence[str] = (), until: int | None = None, *, processes: Processes,
    say: Callable[[str], None],
) -> None:
    """What each process under `accelerate launch` trains."""
    prepare(run, name=name, changes=changes, processes=processes, say=say).train(until=until, say=say)


def prepare(
    run: Run, *, name: str = "ppo", changes: Sequence[str] = (), processes: Processes | None = None,
    say: Callable[[str], None] = print,
) -> Trainer:
    """The trainer of a run with all its parties, after the warm-up if there is one, noted in the record."""
    if changes:  # settings of this training alone; the record keeps the run's own
        run = replace(run, cfg=config.change_config(run.cfg, changes, "--change"))
    cfg, processes = run.cfg, processes or Processes()
    users = cfg.personas.train_users
    people = processes.on_main(lambda: parties.load_people(cfg, "train", users, run.seed, run))
    placed = placement.place(cfg, placement.PPO, sharded=processes.sharded, name=name)
    processes.on_main(lambda: placed.note(run))
    if cfg.policy.warm_up and cfg.policy.adapter is None:
        warm = str(warmup.make_adapter(run, people, processes, say))
        cfg = cfg.model_copy(update={"policy": cfg.policy.model_copy(update={"adapter": warm})})
    model, tokenizer = models.load_model(cfg)  # on the learner's device
    learner = Learner(model, cfg, seed=run.seed, processes=processes)
    learner.check_passes()
    weights = {role: sum(p.numel() for p in learner.parameters(role).values()) for role in ROLES}
    facts = {
        "users": len(people), "users_hash": hash_split(people), "cohorts": rollout.count_cohorts(cfg),
        "processes": processes.world, "trained_weights": weights,
    }
    processes.on_main(lambda: run.note(f"training_{name}", facts))
    user = judge = policy = None
    if processes.main:  # it alone asks users, judges and servers
        user, judge = parties.make_user(cfg, "train", run.seed, run), parties.make_reward_judge(cfg, run)
        policy = parties.make_policy(cfg, run) if POLICIES[cfg.policy.kind].needs_servers else None
    system = prompt_files.load_prompt("policy", cfg.run.prompt_set, cfg.run.prompt_dir)
    return Trainer(
        run, learner, tokenizer, user, judge, people, system_prompt=system, name=name, policy=policy
    )


@dataclass(frozen=True)
class Progress:
    """Where training stands: updates and optimiser steps done, the cohort's turn and dialogues, and an
    adaptive KL coefficient (None: as set)."""

    updates: int = 0
    optimizer_steps: int = 0
    turn: int = 0
    dialogues: tuple[Dialogue, ...] = ()
    kl_coef: float | None = None


def count_updates(cfg: Config, cohorts: int | None = None) -> int:
    """Updates of the first `cohorts` cohorts; by default up to where ablations are compared (or all)."""
    cohorts = cohorts or min(cfg.ablations.iterations or cfg.ppo.iterations, rollout.count_cohorts(cfg))
    return cohorts * (1 if cfg.ppo.update_every == "dialogue" else cfg.rollout.turns)


class Trainer:
    """PPO on simulated dialogues (section 3.4, appendix B): each iteration takes `rollout.users` new users.

    `ppo.update_every: turn` updates after each turn, so weights change within a dialogue (released code);
    `dialogue` once at the cohort's end. A policy on servers has `refresh` or `load_weights` (folder,
    version): it gets adapter or model before the first rollout and after each update, and may `rest` while
    the trainer works. The trainer computes the old log-probabilities itself where servers sample, or this
    process in another precision than it trains. Leaves metrics/<name>.jsonl, dialogues/<name>/,
    checkpoints/<name>/ and adapters/<name>/ (models/<name>/ after full tuning), of `ppo` also the weights at
    which ablations are compared, and goes on from its checkpoint; every random choice follows from (seed,
    update). Of several processes only the main one needs user, judge and servers.
    """

    def __init__(
        self, run: Run, learner: Learner, tokenizer, user: SimulatedUser, judge: Judge,
        personas: Sequence[Persona], *, system_prompt: str, name: str = "ppo", policy: Policy | None = None,
    ):
        self.run, self.learner, self.tokenizer, self.name = run, learner, tokenizer, name
        self.user, self.judge, self.personas = user, judge, personas
        self.cfg, self.processes = cfg, processes = run.cfg, learner.processes
        if cfg.rollout.top_p < 1:
            raise InputError("rollout.top_p: training samples from the whole distribution; use 1")
        if not personas:
            raise InputError("personas: there is no training user")
        self.policy = self.sampler = policy or models.make_local_policy(learner.model, tokenizer, cfg)
        self.serve = getattr(self.sampler, "refresh", None) or getattr(self.sampler, "load_weights", None)
        self.served = processes.on_main(lambda: self.serve is not None)
        self.kept_in = "adapters" if cfg.policy.tuning == "lora" else "models"
        if processes.world > 1:
            self.user, self.judge = MainOnly(user, processes), MainOnly(judge, processes)
            self.policy = (MainOnly if self.served else SharedPolicy)(self.policy, processes)
        self.sampling = Sampling(
            cfg.rollout.samples, cfg.rollout.continuation, system_prompt, cfg.ppo.history_profiles,
            cfg.ppo.reward_parts, cfg.rollout.temperature, cfg.rollout.max_new_tokens, cfg.rollout.fallback,
            cfg.profile.strictness,
        )
        self.turns_per_update = cfg.rollout.turns if cfg.ppo.update_every == "dialogue" else 1
        self.total_updates = count_updates(cfg, rollout.count_cohorts(cfg))
        self.compared = count_updates(cfg) if name == "ppo" and cfg.ppo.reward_parts == "PRR" else None
        self.progress = Progress()
        self.waiting = run.path(f"checkpoints/{name}-rollout")

    def train(self, *, until: int | None = None, say: Callable[[str], None] = print) -> list[dict]:
        """Train up to update `until` (default: the end) and return the metrics of all updates so far.
        SilentTraining: no reply keeps the format."""
        checkpoint, board = self.run.path(f"checkpoints/{self.name}"), None
        self.progress = TypeAdapter(Progress).validate_python(self.learner.load(checkpoint) or {})
        self.processes.on_main(self._forget_later_metrics)
        self._check_format()
        self._serve_weights()
        if self.cfg.run.tensorboard and self.processes.main:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and a run may do without

            folder = self.run.path(f"tensorboard/{self.name}")
            board = SummaryWriter(folder, purge_step=self.progress.updates + 1)
        last = min(self.total_updates, until or self.total_updates)
        while self.progress.updates < last:
            metrics = self._one_update()
            if self.progress.updates == self.compared:  # before the checkpoint, so that a resumed run has it
                self._save_policy(COMPARED)
            if self.progress.updates % self.cfg.ppo.checkpoint_every == 0 or self.progress.updates == last:
                self.learner.save(checkpoint, self.progress)
            if self.processes.main:
                shutil.rmtree(self.waiting, ignore_errors=True)
            self._serve_weights()
            if self.processes.main:
                self.run.log_metrics(self.name, metrics)
                if metrics.get("out_of_memory"):
                    self.run.note(f"out_of_memory_{self.name}", {"pass_tokens": metrics["pass_tokens"]})
                for key, value in metrics.items() if board else ():
                    board.add_scalar(f"{self.name}/{key}", value, metrics["update"])
                say(_progress_line(metrics, self.total_updates))
            self._check_format()
        if board:
            board.close()
        self._save_policy(self.name)
        return self.processes.on_main(lambda: self.run.read_metrics(self.name))

    def _save_policy(self, name: str) -> None:
        self.learner.save_policy(self.run.path(f"{self.kept_in}/{name}"), self.tokenizer)

    def _serve_weights(self) -> None:
        """Write adapter or model, have every server sample with it from now on, delete what is of no more
        use."""
        if not self.served:
            return
        version, folder = self.progress.updates, self.run.path(f"{self.kept_in}/{self.name}-served")
        dtype = getattr(torch, self.cfg.policy.dtype)  # servers compute in it; full tuning trains in fp32
        written = self.learner.save_policy(folder / f"v{version:06d}", self.tokenizer, dtype)
        torch.cuda.empty_cache()  # a server on the same card needs it to wake up; does nothing without a GPU
        self.processes.on_main(lambda: self.serve(written, version))
        oldest = version - getattr(self.sampler, "max_policy_lag", 0)
        for old in folder.glob("v*") if self.processes.main else ():
            if int(old.name[1:]) < oldest:
                shutil.rmtree(old)

    def _one_update(self) -> dict:
        clock, settings, before = [time.perf_counter()], self.cfg.ppo, self.progress
        iteration = before.updates * self.turns_per_update // self.cfg.rollout.turns
        seed = derive_seed(self.run.seed, "iteration", iteration)
        groups, cohort, prompts_cut = self._rollout(iteration, seed)
        if self.served:
            self.processes.on_main(getattr(self.sampler, "rest", lambda: None))
        clock.append(time.perf_counter())
        coef = settings.kl_coef if before.kl_coef is None else before.kl_coef
        elsewhere = self.served or self.learner.network.mixed
        data = experience.gather_experience(self.learner, groups, coef, elsewhere=elsewhere)
        clock.append(time.perf_counter())
        update_seed = derive_seed(seed, "update", before.updates)
        learned = experience.update(self.learner, data, seed=update_seed, scales=self._scales())
        clock.append(time.perf_counter())
        steps, n, kl = learned.pop("optimizer_steps"), len(data.keep), learned["kl_reply"]
        done = cohort.turn >= self.cfg.rollout.turns
        self.progress = Progress(
            updates=before.updates + 1, optimizer_steps=before.optimizer_steps + steps,
            turn=0 if done else cohort.turn, dialogues=() if done else cohort.dialogues,
            kl_coef=ppo.adapt_kl_coef(coef, kl, settings.kl_target, settings.kl_horizon, n),
        )
        if self.processes.main:
            file = f"dialogues/{self.name}/update-{self.progress.updates:04d}.jsonl"
            self.run.write_jsonl(file, rollout.sample_rows(groups))
        phases = ("seconds_rollout", "seconds_experience", "seconds_update")
        seconds = {phase: b - a for phase, (a, b) in zip(phases, itertools.pairwise(clock), strict=True)}
        place = {"update": before.updates + 1, "iteration": iteration + 1, "turn": cohort.turn}
        cut = {"prompts_cut": prompts_cut}
        if self.served:  # how many updates old the oldest adapter was that sampled here
            cut["policy_lag"] = before.updates - min(s.completion.version for g in groups for s in g.samples)
        return {**place, "kl_coef": coef, **rollout.reward_metrics(groups), **learned, **seconds, **cut}

    def _rollout(self, iteration: int, seed: int) -> tuple[list[TurnGroup], rollout.Cohort, int]:
        """Groups of the turns that one update sees, the cohort after them, and how many prompts were cut.

        With more than one turn an update each turn is kept on disk until the update is saved, not to be
        sampled and judged twice: a rollout that stops goes on from there.
        """
        people = rollout.draw_cohort(self.personas, self.cfg.rollout.users, iteration, self.run.seed)
        cohort, update, turns = rollout.start(people, self.sampling), self.progress.updates, []
        several = self.turns_per_update > 1
        if several:
            turns = self.processes.on_main(lambda: rollout.load_turns(self.waiting, update))
        dialogues = turns[-1].dialogues if turns else self.progress.dialogues
        cohort = replace(cohort, dialogues=dialogues or cohort.dialogues)
        with self.learner.gather_weights():
            while len(turns) < self.turns_per_update:
                cuts = self._count_cuts()
                groups, cohort = rollout.advance(
                    cohort, self.policy, self.user, self.judge, self.sampling, seed=seed
                )
                turns.append(KeptTurn(groups, cohort.dialogues, self._count_cuts() - cuts))
                if several and self.processes.main:
                    file = self.waiting / f"turn-{cohort.turn:03d}.jsonl"
                    storage.write_jsonl(file, [{"update": update, **vars(turns[-1])}])
        groups = [group for turn in turns for group in turn.groups]
        return groups, cohort, sum(turn.prompts_cut for turn in turns)

    def _check_format(self) -> None:
        rows = self.processes.on_main(lambda: self.run.read_metrics(self.name))
        read = f"Read the completions in dialogues/{self.name}/update-{self.progress.updates:04d}.jsonl"
        end = self.total_updates if self.name == "ppo" else min(self.total_updates, count_updates(self.cfg))
        over = self.progress.updates >= end  # an ablation ends where all are compared
        silence.check_format(self.name, rows, self.cfg.ppo.format_patience, read, over=over)

    def _count_cuts(self) -> int:
        """Prompts that lost turns so far, as the main process counts them."""
        return self.processes.on_main(lambda: getattr(self.sampler, "n_cut", 0))

    def _scales(self) -> list[float]:
        """Shares of the learning rates at the steps of the next update."""
        settings, first = self.cfg.ppo, self.progress.optimizer_steps
        samples = self.cfg.rollout.users * self.cfg.rollout.samples * self.turns_per_update
        steps = settings.epochs * -(-samples // settings.minibatch)
        total = self.total_updates * steps
        return [ppo.lr_scale(first + i, total, settings.warmup, settings.lr_floor) for i in range(steps)]

    def _forget_later_metrics(self) -> None:
        """Drop rows of updates that the checkpoint does not hold: they are done again."""
        rows = self.run.read_metrics(self.name)
        kept = [row for row in rows if row["update"] <= self.progress.updates]
        if len(kept) < len(rows):
            self.run.write_jsonl(f"metrics/{self.name}.jsonl", kept)


def _progress_line(metrics: dict, total: int) -> str:
    return (
        f"update {metrics['update']}/{total} turn {metrics['turn']}: reward {metrics['reward_total']:.3f} "
        f"(profile {metrics['reward_profile']:.3f}, response {metrics['reward_response']:.3f}) "
        f"format {metrics['format_rate']:.2f} KL {metrics['kl']:.4f}"
    )
