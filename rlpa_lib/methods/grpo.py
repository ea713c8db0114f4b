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
from rlpa_lib.rlpa.processes import MainOnly, Processes, SharedPolicy
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


def make_sampler(assistant: Prompted, samples: int, seed: int, processes: Processes) -> Callable:
    """PPO's sampler in the place of `model.generate` (TRL's `rollout_func`).

    It is faster, and samples the same at a step whatever came before it. Of several processes each is given
    its part of the prompts, which may end within the `samples` of one, and gets back that part of what all
    sample together.
    """

    def sample(given: list, trainer: GRPOTrainer) -> dict[str, list]:
        prompts = [prompt for part in processes.gather(given) for prompt in part]
        drawn = assistant.ask(
            prompts[::samples], derive_seed(seed, "step", trainer.state.global_step), samples
        )
        drawn = _own_part(drawn, len(given), processes)
        return {
            "prompt_ids": [list(c.prompt_ids) for c in drawn],
            "completion_ids": [list(c.token_ids) for c in drawn],
            "logprobs": [list(c.logprobs) for c in drawn],
        }

    return sample


def _own_part(rows: list, size: int, processes: Processes) -> list:
    """What belongs to this process of something that all made together, `size` rows each."""
    return rows[processes.rank * size : (processes.rank + 1) * size]


def make_reward_function(
    judge: Judge, moments: Sequence[Moment], parts: str, samples: int, max_failures: float,
    processes: Processes, strictness: Strictness = "strict", end_ids: Collection[int] = (),
    patience: int | None = None, earlier: Sequence[float] = (), total: int | None = None,
) -> Callable:
    """The reward as GRPOTrainer asks for it: column `moment` says which moment a completion answers.

    SilentTraining: no completion of `patience` steps in a row (null: never) kept the format, or none at all
    when `total` steps are over; `earlier` are the rates of the steps before these, `end_ids` the tokens with
    which a completion may end.
    A completion that the judge could not read gets the mean of its group, and so no advantage; RuntimeError
    when more than the share `max_failures` of a batch is such, JudgeFailed when all are. Only the main
    process asks the judge, about the completions of all.
    """

    steps = [{"format_rate": rate} for rate in earlier]

    def turn_reward(completions, moment, log_metric, completion_ids=(), **_) -> list[float]:
        ends = [bool(ids) and ids[-1] in end_ids for ids in completion_ids or [()] * len(completions)]
        own = [(c[0]["content"], i, end) for c, i, end in zip(completions, moment, ends, strict=True)]
        texts, places, ended = zip(*(row for part in processes.gather(own) for row in part), strict=True)
        personas, dialogues = zip(*(moments[i] for i in places), strict=True)
        parse = parse_reply if strictness == "strict" else parse_released_reply
        replies = [parse(text) for text in texts]
        rewards = processes.on_main(lambda: score_replies(judge, personas, dialogues, replies, parts))
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
        rate = fmean(reward.format_ok for reward in judged)
        steps.append({"format_rate": rate, "finished_share": fmean(ended)})
        read = f"The last completion begins {texts[-1][:200]!r}"
        check_format(NAME, steps, patience, read, over=len(steps) == total)
        return _own_part(fill_rewards(rewards, samples), len(own), processes)

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
    run: Run, model, tokenizer, user: SimulatedUser | None, judge: Judge | None, personas: Sequence[Persona],
    say: Callable[[str], None] = print, processes: Processes | None = None,
) -> list[dict]:
    """`grpo.rounds` rounds (0: nothing is done); adapters/grpo and the metrics of every step.

    A killed run goes on from its checkpoint and ends with the same adapter: a round starts from the files of
    the one before it, whether or not the run was killed in between. The model is changed in place. Of several
    processes only the main one needs user and judge.
    InputError: `rollout.top_p` is not 1, or there is no training user.
    """
    settings, processes = run.cfg.grpo, processes or Processes()
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
        newest, earlier = processes.on_main(
            lambda folder=folder, before=before: (find_newest(folder), find_newest(before))
        )
        if number < settings.rounds - 1 and newest == folder / f"checkpoint-{steps}":
            continue  # finished by an earlier process
        if number:
            load_weights(model, earlier)
        trainer = _make_trainer(run, model, tokenizer, user, judge, personas, number, folder, processes)
        if number:
            load_optimizer(trainer.create_optimizer(), earlier)
        rows = trainers.fit(trainer, run, NAME, facts, say, offset=number * steps, processes=processes)
    return rows


def _recall_steps(run: Run, number: int, folder: Path) -> dict:
    """What `check_format` needs of the steps before those that round `number` still has to do."""
    a_round = run.cfg.grpo.users * run.cfg.rollout.turns // run.cfg.grpo.batch
    newest = find_newest(folder)
    done = number * a_round + (int(newest.name.split("-")[1]) if newest else 0)
    rates = [row["turn_format_ok"] for row in run.read_metrics(NAME) if row["step"] <= done]
    return {"earlier": rates, "total": run.cfg.grpo.rounds * a_round}


def _make_trainer(
    run: Run, model, tokenizer, user, judge, personas: Sequence[Persona], number: int, folder: Path,
    processes: Processes,
) -> PlainGRPO:
    """The trainer of one round, its moments collected with the model as it stands."""
    cfg, settings, rollout = run.cfg, run.cfg.grpo, run.cfg.rollout
    seed, size = derive_seed(run.seed, NAME, number), settings.batch * settings.samples
    policy = models.make_local_policy(model, tokenizer, cfg)
    stop = {"strictness": cfg.profile.strictness, "patience": cfg.ppo.format_patience}
    stop["end_ids"] = policy.end_ids
    stop |= processes.on_main(lambda: _recall_steps(run, number, folder))
    if processes.world > 1:
        policy, user = SharedPolicy(policy, processes), MainOnly(user, processes)
    parts = Parts(NAME, cfg, policy)
    assistant = replace(make_rlpa(parts), temperature=rollout.temperature)
    cohort = draw_cohort(personas, settings.users, number, run.seed)
    moments = collect_moments(assistant, user, cohort, rollout.turns, seed, rollout.fallback)
    micro = settings.micro_batch or size
    common = trainers.make_arguments(run, NAME, settings, size, micro, seed % 2**32, "", processes.world)
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
    scoring = (cfg.ppo.reward_parts, settings.samples, cfg.run.max_judge_failure_rate, processes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*rollout_func.*experimental")
        trainer = trainers.make_quiet_trainer(
            PlainGRPO, model, args, tokenizer, rows,
            reward_funcs=make_reward_function(judge, moments, *scoring, **stop),
            rollout_func=make_sampler(assistant, settings.samples, seed, processes),
        )
    if "ref" in model.peft_config:
        model.delete_adapter("ref")  # TRL's copy of the adapter; the reference is always the base model
    return trainer
