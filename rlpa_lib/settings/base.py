"""What the sections of a params file are made of: ranges, names of methods and benchmarks, the base of all
sections, and of those that name a model behind a server."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from rlpa_lib.settings.kinds import ABLATIONS, JUDGES, METHODS, PROMPTING, USERS

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]
# of the environment; a key itself does not fit
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
# of a server; a user name or password does not fit
Address = Annotated[str, Field(pattern=r"^https?://[^/@\s]+(/\S*)?$")]

Method = Literal[tuple(METHODS)]
Prompting = Literal[PROMPTING]  # rows that need no training
Benchmark = Literal["vanilla", "extended"]
Variant = Literal["fixed", "aloe_scripts"]  # of SFT and DPO: rlpa_lib/methods/training_data.py
BENCHMARKS: tuple[str, ...] = get_args(Benchmark)
# Ways in which a simulated user does not cooperate (beyond the paper).
Manner = Literal["reluctant", "impatient", "contradictory", "off_topic", "terse"]
MANNERS: tuple[str, ...] = get_args(Manner)
Ablation = Literal[tuple(ABLATIONS)]  # trainings beside that of both rewards


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, types are strict (an int may stand for a float), values
    frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Role(Section):
    """A model behind an OpenAI-compatible server; only read when `kind` is llm."""

    model: Name | None = None
    base_url: Address | None = None  # null = the client's own default
    api_key_env: Variable = "OPENAI_API_KEY"  # the NAME of an environment variable, never a key
    temperature: NonNegative = 0.0
    max_tokens: Count = 512
    mode: Literal["auto", "json_schema", "text"] = "auto"  # how a structured answer is asked for
    # estimated; beyond it the oldest turns are left out, and the model is told how many
    max_prompt_tokens: Count = 8000


class UserConfig(Role):
    """The simulated user (sections 3.1 and C.4)."""

    kind: Literal[tuple(USERS)] = "agenda"


class JudgeConfig(Role):
    """The reward model (section 3.3). `holistic` is the released code's single 0/1 verdict."""

    kind: Literal[tuple(JUDGES)] = "rule"
    profile_model: Name | None = None  # judge of profile overlap; null = `model`
    verdict: Literal["criteria", "holistic"] = "criteria"
