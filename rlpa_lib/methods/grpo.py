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

import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from peft import get_peft_model
from trl import GRPOConfig, GRPOTrainer

from rlpa_lib.agents import models
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.judging import Judge, JudgeFailed
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Strictness, parse_released_reply, parse_reply
from rlpa_lib.dialogue.protocols import SimulatedUser
from rlpa_lib.dialogue.turns import play_turns
from rlpa_lib.methods import trainers
from rlpa_lib.methods.plain_state import PlainState, find_newest, load_optimizer, load_weights
from rlpa_lib.methods.prompting import Prompted, make_rlpa
from rlpa_lib.methods.table import Answer, Parts
from rlpa_lib.methods.training_data import fit_messages
from rlpa_lib.rlpa.networks import lora_config
from rlpa_lib.rlpa.rewards import Reward, score_replies
from rlpa_lib.rlpa.rollout import draw_cohort
from rlpa_lib.rlpa.silence import check_format
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import InputError

NAME = "grpo"
Moment = tuple[Persona, Dialogue]  # with the utterance that waits for a reply: a prompt is made of it


class PlainGRPO(PlainState, GRPOTrainer):
    """TRL's GRPOTrainer with checkpoints that are no pickles."""


def collect_moments(
    assistant: Prompted, user: SimulatedUser, personas: Sequence[Persona], turns: int, seed: int,
    fallback: str | None = None,
) -> list[Moment]:
    """The E x K moments of E dialogues in which one sample a turn goes on; no judge is asked."""

    def answer(_: Sequence[Persona], heard: Sequence[Dialogue]) -> list[Answer]:
        return assistant.respond(personas, heard, derive_seed(seed, "moment", len(heard[0].turns)))

    start = [Dialogue(f"{i:04d}-{persona.id}", persona.id) for i, persona in enumerate(personas)]
    played = play_turns(personas, start, user, answer, turns=turns, fallback=fallback)
    return [moment for turn in played for moment in zip(personas, turn.heard, strict=True)]


def make_sampler(assistant: Prompted, samples: int, seed: int) -> Callable:
    """PPO's sampler in the place of `model.generate` (TRL's `rollout_func`).

    It is faster, and samples the same at a step whatever came before it.
    """

    def sample(given: list, trainer: GRPOTrainer) -> dict[str, list]:
        drawn = assistant.ask(given[::samples], derive_seed(seed, "step", trainer.state.global_step), samples)
        return {
            "prompt_ids": [list(c.prompt_ids) for c in drawn],
            "completion_ids": [list(c.token_ids) for c in drawn],
            "logprobs": [list(c.logprobs) for c in drawn],
        }

    return sample


def make_reward_function(
    judge: Judge, moments: Sequence[Moment], parts: str, samples: int, max_failures: float,
    strictness: Strictness = "strict", end_ids: Collection[int] = (), patience: int | None = None,
) -> Callable:
    """The reward as GRPOTrainer asks for it: column `moment` says which moment a completion answers.

    SilentTraining: no completion of `patience` steps in a row (null: never) kept the format; `end_ids` are
    the tokens with which one may end.
    A completion that the judge could not read gets the mean of its group, and so no advantage; RuntimeError
    when more than the share `max_failures` of a batch is such, JudgeFailed when all are.
    """

    steps: list[dict[str, float]] = []

    def turn_reward(completions, moment, log_metric, completion_ids=(), **_) -> list[float]:
        read = parse_reply if strictness == "strict" else parse_released_reply
        replies = [read(c[0]["content"]) for c in completions]
        personas, dialogues = zip(*(moments[i] for i in moment), strict=True)
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
        ended = fmean([bool(ids) and ids[-1] in end_ids for ids in completion_ids] or [0.0])
        rate = fmean(reward.format_ok for reward in judged)
        steps.append({"format_rate": rate, "finished_share": ended})
        read = f"The last completion begins {completions[-1][0]['content'][:200]!r}"
        check_format(NAME, steps, patience, read)
        return fill_rewards(rewards, samples)

    return turn_reward


