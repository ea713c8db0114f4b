"""What the sections of a params file are made of: ranges, names of methods and benchmarks, the base of all
sections, and the sections that name a model."""

from typing import Annotated, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field

from rlpa_lib.settings import kinds

T = TypeVar("T")
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(min_length=1)]
RowName = Annotated[str, Field(pattern=r"^[\w.-]+$")]
ZeroOrMore = Annotated[tuple[T, ...], Field(strict=False)]
OneOrMore = Annotated[tuple[T, ...], Field(strict=False, min_length=1)]

Method = Literal[tuple(kinds.METHODS)]
Prompting = Literal[kinds.PROMPTING]  # rows that need no training
Benchmark = Literal["vanilla", "extended"]
BENCHMARKS: tuple[str, ...] = get_args(Benchmark)
Variant = Literal["fixed", "aloe_scripts"]  # of SFT and DPO: rlpa_lib/methods/training_data.py
# Ways in which a simulated user does not cooperate (beyond the paper).
Manner = Literal["reluctant", "impatient", "contradictory", "off_topic", "terse"]
MANNERS: tuple[str, ...] = get_args(Manner)
Ablation = Literal[tuple(kinds.ABLATIONS)]  # trainings beside that of both rewards


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, types are strict (an int may stand for a float), values
    frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Served(Section):
    """A model that may stand behind an OpenAI-compatible server."""

    # null = the client's own default; a user name or password does not fit
    base_url: Annotated[str, Field(pattern=r"^https?://[^/@\s]+(/\S*)?$")] | None = None
    # the NAME of an environment variable; a key itself does not fit
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "OPENAI_API_KEY"
    mode: Literal["auto", "json_schema", "text"] = "auto"  # how a structured answer is asked for


class Role(Served):
    """A user or judge; what names a model and its server is only read when `kind` is llm."""

    model: Name | None = None
    temperature: NonNegative = 0.0
    max_tokens: Count = 512
    # estimated; beyond it the oldest turns are left out, and the model is told how many
    max_prompt_tokens: Count = 8000


class UserConfig(Role):
    """The simulated user (sections 3.1 and C.4)."""

    kind: Literal[tuple(kinds.USERS)] = "agenda"


class JudgeConfig(Role):
    """The reward model (section 3.3): who judges, and the model that judges responses; it judges profiles as
    well where section `profile_judge` names no model. `holistic` is the released code's single 0/1 verdict.
    """

    kind: Literal[tuple(kinds.JUDGES)] = "rule"
    verdict: Literal["criteria", "holistic"] = "criteria"


class ProfileJudgeConfig(Role):
    """The model that judges profile overlap (section 3.2), with a server and key of its own; only read when
    `judge.kind` is llm. Without a model, section `judge` judges profiles too."""


class EvaluatorConfig(Role):
    """The evaluation judge, which sees the true persona (C.3). `sees`: the pending message alone, as in C.3,
    or the dialogue."""

    kind: Literal[tuple(kinds.EVALUATORS)] = "rule"
    sees: Literal["message", "dialogue"] = "message"  # llm only; the rule judge always sees the dialogue


class PolicyConfig(Served):
    """The model that is trained: `tiny`, `smollm2`, a folder (starting with . / or ~) or a hub name; LoRA or
    full tuning. With kind endpoint it is any chat model behind a server, by the server's name for it:
    evaluated, never trained (notebooks that train are skipped, rows with trained weights are not run); only
    then are base_url, api_key_env, mode and reasoning_tokens read."""

    kind: Literal[tuple(kinds.POLICIES)] = "local"  # in process; chat endpoint; sampled by vLLM, trained here
    # vllm only: base URLs, such as http://127.0.0.1:8000/v1; empty = started and ended here (run.gpus)
    servers: ZeroOrMore[Name] = ()
    max_policy_lag: CountOrZero = 0  # vllm only: updates that a sample's weights may lie behind the newest
    reasoning_tokens: CountOrZero = 0  # room for thinking, on top of rollout.max_new_tokens
    model: Name = "tiny"
    revision: Name | None = None
    # auto: what computes fastest on the machine that begins the run, float32 or bfloat16 (agents.speed)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    tuning: Literal["lora", "full"] = "lora"
    # training keeps each layer's input alone and runs the layer (in PPO the output layer, too) once more
    # backward: a third more work, and a fraction of the memory; of PPO, SFT, DPO and GRPO
    gradient_checkpointing: bool = False
    lora_rank: Count = 32
    lora_alpha: Positive = 64
    lora_dropout: Share = 0.0
    lora_targets: ZeroOrMore[Name] | Name = "all-linear"
    # folder of a LoRA adapter (SFT's, say) from which training starts and which is then the reference
    adapter: Name | None = None
    # scripted replies from which such an adapter is made first, for a model that lacks the format; 0 = off
    warm_up: CountOrZero = 0
    warm_up_lr: Positive = 1.0e-3


class Comparator(Served):
    """A closed or reasoning model behind a server, as one more row: its server's name for it, and how it
    answers."""

    model: Name
    method: Prompting = "self_critic"
    reasoning_tokens: CountOrZero = 0  # room for thinking, on top of rollout.max_new_tokens
