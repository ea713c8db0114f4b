"""Sections of a params file for the analyses (sections 5.1 to 5.3, appendices G and H, and what goes beyond
the paper).

Rows that `evaluation.methods` does not name are left out of the analyses, too: a run without DPO has no DPO
curve anywhere.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlpa_lib.settings.base import MANNERS, Ablation, Count, JudgeConfig, Manner, Method, Section, UserConfig
from rlpa_lib.settings.kinds import WRITERS

Writer = Literal[WRITERS]  # rows that write a profile block of their own at every turn


class Conflict(Section):
    """A preference that changes in mid-dialogue (section 5.2, figure 4a), Vanilla users."""

    methods: Annotated[tuple[Method, ...], Field(strict=False, min_length=1)] = (
        "base", "self_critic", "sft", "dpo", "rlpa_prompting", "rlpa",
    )
    users: Count | None = None  # the first so many of evaluation.users; null = all
    turns: Count = 10
    # the first turn that the changed persona speaks; the old value is told before it
    at: Annotated[int, Field(ge=3)] = 6


class LongTerm(Section):
    """A long dialogue with a fixed profile (section 5.3, figure 4b), Vanilla users."""

    methods: Annotated[tuple[Writer, ...], Field(strict=False, min_length=1)] = ("rlpa_prompting", "rlpa")
    users: Count | None = None  # the first so many of evaluation.users; null = all
    turns: Count = 70
    every: Count = 10  # checkpoints: turn 1 and every so many turns
    # null = rollout.max_prompt_tokens; beyond it the oldest turns go (agents.prompt_tokens.window)
    max_prompt_tokens: Count | None = None


class Difficult(Section):
    """Users who do not cooperate (beyond the paper), Vanilla users."""

    methods: Annotated[tuple[Method, ...], Field(strict=False, min_length=1)] = (
        "base", "self_critic", "sft", "dpo", "rlpa_prompting", "rlpa",
    )
    manners: Annotated[tuple[Manner, ...], Field(strict=False, min_length=1)] = MANNERS
    users: Count | None = None  # the first so many of evaluation.users; null = all
    turns: Count = 10


class Ablations(Section):
    """21_ablations: trainings beside that of both rewards (section 5.1), equally long and on the same
    users."""

    variants: Annotated[tuple[Ablation, ...], Field(strict=False)] = ("PR", "RR")
    # cohorts after which all are compared, on 20_ppo's own schedule; null = all of ppo.iterations
    iterations: Count | None = None


class Study(Section):
    """34_user_and_reward_model_evaluation: what is put before people and judges (appendices G and H)."""

    personas: Count = 10  # G: each user model plays ten
    turns: Count = 5  # G
    profiles: Count = 100  # reference profiles to rewrite; not in the paper, whose accuracies fit 100 cases
    pairs: Count = 300  # H.1
    responses: Count = 300  # H.2
    # beside the run's own
    user_models: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], UserConfig] = Field(default_factory=dict)
    # beside the run's own
    profile_judges: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], JudgeConfig] = Field(
        default_factory=dict
    )
