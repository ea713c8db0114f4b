"""The typed sections of a params file, with their defaults, ranges and the checks that span sections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]

Method = Literal[
    "base", "reminder", "self_critic", "cot", "rag", "rlpa_prompting", "random", "oracle", "sft", "dpo", "rlpa"
]
Benchmark = Literal["vanilla", "extended"]
METHODS: tuple[str, ...] = get_args(Method)
BENCHMARKS: tuple[str, ...] = get_args(Benchmark)


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, types are strict (an int may stand for a float), values frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Personas(Section):
    """Where users come from (appendices C.1-C.2). A relative path counts from the params file or the shell that names it."""

    source: Literal["builtin", "aloe", "personachat"] = "builtin"
    path: Name | None = None  # ALOE folder or PersonaChat file, by source
    personachat_path: Name | None = None  # PersonaChat file of the extended benchmark when source is aloe
    train_users: Count | None = None  # null = all
    test_users: Count = 74
    language: Literal["en", "zh"] = "en"


class PolicyConfig(Section):
    """The model that is trained: `tiny`, `smollm2`, a folder (starting with . / or ~) or a hub name; LoRA or full tuning."""

    model: Name = "tiny"
    revision: Name | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    tuning: Literal["lora", "full"] = "lora"
    lora_rank: Count = 32
    lora_alpha: Positive = 64
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lora_targets: Annotated[tuple[Name, ...], Field(strict=False)] | Name = "all-linear"


class Role(Section):
    """A model behind an OpenAI-compatible server; only read when `kind` is llm."""

    model: Name | None = None
    base_url: Name | None = None  # null = the client's own default
    api_key_env: Name = "OPENAI_API_KEY"  # the NAME of an environment variable, never a key
    temperature: NonNegative = 0.0
    max_tokens: Count = 512
    mode: Literal["auto", "json_schema", "text"] = "auto"  # how a structured answer is asked for


class UserConfig(Role):
    """The simulated user (sections 3.1 and C.4)."""

    kind: Literal["agenda", "llm"] = "agenda"


class JudgeConfig(Role):
    """The reward model (section 3.3). `holistic` is the released code's single 0/1 verdict."""

    kind: Literal["rule", "llm"] = "rule"
    profile_model: Name | None = None  # judge of profile overlap; null = `model`
    verdict: Literal["criteria", "holistic"] = "criteria"


class EvaluatorConfig(Role):
    """The evaluation judge, which sees the true persona (C.3)."""

    kind: Literal["rule", "llm"] = "rule"


class Rollout(Section):
    """Lockstep dialogues: `users` dialogues advance one turn at a time, `samples` completions per prompt."""

    users: Count = 8
    turns: Count = 3
    samples: Count = 4
    continuation: Literal["best", "random", "independent"] = "best"
    temperature: Positive = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: Count = 128
    max_prompt_tokens: Count = 1024
    micro_batch: Count = 128  # prompts decoded at once


class PPO(Section):
    """PPO (appendix B). One iteration takes one cohort of `rollout.users` dialogues through all its turns."""

    iterations: Count = 3
    lr: Positive = 3.0e-4
    critic_lr: Positive = 1.0e-3
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    value_clip: Positive | None = 0.2  # null = off
    kl_coef: NonNegative = 0.01
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    gamma: Fraction = 1.0  # token level
    lam: Fraction = 0.95  # token level
    turn_discount: Fraction = 0.0  # 0 = each turn is its own bandit; > 0 = discount along the turns of a dialogue
    turn_lam: Fraction = 0.95  # turn level, only with turn_discount > 0
    update_every: Literal["turn", "dialogue"] = "turn"  # update after each turn of the cohort, or once at its end
    epochs: Count = 1
    minibatch: Count = 32  # samples per optimiser step
    micro_batch: Count | None = None  # samples per forward pass; null = the minibatch
    advantage_norm: Literal["rollout", "cohort", "none"] = "rollout"
    reward_parts: Literal["PRR", "PR", "RR"] = "PRR"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03  # share of all optimiser steps
    lr_floor: Fraction = 0.1  # cosine ends at this share of lr
    critic: Literal["head", "lora"] = "head"
    packing: Literal["tree", "rows"] = "tree"
    grad_norm: Positive = 1.0
    adam_betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], Field(strict=False)
    ] = (0.9, 0.95)
    checkpoint_every: Count = 1  # iterations
    history_profiles: Literal["latest", "all", "none"] = "latest"


class SFT(Section):
    """Supervised fine-tuning baseline (appendices D.2, E.2)."""

    epochs: Count = 1
    batch: Count = 32
    lr: Positive = 1.0e-5


