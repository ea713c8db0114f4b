"""The training loop: rollout, experience, update, log, checkpoint, in the order of the released schedule."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlpa_lib.agents import parties
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.judging import Judge
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.protocols import Policy, SimulatedUser
from rlpa_lib.rlpa import checkpoints, experience, ppo, unfinished
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.rlpa.rollout import Cohort, Sampling, TurnGroup, advance, start
from rlpa_lib.rlpa.shared_parties import SharedJudge, SharedPolicy, SharedUser
from rlpa_lib.rlpa.training_metrics import data_metrics, progress_line, reward_metrics, sample_rows
from rlpa_lib.rlpa.unfinished import TakenTurn
from rlpa_lib.runs import storage
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import Config, InputError

COMPARED = "ablation-PRR"  # the adapter with both rewards that 21_ablations takes from 20_ppo


@dataclass(frozen=True)
class Progress:
    """Where training stands: updates and optimiser steps done, the cohort's dialogues, and an adaptive KL coefficient (None: as set)."""

    updates: int = 0
    optimizer_steps: int = 0
    turn: int = 0
    dialogues: tuple[Dialogue, ...] = ()
    kl_coef: float | None = None

    def to_json(self) -> dict:
        """Plain values; `from_json` reads them back."""
        return {**storage.plain({k: v for k, v in vars(self).items() if k != "dialogues"}),
                "dialogues": [d.to_json() for d in self.dialogues]}

    @staticmethod
    def from_json(data: dict) -> Progress:
        """Inverse of `to_json`."""
        return Progress(**{**data, "dialogues": tuple(Dialogue.from_json(d) for d in data["dialogues"])})


def cohort_personas(pool: Sequence[Persona], users: int, cohort: int, seed: int) -> list[Persona]:
    """Users of the cohort-th cohort: the pool in seeded order, shuffled anew after each pass; no user is left over."""
    chosen = []
    for position in range(cohort * users, (cohort + 1) * users):
        rounds, place = divmod(position, len(pool))
        order = list(range(len(pool)))
        random.Random(derive_seed(seed, "personas", rounds)).shuffle(order)
        chosen.append(pool[order[place]])
    return chosen


def updates_until(cfg: Config, iterations: int | None = None) -> int:
    """Updates of the first `iterations` cohorts; by default of those after which ablations are compared (all without that setting)."""
    cohorts = iterations or min(cfg.ablations.iterations or cfg.ppo.iterations, cfg.ppo.iterations)
    return cohorts * (1 if cfg.ppo.update_every == "dialogue" else cfg.rollout.turns)


