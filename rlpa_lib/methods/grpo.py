"""GRPO as a comparator (what does PPO's critic buy?) through TRL's GRPOTrainer, on PPO's rewards and users.

What differs from `rlpa.training.Trainer`:
- no critic: a sample's advantage is its reward minus the mean of the `grpo.samples` rewards of its prompt,
  over their deviation, the same for all its tokens; PPO has GAE with a value per token;
- the moments that are trained on are fixed for a round: `grpo.users` users (in PPO's order) talk through all
  their turns with the policy as it stands, one sample a turn going on, then each moment is trained on once,
  in a seeded order. PPO trains after every turn, and its best sample goes on;
- the KL term stands in the loss (k3, against the base model); PPO puts k1 into the reward;
- the learning rate is constant within a round; moments of the optimiser go on from round to round.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import datasets
import torch
from peft import get_peft_model
from trl import GRPOConfig, GRPOTrainer

from rlpa_lib.agents import models
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.dialogue import Dialogue, policy_view
from rlpa_lib.dialogue.judging import Judge, JudgeFailed
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import parse_reply
from rlpa_lib.dialogue.protocols import Policy, SimulatedUser
from rlpa_lib.dialogue.turns import play_turns
from rlpa_lib.methods import trainers
from rlpa_lib.methods.plain_state import PlainState, find_newest, load_optimizer, load_weights
from rlpa_lib.methods.table import Answer
from rlpa_lib.methods.training_data import fit_messages
from rlpa_lib.rlpa.rewards import Reward, score_replies
from rlpa_lib.rlpa.rollout import Sampling, draw_cohort
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import InputError

NAME = "grpo"


class PlainGRPO(PlainState, GRPOTrainer):
    """TRL's GRPOTrainer without pickles, going on with the optimiser of an earlier round."""

    inherited: Path | None = None

    def create_optimizer(self, *args, **kwargs):
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if fresh and self.inherited is not None:
            load_optimizer(self.optimizer, self.inherited)
        return optimizer


@dataclass(frozen=True)
class Moment:
    """A user, and its dialogue with the utterance that waits for a reply: what a prompt is made of."""

    persona: Persona
    dialogue: Dialogue


def collect_moments(
    policy: Policy, user: SimulatedUser, personas: Sequence[Persona], turns: int, sampling: Sampling,
    seed: int,
) -> list[Moment]:
    """The E x K moments of E dialogues in which one sample a turn goes on; no judge is asked."""

    def answer(_: Sequence[Persona], heard: Sequence[Dialogue]) -> list[Answer]:
        views = [policy_view(d, sampling.system_prompt, sampling.history_profiles) for d in heard]
        at = derive_seed(seed, "moment", len(heard[0].turns))
        groups = policy.generate(views, 1, seed=at, temperature=sampling.temperature,
                                 max_new_tokens=sampling.max_new_tokens)  # fmt: skip
        return [Answer(c.text, parse_reply(c.text), c.n_generated) for (c,) in groups]

    start = [Dialogue(f"{i:04d}-{persona.id}", persona.id) for i, persona in enumerate(personas)]
    played = play_turns(personas, start, user, answer, turns=turns, fallback=sampling.fallback)
    return [Moment(p, d) for turn in played for p, d in zip(personas, turn.heard, strict=True)]


def make_sampler(policy: Policy, samples: int, sampling: Sampling, seed: int) -> Callable:
    """PPO's sampler in the place of `model.generate` (TRL's `rollout_func`).

    It is faster, and samples the same at a step whatever came before it.
    """

    def sample(given: list, trainer: GRPOTrainer) -> dict[str, list]:
        at = derive_seed(seed, "step", trainer.state.global_step)
        groups = policy.generate(given[::samples], samples, seed=at, temperature=sampling.temperature,
                                 max_new_tokens=sampling.max_new_tokens)  # fmt: skip
        drawn = [completion for group in groups for completion in group]
        return {
            "prompt_ids": [list(c.prompt_ids) for c in drawn],
            "completion_ids": [list(c.token_ids) for c in drawn],
            "logprobs": [list(c.logprobs) for c in drawn],
        }

    return sample


def make_reward_function(
    judge: Judge, moments: Sequence[Moment], parts: str, samples: int, max_failures: float
) -> Callable:
    """The reward as GRPOTrainer asks for it: column `moment` says which moment a completion answers.

    A completion that the judge could not read gets the mean of its group, and so no advantage; RuntimeError
    when more than the share `max_failures` of a batch is such, JudgeFailed when all are.
    """

    def turn_reward(completions, moment, log_metric, **_) -> list[float]:
        replies = [parse_reply(c[0]["content"]) for c in completions]
        personas, dialogues = [moments[i].persona for i in moment], [moments[i].dialogue for i in moment]
        rewards = score_replies(judge, personas, dialogues, replies, parts)
        judged = [reward for reward in rewards if reward is not None]
        failed, n = len(rewards) - len(judged), len(rewards)
        if failed > max_failures * n:
            limit = "run.max_judge_failure_rate"
            raise RuntimeError(f"the judge failed on {failed} of {n} samples, more than {limit}")
        if not judged:
            none = f"the judge gave no readable answer to any of the {n} samples of this step"
            raise JudgeFailed(f"{none}; look at judgements/")
        for name in ("profile", "response", "format_ok", "n_inferred"):
            log_metric(f"turn_{name}", fmean(float(getattr(reward, name)) for reward in judged))
        return fill_rewards(rewards, samples)

    return turn_reward


