"""The training loop: rollout, experience, update, log, checkpoint, in the order of the released schedule."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from rlpa_lib import checkpoints, experience, ppo, storage
from rlpa_lib.config import Config, InputError
from rlpa_lib.dialogue import Dialogue
from rlpa_lib.judges import CRITERIA, Judge
from rlpa_lib.learner import Learner
from rlpa_lib.personas import Persona
from rlpa_lib.policies import LocalPolicy, Policy, derive_seed
from rlpa_lib.rollout import Cohort, Sample, Sampling, TurnGroup, advance, start
from rlpa_lib.runs import Run
from rlpa_lib.users import SimulatedUser


@dataclass(frozen=True)
class Progress:
    """Where training stands: updates and optimiser steps done, and the cohort's dialogues as they are."""

    updates: int = 0
    optimizer_steps: int = 0
    turn: int = 0
    dialogues: tuple[Dialogue, ...] = ()

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


class Trainer:
    """PPO on simulated dialogues (section 3.4, appendix B). One iteration takes a cohort of `rollout.users` new users through all turns.

    `ppo.update_every: turn` updates after each turn, so weights change within a dialogue (released code); `dialogue`
    once at the cohort's end. Leaves metrics/<name>.jsonl, dialogues/<name>/, checkpoints/<name>/ and adapters/<name>/ in
    the run, and goes on from its checkpoint when there is one; every random choice follows from (seed, update).
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
        self.user, self.judge, self.personas = user, judge, personas
        rollout, settings = self.cfg.rollout, self.cfg.ppo
        self.policy = policy or LocalPolicy(
            learner.model, tokenizer, max_prompt_tokens=rollout.max_prompt_tokens, batch_prompts=rollout.micro_batch
        )
        self.sampling = Sampling(
            rollout.samples,
            rollout.continuation,
            system_prompt,
            settings.history_profiles,
            settings.reward_parts,
            rollout.temperature,
            rollout.max_new_tokens,
        )
        self.turns_per_update = rollout.turns if settings.update_every == "dialogue" else 1
        self.total_updates = settings.iterations * rollout.turns // self.turns_per_update
        self.progress = Progress()

    def train(self, *, until: int | None = None, say: Callable[[str], None] = print) -> list[dict]:
        """Train up to update `until` (default: the end) and return the metrics of all updates so far."""
        checkpoint = self.run.path(f"checkpoints/{self.name}")
        saved = checkpoints.load(self.learner, checkpoint)
        self.progress = Progress.from_json(saved) if saved else Progress()
        self._forget_later_metrics()
        writer = _tensorboard(self.run, self.name, self.progress.updates) if self.cfg.run.tensorboard else None
        last = min(self.total_updates, until or self.total_updates)
        while self.progress.updates < last:
            metrics = self._one_update()
            if self.progress.updates % self.cfg.ppo.checkpoint_every == 0 or self.progress.updates == last:
                checkpoints.save(self.learner, checkpoint, self.progress.to_json())
            self.run.log_metrics(self.name, metrics)
            if writer:
                for key, value in metrics.items():
                    writer.add_scalar(f"{self.name}/{key}", value, metrics["update"])
            say(progress_line(metrics, self.total_updates))
        if writer:
            writer.close()
        checkpoints.save_adapter(self.learner, self.run.path(f"adapters/{self.name}"))
        return self.run.read_metrics(self.name)

    def _one_update(self) -> dict:
        clock = [time.perf_counter()]
        index, iteration = self.progress.updates, self.progress.updates * self.turns_per_update // self.cfg.rollout.turns
        seed = derive_seed(self.run.seed, "iteration", iteration)
        groups, cohort = self._rollout(iteration, seed)
        clock.append(time.perf_counter())
        data = experience.gather_experience(self.learner, groups)
        clock.append(time.perf_counter())
        learned = experience.update(
            self.learner, data, seed=derive_seed(seed, "update", index), scales=self._scales()
        )
        clock.append(time.perf_counter())
        done = cohort.turn >= self.cfg.rollout.turns
        self.progress = Progress(
            index + 1,
            self.progress.optimizer_steps + learned.pop("optimizer_steps"),
            0 if done else cohort.turn,
            () if done else cohort.dialogues,
        )
        self.run.write_jsonl(f"dialogues/{self.name}/update-{index + 1:04d}.jsonl", sample_rows(groups))
        phases = ("rollout", "experience", "update")
        seconds = {f"seconds_{phase}": b - a for phase, a, b in zip(phases, clock[:-1], clock[1:], strict=True)}
        head = {"update": index + 1, "iteration": iteration + 1, "turn": cohort.turn}
        return {**head, **reward_metrics(groups), **data_metrics(data), **learned, **seconds, **self._prompt_cuts()}

    def _rollout(self, iteration: int, seed: int) -> tuple[list[TurnGroup], Cohort]:
        personas = cohort_personas(self.personas, self.cfg.rollout.users, iteration, self.run.seed)
        cohort = start(personas, self.sampling)
        if self.progress.turn:
            cohort = Cohort(cohort.personas, self.progress.dialogues, self.progress.turn)
        groups: list[TurnGroup] = []
        for _ in range(self.turns_per_update):
            done, cohort = advance(cohort, self.policy, self.user, self.judge, self.sampling, seed=seed)
            groups += done
        return groups, cohort

    def _scales(self) -> list[float]:
        settings, rollout = self.cfg.ppo, self.cfg.rollout
        samples = rollout.users * rollout.samples * self.turns_per_update
        steps = settings.epochs * -(-samples // settings.minibatch)
        first, total = self.progress.optimizer_steps, self.total_updates * steps
        return [ppo.lr_scale(first + i, total, settings.warmup, settings.lr_floor) for i in range(steps)]

    def _prompt_cuts(self) -> dict[str, int]:
        return {"prompts_cut": self.policy.n_cut} if isinstance(self.policy, LocalPolicy) else {}

    def _forget_later_metrics(self) -> None:
        """Drop rows of updates that the checkpoint does not hold: they are done again."""
        rows = self.run.read_metrics(self.name)
        kept = [row for row in rows if row["update"] <= self.progress.updates]
        if len(kept) < len(rows):
            self.run.write_jsonl(f"metrics/{self.name}.jsonl", kept)


def _check(cfg: Config, personas: Sequence[Persona]) -> None:
    if cfg.ppo.turn_discount > 0:
        raise InputError("ppo.turn_discount: the discounted multi-turn mode (eq. 1) is not in this release yet; use 0")
    if cfg.rollout.top_p < 1:
        raise InputError("rollout.top_p: training samples from the whole distribution; use 1")
    if not personas:
        raise InputError("personas: there is no training user")


def _tensorboard(run: Run, name: str, updates: int):
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and a run may do without

    return SummaryWriter(run.path(f"tensorboard/{name}"), purge_step=updates + 1)


def reward_metrics(groups: Sequence[TurnGroup]) -> dict[str, float]:
    """Means over samples of every reward part, and what the samples look like; shares in 0..1, lengths in tokens."""
    samples = [s for g in groups for s in g.samples]
    rewards = [s.reward for s in samples if s.reward is not None]
    chosen = [g.samples[g.chosen].reward for g in groups]
    guesses, inferred = sum(r.n_unrevealed_guesses for r in rewards), sum(r.n_inferred for r in rewards)
    means = {name: fmean(getattr(r, name) for r in rewards) for name in ("total", "profile", "response", "precision", "recall")}
    return {
        **{f"reward_{name}" if name in ("total", "profile", "response") else name: x for name, x in means.items()},
        "reward_total_chosen": fmean(r.total for r in chosen if r is not None) if any(chosen) else float("nan"),
        **{name: fmean(r.criteria[name] for r in rewards) for name in CRITERIA},
        "format_rate": fmean(r.format_ok for r in rewards),
        "unjudged_share": 1 - len(rewards) / len(samples),
        "unrevealed_share": guesses / inferred if inferred else 0.0,
        "unrevealed_precision": sum(r.n_unrevealed_matched for r in rewards) / guesses if guesses else float("nan"),
        "profile_items": inferred / len(rewards),
        "distinct_responses": len({s.reply.response for s in samples}) / len(samples),
        "finished_share": fmean(s.completion.finished for s in samples),
        "prompt_tokens": fmean(len(g.prompt_ids) for g in groups),
        "completion_tokens": fmean(len(s.completion.token_ids) for s in samples),
    }


def data_metrics(data: experience.Experience) -> dict[str, float]:
    """KL to the reference (k1 and k3, nats a token), mean return, and how well the values explain the returns."""
    mean = lambda x: float(ppo.masked_mean(x, data.keep))  # noqa: E731
    return {
        "kl": mean(ppo.kl_estimate(data.old_logprobs, data.reference, "k1")),
        "kl_k3": mean(ppo.kl_estimate(data.old_logprobs, data.reference, "k3")),
        "return": mean(data.returns),
        "explained_variance": ppo.explained_variance(data.values, data.returns, data.keep),
    }


def sample_rows(groups: Sequence[TurnGroup]) -> list[dict]:
    """One row a sample for dialogues/: where it belongs, its text and its reward."""
    return [
        {"dialogue": g.dialogue_id, "turn": g.turn, "sample": i, "chosen": i == g.chosen, **_sample_row(s)}
        for g in groups
        for i, s in enumerate(g.samples)
    ]


def _sample_row(sample: Sample) -> dict:
    return {"completion": sample.completion.text, "reward": None if sample.reward is None else vars(sample.reward)}


def progress_line(metrics: dict, total: int) -> str:
    """One line for the screen."""
    return (
        f"update {metrics['update']}/{total} turn {metrics['turn']}: reward {metrics['reward_total']:.3f} "
        f"(profile {metrics['reward_profile']:.3f}, response {metrics['reward_response']:.3f}) "
        f"format {metrics['format_rate']:.2f} KL {metrics['kl']:.4f}"
    )