class Trainer:
    """PPO on simulated dialogues (section 3.4, appendix B). One iteration takes a cohort of `rollout.users` new users through all turns.

    `ppo.update_every: turn` updates after each turn, so weights change within a dialogue (released code); `dialogue`
    once at the cohort's end. `ppo.turn_discount` chooses the credit scheme (`credit`). A policy that samples on servers has
    `refresh(folder, version)` or `load_adapter(folder, version)`: it is called with the adapter before the first rollout and after
    each update, and the trainer then computes the old log-probabilities itself. Leaves metrics/<name>.jsonl, dialogues/<name>/,
    checkpoints/<name>/ and adapters/<name>/ (models/<name>/ after full tuning) in the run, of `ppo` also the adapter at which ablations are
    compared (adapters/ablation-PRR), and goes on from its checkpoint when there is one; every random choice follows from (seed, update).
    Of several processes only the main one needs user, judge and a policy on servers, and only it writes.
    """

    def __init__(
        self,
        run: Run,
        learner: Learner,
        tokenizer,
        user: SimulatedUser,
        judge: Judge,
        personas: Sequence[Persona],
        *,
        system_prompt: str,
        name: str = "ppo",
        policy: Policy | None = None,
    ):
        self.run, self.cfg, self.learner, self.name = run, run.cfg, learner, name
        _check(self.cfg, personas)
        self.user, self.judge, self.personas, self.tokenizer = user, judge, personas, tokenizer
        rollout, settings = self.cfg.rollout, self.cfg.ppo
        self.policy = policy or parties.make_local_policy(learner.model, tokenizer, run.cfg)
        self.serve = getattr(self.policy, "refresh", None) or getattr(self.policy, "load_adapter", None)
        self.allowed_lag, self.processes = getattr(self.policy, "max_policy_lag", 0), learner.processes
        self.served = self.processes.on_main(lambda: self.serve is not None)
        if self.processes.world > 1:
            self.user, self.judge = SharedUser(user, self.processes), SharedJudge(judge, self.processes)
            self.policy = SharedPolicy(self.policy, self.processes, on_main=self.served)
        if self.served and self.cfg.policy.tuning != "lora":
            raise InputError("policy.tuning: full tuning has no adapter that a server could swap in; sample in process")
        self.sampling = Sampling(
            rollout.samples,
            rollout.continuation,
            system_prompt,
            settings.history_profiles,
            settings.reward_parts,
            rollout.temperature,
            rollout.max_new_tokens,
            rollout.fallback,
        )
        self.turns_per_update = rollout.turns if settings.update_every == "dialogue" else 1
        self.total_updates = updates_until(self.cfg, settings.iterations)
        self.compared = updates_until(self.cfg) if name == "ppo" and settings.reward_parts == "PRR" else None
        self.progress = Progress()
        self.waiting = run.path(f"checkpoints/{name}-rollout")

    def train(self, *, until: int | None = None, say: Callable[[str], None] = print) -> list[dict]:
        """Train up to update `until` (default: the end) and return the metrics of all updates so far."""
        checkpoint = self.run.path(f"checkpoints/{self.name}")
        saved = checkpoints.load(self.learner, checkpoint)
        self.progress = Progress.from_json(saved) if saved else Progress()
        self.processes.on_main(self._forget_later_metrics)
        self._serve_adapter()
        board = _tensorboard(self.run, self.name, self.progress.updates) if self.cfg.run.tensorboard and self.processes.main else None
        last = min(self.total_updates, until or self.total_updates)
        while self.progress.updates < last:
            metrics = self._one_update()
            if self.progress.updates == self.compared:  # before the checkpoint, so that a resumed training has it for certain
                self._save_policy(COMPARED)
            if self.progress.updates % self.cfg.ppo.checkpoint_every == 0 or self.progress.updates == last:
                checkpoints.save(self.learner, checkpoint, self.progress.to_json())
            if self.processes.main:
                unfinished.clear(self.waiting)
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

    def _note(self, metrics: dict, board, say: Callable[[str], None]) -> None:
        self.run.log_metrics(self.name, metrics)
        if board:
            for key, value in metrics.items():
                board.add_scalar(f"{self.name}/{key}", value, metrics["update"])
        say(progress_line(metrics, self.total_updates))

    def _serve_adapter(self) -> None:
        """Write the adapter once and have every server sample with it from now on; adapters that no server may use are deleted."""
        if not self.served:
            return
        version, folder = self.progress.updates, self.run.path(f"adapters/{self.name}-served")
        written = checkpoints.save_adapter(self.learner, folder / f"v{version:06d}")
        self.processes.on_main(lambda: self.serve(written, version))
        for old in folder.glob("v*") if self.processes.main else ():
            if int(old.name[1:]) < version - self.allowed_lag:
                shutil.rmtree(old)

    def _one_update(self) -> dict:
        clock, settings = [time.perf_counter()], self.cfg.ppo
        index, iteration = self.progress.updates, self.progress.updates * self.turns_per_update // self.cfg.rollout.turns
        seed = derive_seed(self.run.seed, "iteration", iteration)
        groups, cohort, prompts_cut = self._rollout(iteration, seed)
        clock.append(time.perf_counter())
        coef = settings.kl_coef if self.progress.kl_coef is None else self.progress.kl_coef
        data = experience.gather_experience(self.learner, groups, kl_coef=coef, elsewhere=self.served)
        clock.append(time.perf_counter())
        learned = experience.update(self.learner, data, seed=derive_seed(seed, "update", index), scales=self._scales())
        clock.append(time.perf_counter())
        done, measured = cohort.turn >= self.cfg.rollout.turns, data_metrics(data)
        n_replies = len(data.keep)
        self.progress = Progress(
            index + 1,
            self.progress.optimizer_steps + learned.pop("optimizer_steps"),
            0 if done else cohort.turn,
            () if done else cohort.dialogues,
            ppo.adapt_kl_coef(coef, measured["kl_reply"], settings.kl_target, settings.kl_horizon, n_replies),
        )
        if self.processes.main:
            self.run.write_jsonl(f"dialogues/{self.name}/update-{index + 1:04d}.jsonl", sample_rows(groups))
        phases = ("rollout", "experience", "update")
        seconds = {f"seconds_{phase}": b - a for phase, a, b in zip(phases, clock[:-1], clock[1:], strict=True)}
        head = {"update": index + 1, "iteration": iteration + 1, "turn": cohort.turn, "kl_coef": coef}
        tail = {"prompts_cut": prompts_cut, **self._lag(groups)}
        return {**head, **reward_metrics(groups), **measured, **learned, **seconds, **tail}

    def _lag(self, groups: Sequence[TurnGroup]) -> dict[str, int]:
        """How many updates old the oldest adapter was that sampled here; only where servers sample."""
        if not self.served:
            return {}
        return {"policy_lag": self.progress.updates - 1 - min(s.completion.version for g in groups for s in g.samples)}

    def _rollout(self, iteration: int, seed: int) -> tuple[list[TurnGroup], Cohort, int]:
        """Groups of the turns that one update sees, the cohort after them, and how many prompts were cut.

        With more than one turn an update each turn is kept on disk until the update is saved: a rollout that stops goes on from there.
        """
        personas = cohort_personas(self.personas, self.cfg.rollout.users, iteration, self.run.seed)
        cohort = start(personas, self.sampling)
        if self.progress.turn:
            cohort = Cohort(cohort.personas, self.progress.dialogues, self.progress.turn)
        update, several = self.progress.updates, self.turns_per_update > 1
        turns = [unfinished.parse_turn(rows) for rows in self.processes.on_main(lambda: unfinished.read(self.waiting, update))] if several else []
        with self.learner.whole():
            while len(turns) < self.turns_per_update:
                if turns:
                    cohort = Cohort(cohort.personas, turns[-1].dialogues, turns[-1].groups[0].turn)
                cuts = getattr(self.policy, "n_cut", 0)
                groups, cohort = advance(cohort, self.policy, self.user, self.judge, self.sampling, seed=seed)
                turns.append(TakenTurn(groups, cohort.dialogues, getattr(self.policy, "n_cut", 0) - cuts))
                if several and self.processes.main:
                    unfinished.keep(self.waiting, update, turns[-1])
        cohort = Cohort(cohort.personas, turns[-1].dialogues, turns[-1].groups[0].turn)
        return [group for turn in turns for group in turn.groups], cohort, sum(turn.prompts_cut for turn in turns)

    def _scales(self) -> list[float]:
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


def _check(cfg: Config, personas: Sequence[Persona]) -> None:
    if cfg.rollout.top_p < 1:
        raise InputError("rollout.top_p: training samples from the whole distribution; use 1")
    if not personas:
        raise InputError("personas: there is no training user")


def _tensorboard(run: Run, name: str, updates: int):
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and a run may do without

    return SummaryWriter(run.path(f"tensorboard/{name}"), purge_step=updates + 1)