def fill_rewards(rewards: Sequence[Reward | None], samples: int) -> list[float]:
    """Totals of groups of `samples` in a row; where there is none, its group's mean, or 0."""
    totals = []
    for start in range(0, len(rewards), samples):
        group = [reward.total if reward else None for reward in rewards[start : start + samples]]
        known = [total for total in group if total is not None]
        mean = fmean(known) if known else 0.0
        totals += [mean if total is None else total for total in group]
    return totals


def train_grpo(
    run: Run, model, tokenizer, user: SimulatedUser, judge: Judge, personas: Sequence[Persona],
    say: Callable[[str], None] = print,
) -> list[dict]:
    """`grpo.rounds` rounds (0: nothing is done); adapters/grpo and the metrics of every step.

    A killed run goes on from its checkpoint and ends with the same adapter: a round starts from the files of
    the one before it, whether or not the run was killed in between. The model is changed in place.
    InputError: `rollout.top_p` is not 1, or there is no training user.
    """
    settings = run.cfg.grpo
    if not personas:
        raise InputError("personas: there is no training user")
    if run.cfg.rollout.top_p < 1:
        raise InputError("rollout.top_p: training samples from the whole distribution; use 1")
    torch.manual_seed(derive_seed(run.seed, NAME, "adapter"))
    model = get_peft_model(model, trainers.adapter_config(run.cfg))
    steps = settings.users * run.cfg.rollout.turns // settings.batch
    home = run.path(f"checkpoints/{NAME}/{run.fingerprint(NAME, '')[:12]}/round-000").parent
    facts = {"rounds": settings.rounds, "users a round": settings.users,
             "samples per prompt": settings.samples, "prompts per step": settings.batch,
             "learning rate": settings.lr, "beta": settings.beta,
             "prompt": "policy (profile block and response)"}  # fmt: skip
    rows: list[dict] = []
    for number in range(settings.rounds):
        folder, before = (home / f"round-{n:03d}" for n in (number, number - 1))
        if number < settings.rounds - 1 and find_newest(folder) == folder / f"checkpoint-{steps}":
            continue  # finished by an earlier process
        if number:
            load_weights(model, find_newest(before))
        trainer = _make_trainer(run, model, tokenizer, user, judge, personas, number, folder)
        trainer.inherited = find_newest(before) if number else None
        rows = trainers.fit(trainer, run, NAME, facts, say, offset=number * steps)
    return rows


def _make_trainer(
    run: Run, model, tokenizer, user, judge, personas: Sequence[Persona], number: int, folder: Path
) -> PlainGRPO:
    """The trainer of one round, its moments collected with the model as it stands."""
    cfg, settings, seed = run.cfg, run.cfg.grpo, derive_seed(run.seed, NAME, number)
    rollout, size = cfg.rollout, settings.batch * settings.samples
    sampling = Sampling(
        samples=1, continuation="independent", parts=cfg.ppo.reward_parts,
        system_prompt=prompt_files.load_prompt("policy", cfg.run.prompt_set, cfg.run.prompt_dir),
        history_profiles=cfg.ppo.history_profiles, temperature=rollout.temperature,
        max_new_tokens=rollout.max_new_tokens, fallback=rollout.fallback,
    )  # fmt: skip
    policy = models.make_local_policy(model, tokenizer, cfg)
    cohort = draw_cohort(personas, settings.users, number, run.seed)
    moments = collect_moments(policy, user, cohort, rollout.turns, sampling, seed)
    common = trainers.make_arguments(
        run, NAME, settings, size, settings.micro_batch or size, seed % 2**32, made_from=""
    )
    args = GRPOConfig(
        **{**common, "output_dir": str(folder)},
        learning_rate=settings.lr, lr_scheduler_type="constant", beta=settings.beta, epsilon=settings.clip,
        num_generations=settings.samples, loss_type="grpo", scale_rewards="group", disable_dropout=True,
        temperature=rollout.temperature, top_p=rollout.top_p, top_k=0,
        max_completion_length=rollout.max_new_tokens,
    )  # fmt: skip
    views = [policy_view(m.dialogue, sampling.system_prompt, sampling.history_profiles) for m in moments]
    prompts = [fit_messages(tokenizer, view, rollout.max_prompt_tokens) for view in views]
    data = datasets.Dataset.from_list([{"prompt": prompt, "moment": i} for i, prompt in enumerate(prompts)])
    failures = cfg.run.max_judge_failure_rate
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*rollout_func.*experimental")
        trainer = trainers.make_quiet_trainer(
            PlainGRPO, model=model, args=args, train_dataset=data, processing_class=tokenizer,
            reward_funcs=make_reward_function(judge, moments, sampling.parts, settings.samples, failures),
            rollout_func=make_sampler(policy, settings.samples, sampling, seed),
        )  # fmt: skip
    if "ref" in model.peft_config:
        model.delete_adapter("ref")  # TRL's copy of the adapter; the reference is always the base model
    return trainer