class DPO(Section):
    """Direct preference optimisation baseline (appendices D.2, E.2)."""

    epochs: Count = 1
    batch: Count = 32
    lr: Positive = 5.0e-6
    beta: Positive = 0.01


class Evaluation(Section):
    """Methods and benchmarks of tables 1, 4, 5. `temperature` 0 = greedy."""

    methods: Annotated[tuple[Method, ...], Field(strict=False, min_length=1)] = METHODS[:1]
    benchmarks: Annotated[tuple[Benchmark, ...], Field(strict=False, min_length=1)] = BENCHMARKS
    users: Count = 74
    turns: Count = 10
    temperature: NonNegative = 0.0


class Endpoint(Section):
    """Client of OpenAI-compatible servers: `cache` is run (inside the run folder), off, or a file; null limits = none."""

    cache: Name = "run"
    concurrency: Count = 16
    retries: Annotated[int, Field(ge=0)] = 5
    timeout: Positive = 60.0  # seconds
    max_usd: NonNegative | None = None
    max_requests: Count | None = None
    max_tokens: Count | None = None


class RunConfig(Section):
    """How a run uses this machine, and which prompts it reads."""

    threads: Count = 1
    prompt_set: Literal["mini", "en", "zh"] = "mini"
    prompt_dir: Name | None = None  # swaps in prompts of your own
    max_judge_failure_rate: Fraction = 0.02
    tensorboard: bool = True


class Config(Section):
    """All of a run's settings except seed and run folder."""

    personas: Personas = Personas()
    policy: PolicyConfig = PolicyConfig()
    user: UserConfig = UserConfig()
    judge: JudgeConfig = JudgeConfig()
    evaluator: EvaluatorConfig = EvaluatorConfig()
    rollout: Rollout = Rollout()
    ppo: PPO = PPO()
    sft: SFT = SFT()
    dpo: DPO = DPO()
    evaluation: Evaluation = Evaluation()
    endpoint: Endpoint = Endpoint()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _possible(self) -> Config:
        for key, why in problems(self):
            raise ValueError(f"{key}: {why}")
        return self


def problems(cfg: Config) -> Iterator[tuple[str, str]]:
    """Dotted key and reason of every combination that cannot work."""
    ppo, rollout = cfg.ppo, cfg.rollout
    if ppo.turn_discount > 0 and rollout.continuation == "best":
        yield (
            "rollout.continuation",
            "best biases the return when ppo.turn_discount > 0; use independent or random, or ppo.turn_discount=0",
        )
    if ppo.turn_discount > 0 and ppo.update_every == "turn":
        yield "ppo.update_every", "must be dialogue when ppo.turn_discount > 0 (returns span the turns)"
    samples = rollout.users * rollout.samples
    if samples % ppo.minibatch:
        yield "ppo.minibatch", f"{ppo.minibatch} does not divide rollout.users x rollout.samples = {samples}"
    if ppo.micro_batch and ppo.minibatch % ppo.micro_batch:
        yield "ppo.micro_batch", f"{ppo.micro_batch} does not divide ppo.minibatch = {ppo.minibatch}"
    if ppo.packing == "tree" and (ppo.micro_batch or ppo.minibatch) % rollout.samples:
        key = "micro_batch" if ppo.micro_batch else "minibatch"
        yield f"ppo.{key}", f"with ppo.packing=tree it must be a multiple of rollout.samples = {rollout.samples}"
    yield from _data_problems(cfg)


def _data_problems(cfg: Config) -> Iterator[tuple[str, str]]:
    if cfg.personas.train_users is not None and cfg.personas.train_users < cfg.rollout.users:
        yield "personas.train_users", f"{cfg.personas.train_users} is fewer than rollout.users = {cfg.rollout.users}"
    if cfg.evaluation.users > cfg.personas.test_users:
        yield "evaluation.users", f"{cfg.evaluation.users} is more than personas.test_users = {cfg.personas.test_users}"
    for role in ("user", "judge", "evaluator"):
        section = getattr(cfg, role)
        if section.kind == "llm" and section.model is None:
            yield f"{role}.model", f"is needed when {role}.kind is llm"
    if cfg.user.kind == "agenda" and cfg.run.prompt_set == "zh":
        yield "run.prompt_set", "zh needs user.kind=llm (the agenda user speaks English)"
    for key in ("methods", "benchmarks"):
        names = getattr(cfg.evaluation, key)
        if len(set(names)) != len(names):
            yield f"evaluation.{key}", "holds a name twice"
