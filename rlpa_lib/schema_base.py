"""What the sections of a params file are made of: ranges, names of methods and benchmarks, and the base of all sections."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]  # of the environment; a key itself does not fit
Address = Annotated[str, Field(pattern=r"^https?://[^/@\s]+(/\S*)?$")]  # of a server; a user name or password does not fit

Method = Literal[
    "base", "reminder", "self_critic", "cot", "rag", "rlpa_prompting", "random", "oracle", "sft", "dpo", "grpo", "sft_aloe", "dpo_aloe",
    "rlpa", "style_only_empty", "style_only_other",
]  # fmt: skip
Prompting = Literal["base", "reminder", "self_critic", "cot", "rag", "rlpa_prompting"]  # rows that need no training
Benchmark = Literal["vanilla", "extended"]
Variant = Literal["fixed", "aloe_scripts"]  # of SFT and DPO: rlpa_lib/baselines/data.py
METHODS: tuple[str, ...] = get_args(Method)
TRAINED: tuple[str, ...] = METHODS[METHODS.index("sft") :]
WITH_PROFILE = ("rlpa_prompting", "rlpa", "grpo", "style_only_empty", "style_only_other")  # rows that write a profile block
BENCHMARKS: tuple[str, ...] = get_args(Benchmark)
# Ways in which a simulated user does not cooperate (beyond the paper).
Manner = Literal["reluctant", "impatient", "contradictory", "off_topic", "terse"]
MANNERS: tuple[str, ...] = get_args(Manner)


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, types are strict (an int may stand for a float), values frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
