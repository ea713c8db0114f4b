"""Sections of a params file for the analyses (sections 5.2 and 5.3, and what goes beyond the paper).

Rows that `evaluation.methods` does not name are left out of the analyses, too: a run without DPO has no DPO curve anywhere.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlpa_lib.schema_base import MANNERS, Count, Manner, Method, Section

Writer = Literal["rlpa_prompting", "grpo", "rlpa"]  # rows that write a profile block of their own at every turn


class Conflict(Section):
    """A preference that changes in mid-dialogue (section 5.2, figure 4a), Vanilla users."""

    methods: Annotated[tuple[Method, ...], Field(strict=False, min_length=1)] = ("base", "self_critic", "sft", "dpo", "rlpa_prompting", "rlpa")
    users: Count | None = None  # the first so many of evaluation.users; null = all
    turns: Count = 10
    at: Annotated[int, Field(ge=3)] = 6  # the first turn that the changed persona speaks; the old value is told before it


class LongTerm(Section):
    """A long dialogue with a fixed profile (section 5.3, figure 4b), Vanilla users."""

    methods: Annotated[tuple[Writer, ...], Field(strict=False, min_length=1)] = ("rlpa_prompting", "rlpa")
    users: Count | None = None  # the first so many of evaluation.users; null = all
    turns: Count = 70
    every: Count = 10  # checkpoints: turn 1 and every so many turns
    max_prompt_tokens: Count | None = None  # context window; null = rollout.max_prompt_tokens. Beyond it the oldest turns go (policies.window)


class Difficult(Section):
    """Users who do not cooperate (beyond the paper), Vanilla users."""

    methods: Annotated[tuple[Method, ...], Field(strict=False, min_length=1)] = ("base", "self_critic", "sft", "dpo", "rlpa_prompting", "rlpa")
    manners: Annotated[tuple[Manner, ...], Field(strict=False, min_length=1)] = MANNERS
    users: Count | None = None  # the first so many of evaluation.users; null = all
    turns: Count = 10