def fill_rewards(rewards: Sequence[Reward | None], samples: int) -> list[float]:
    """Totals of groups of `samples` in a row; where there is none, its group's mean, or 0."""
    totals: list[float] = []
    for start in range(0, len(rewards), samples):
        group = rewards[start : start + samples]
        mean = fmean([reward.total for reward in group if reward] or [0.0])
        totals += [reward.total if reward else mean for reward in group]
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
    model = get_peft_model(model, lora_config(run.cfg))
    steps = settings.users * run.cfg.rollout.turns // settings.batch
    home = run.path(f"checkpoints/{NAME}/{run.fingerprint(NAME, '')[:12]}")
    facts = {
        "rounds": settings.rounds, "users a round": settings.users, "samples per prompt": settings.samples,
        "prompts per step": settings.batch, "learning rate": settings.lr, "beta": settings.beta,
        "prompt": "policy (profile block and response)",
    }
    rows: list[dict] = []
    for number in range(settings.rounds):
        folder, before = (home / f"round-{n:03d}" for n in (number, number - 1))
        if number < settings.rounds - 1 and find_newest(folder) == folder / f"checkpoint-{steps}":
            continue  # finished by an earlier process
        if number:
            load_weights(model, find_newest(before))
        trainer = _make_trainer(run, model, tokenizer, user, judge, personas, number, folder)
        if number:
            load_optimizer(trainer.create_optimizer(), find_newest(before))
        rows = trainers.fit(trainer, run, NAME, facts, say, offset=number * steps)
    return rows


def _make_trainer(
    run: Run, model, tokenizer, user, judge, personas: Sequence[Persona], number: int, folder: Path
) -> PlainGRPO:
    """The trainer of one round, its moments collected with the model as it stands."""
    cfg, settings, rollout = run.cfg, run.cfg.grpo, run.cfg.rollout
    seed, size = derive_seed(run.seed, NAME, number), settings.batch * settings.samples
    parts = Parts(NAME, cfg, models.make_local_policy(model, tokenizer, cfg))
    assistant = replace(make_rlpa(parts), temperature=rollout.temperature)
    cohort = draw_cohort(personas, settings.users, number, run.seed)
    moments = collect_moments(assistant, user, cohort, rollout.turns, seed, rollout.fallback)
    micro = settings.micro_batch or size
    common = trainers.make_arguments(run, NAME, settings, size, micro, seed % 2**32, made_from="")
    args = GRPOConfig(
        **{**common, "output_dir": str(folder)},
        learning_rate=settings.lr, lr_scheduler_type="constant", beta=settings.beta, epsilon=settings.clip,
        num_generations=settings.samples, loss_type="grpo", scale_rewards="group", disable_dropout=True,
        temperature=rollout.temperature, top_p=rollout.top_p, top_k=0,
        max_completion_length=rollout.max_new_tokens,
    )
    views = [assistant.messages(dialogue) for _, dialogue in moments]
    prompts = [fit_messages(tokenizer, view, rollout.max_prompt_tokens) for view in views]
    rows = [{"prompt": prompt, "moment": i} for i, prompt in enumerate(prompts)]
    scoring = (cfg.ppo.reward_parts, settings.samples, cfg.run.max_judge_failure_rate, cfg.profile.strictness)
    stop = {"end_ids": parts.policy.end_ids, "patience": cfg.ppo.format_patience}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*rollout_func.*experimental")
        trainer = trainers.make_quiet_trainer(
            PlainGRPO, model, args, tokenizer, rows,
            reward_funcs=make_reward_function(judge, moments, *scoring, **stop),
            rollout_func=make_sampler(assistant, settings.samples, seed),
        )
    if "ref" in model.peft_config:
        model.delete_adapter("ref")  # TRL's copy of the adapter; the reference is always the base model
    return trainer
