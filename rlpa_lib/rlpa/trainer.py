"""The training loop: rollout, experience, update, log, checkpoint, in the order of the released schedule."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pydantic import TypeAdapter

from rlpa_lib.agents import models
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.judging import Judge
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.protocols import Policy, SimulatedUser
from rlpa_lib.rlpa import checkpoints, experience, ppo
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.rlpa.processes import MainOnly, SharedPolicy
from rlpa_lib.rlpa.rollout import Cohort, Sampling, TurnGroup, advance, reward_metrics, sample_rows, start
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import Config, InputError

COMPARED = "ablation-PRR"  # the adapter with both rewards that 21_ablations takes from 20_ppo


@dataclass(frozen=True)
class Progress:
    """Where training stands: updates and optimiser steps done, the cohort's turn and dialogues, and an
    adaptive KL coefficient (None: as set)."""

    updates: int = 0
    optimizer_steps: int = 0
    turn: int = 0
    dialogues: tuple[Dialogue, ...] = ()
    kl_coef: float | None = None


def draw_cohort(pool: Sequence[Persona], users: int, cohort: int, seed: int) -> list[Persona]:
    """Users of the cohort-th cohort: the pool in seeded order, shuffled anew after each pass over all."""
    chosen = []
    for position in range(cohort * users, (cohort + 1) * users):
        rounds, place = divmod(position, len(pool))
        order = list(range(len(pool)))
        random.Random(derive_seed(seed, "personas", rounds)).shuffle(order)
        chosen.append(pool[order[place]])
    return chosen


def count_updates(cfg: Config, iterations: int | None = None) -> int:
    """Updates of the first `iterations` cohorts; by default up to where ablations are compared (or all)."""
    cohorts = iterations or min(cfg.ablations.iterations or cfg.ppo.iterations, cfg.ppo.iterations)
    return cohorts * (1 if cfg.ppo.update_every == "dialogue" else cfg.rollout.turns)


class Trainer:
    """PPO on simulated dialogues (section 3.4, appendix B): each iteration takes `rollout.users` new users.

    `ppo.update_every: turn` updates after each turn, so weights change within a dialogue (released code);
    `dialogue` once at the cohort's end. A policy on servers has `refresh` or `load_adapter` (folder,
    version): it gets the adapter before the first rollout and after each update, and the trainer computes the
    old log-probabilities itself. Leaves metrics/<name>.jsonl, dialogues/<name>/, checkpoints/<name>/ and
    adapters/<name>/ (models/<name>/ after full tuning), of `ppo` also the adapter at which ablations are
    compared, and goes on from its checkpoint; every random choice follows from (seed, update). Of several
    processes only the main one needs user, judge and servers.
    """

    def __init__(
        self, run: Run, learner: Learner, tokenizer, user: SimulatedUser, judge: Judge,
        personas: Sequence[Persona], *, system_prompt: str, name: str = "ppo", policy: Policy | None = None,
    ):  # fmt: skip
        self.run, self.cfg, self.learner, self.name = run, run.cfg, learner, name
        rollout, settings, self.processes = self.cfg.rollout, self.cfg.ppo, learner.processes
        if rollout.top_p < 1:
            raise InputError("rollout.top_p: training samples from the whole distribution; use 1")
        if not personas:
            raise InputError("personas: there is no training user")
        self.user, self.judge, self.personas, self.tokenizer = user, judge, personas, tokenizer
        self.policy = self.sampler = policy or models.make_local_policy(learner.model, tokenizer, run.cfg)
        self.serve = getattr(self.sampler, "refresh", None) or getattr(self.sampler, "load_adapter", None)
        self.served = self.processes.on_main(lambda: self.serve is not None)
        if self.served and self.cfg.policy.tuning != "lora":
            why = "full tuning has no adapter that a server could swap in"
            raise InputError(f"policy.tuning: {why}; sample in process")
        if self.processes.world > 1:
            self.user, self.judge = MainOnly(user, self.processes), MainOnly(judge, self.processes)
            self.policy = (MainOnly if self.served else SharedPolicy)(self.policy, self.processes)
        self.sampling = Sampling(
            samples=rollout.samples, continuation=rollout.continuation, system_prompt=system_prompt,
            history_profiles=settings.history_profiles, parts=settings.reward_parts,
            temperature=rollout.temperature, max_new_tokens=rollout.max_new_tokens, fallback=rollout.fallback,
        )  # fmt: skip
        self.turns_per_update = rollout.turns if settings.update_every == "dialogue" else 1
        self.total_updates = count_updates(self.cfg, settings.iterations)
        self.compared = count_updates(self.cfg) if name == "ppo" and settings.reward_parts == "PRR" else None
        self.progress = Progress()
        self.waiting = run.path(f"checkpoints/{name}-rollout")

    def train(self, *, until: int | None = None, say: Callable[[str], None] = print) -> list[dict]:
        """Train up to update `until` (default: the end) and return the metrics of all updates so far."""
        checkpoint = self.run.path(f"checkpoints/{self.name}")
        saved = checkpoints.load(self.learner, checkpoint)
        self.progress = TypeAdapter(Progress).validate_python(saved or {})
        self.processes.on_main(self._forget_later_metrics)
        self._serve_adapter()
        board = self._open_tensorboard() if self.cfg.run.tensorboard and self.processes.main else None
        last = min(self.total_updates, until or self.total_updates)
        while self.progress.updates < last:
            metrics = self._one_update()
            if self.progress.updates == self.compared:  # before the checkpoint, so that a resumed run has it
                self._save_policy(COMPARED)
            if self.progress.updates % self.cfg.ppo.checkpoint_every == 0 or self.progress.updates == last:
                checkpoints.save(self.learner, checkpoint, self.progress)
            if self.processes.main:
                shutil.rmtree(self.waiting, ignore_errors=True)
            self._serve_adapter()
            if self.processes.main:
                self._note(metrics, board, say)
        if board:
            board.close()
        self._save_policy(self.name)
        return self.processes.on_main(lambda: self.run.read_metrics(self.name))

    def _save_policy(self, name: str) -> None:
        if self.cfg.policy.tuning == "lora":
            checkpoints.save_adapter(self.learner, self.run.path(f"adapters/{name}"))
        else:
            checkpoints.save_model(self.learner, self.tokenizer, self.run.path(f"models/{name}"))

    def _open_tensorboard(self):
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and a run may do without

        return SummaryWriter(self.run.path(f"tensorboard/{self.name}"), purge_step=self.progress.updates + 1)

    def _note(self, metrics: dict, board, say: Callable[[str], None]) -> None:
        self.run.log_metrics(self.name, metrics)
        if board:
            for key, value in metrics.items():
                board.add_scalar(f"{self.name}/{key}", value, metrics["update"])
        say(progress_line(metrics, self.total_updates))

    def _serve_adapter(self) -> None:
        """Write the adapter, have every server sample with it from now on, delete those of no more use."""
        if not self.served:
            return
        version, folder = self.progress.updates, self.run.path(f"adapters/{self.name}-served")
        written = checkpoints.save_adapter(self.learner, folder / f"v{version:06d}")
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
        clock.append(time.perf_counter())
        coef = settings.kl_coef if before.kl_coef is None else before.kl_coef
        data = experience.gather_experience(self.learner, groups, kl_coef=coef, elsewhere=self.served)
        clock.append(time.perf_counter())
        update_seed = derive_seed(seed, "update", before.updates)
        learned = experience.update(self.learner, data, seed=update_seed, scales=self._scales())
        clock.append(time.perf_counter())
        done, measured = cohort.turn >= self.cfg.rollout.turns, experience.data_metrics(data)
        self.progress = Progress(
            updates=before.updates + 1,
            optimizer_steps=before.optimizer_steps + learned.pop("optimizer_steps"),
            turn=0 if done else cohort.turn,
            dialogues=() if done else cohort.dialogues,
            kl_coef=ppo.adapt_kl_coef(
                coef, measured["kl_reply"], settings.kl_target, settings.kl_horizon, len(data.keep)
            ),
        )
        if self.processes.main:
            file = f"dialogues/{self.name}/update-{self.progress.updates:04d}.jsonl"
            self.run.write_jsonl(file, sample_rows(groups))
        phases = ("seconds_rollout", "seconds_experience", "seconds_update")
        seconds = {phase: b - a for phase, a, b in zip(phases, clock[:-1], clock[1:], strict=True)}
        head = {"update": before.updates + 1, "iteration": iteration + 1, "turn": cohort.turn}
        tail = {"prompts_cut": prompts_cut}
        if self.served:  # how many updates old the oldest adapter was that sampled here
            tail["policy_lag"] = before.updates - min(s.completion.version for g in groups for s in g.samples)
        return {**head, "kl_coef": coef, **reward_metrics(groups), **measured, **learned, **seconds, **tail}

    def _rollout(self, iteration: int, seed: int) -> tuple[list[TurnGroup], Cohort, int]:
        """Groups of the turns that one update sees, the cohort after them, and how many prompts were cut.

        With more than one turn an update each turn is kept on disk until the update is saved: a rollout that
        stops goes on from there.
        """
        people = draw_cohort(self.personas, self.cfg.rollout.users, iteration, self.run.seed)
        cohort, update = start(people, self.sampling), self.progress.updates
        several, turns = self.turns_per_update > 1, []
        if several:
            turns = self.processes.on_main(lambda: checkpoints.load_turns(self.waiting, update))
        dialogues = turns[-1].dialogues if turns else self.progress.dialogues
        cohort = replace(cohort, dialogues=dialogues or cohort.dialogues)
        with self.learner.gather_weights():
            while len(turns) < self.turns_per_update:
                cuts = self._count_cuts()
                groups, cohort = advance(cohort, self.policy, self.user, self.judge, self.sampling, seed=seed)
                turns.append(checkpoints.KeptTurn(groups, cohort.dialogues, self._count_cuts() - cuts))
                if several and self.processes.main:
                    checkpoints.save_turn(self.waiting, update, turns[-1])
        groups = [group for turn in turns for group in turn.groups]
        return groups, cohort, sum(turn.prompts_cut for turn in turns)

    def _count_cuts(self) -> int:
        """Prompts that lost turns so far, as the main process counts them."""
        return self.processes.on_main(lambda: getattr(self.sampler, "n_cut", 0))

    def _scales(self) -> list[float]:
        """Shares of the learning rates at the steps of the next update."""
        settings, rollout = self.cfg.ppo, self.cfg.rollout
        samples = rollout.users * rollout.samples * self.turns_per_update
        steps = settings.epochs * -(-samples // settings.minibatch)
        first, total = self.progress.optimizer_steps, self.total_updates * steps
        return [ppo.lr_scale(first + i, total, settings.warmup, settings.lr_floor) for i in range(steps)]

    def _forget_later_metrics(self) -> None:
        """Drop rows of updates that the checkpoint does not hold: they are done again."""
        rows = self.run.read_metrics(self.name)
        kept = [row for row in rows if row["update"] <= self.progress.updates]
        if len(kept) < len(rows):
            self.run.write_jsonl(f"metrics/{self.name}.jsonl", kept)


def progress_line(metrics: dict, total: int) -> str:
    """One line for the screen."""
    return (
        f"update {metrics['update']}/{total} turn {metrics['turn']}: reward {metrics['reward_total']:.3f} "
        f"(profile {metrics['reward_profile']:.3f}, response {metrics['reward_response']:.3f}) "
        f"format {metrics['format_rate']:.2f} KL {metrics['kl']:.4f}"
    )
