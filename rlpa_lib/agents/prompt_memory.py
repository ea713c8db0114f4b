"""What is kept of the prompts of one call, so that the next one need not run their beginnings again."""

from __future__ import annotations

import bisect
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Kept:
    """A prompt, and its row in the keys and values [P, H, L, D] per layer of the batch that it was run in."""

    prompt: tuple[int, ...]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    row: int


class PromptMemory:
    """Keys and values of the prompts of the last call: of a prompt that begins like one of them, only the
    rest is run.

    `begin` opens a call (with `forget`: as if there had been none before), `known` asks about one of its
    prompts, `add` takes its prompts in. The weights must not change in between.
    """

    def __init__(self) -> None:
        self._before: list[Kept] = []
        self._now: list[Kept] = []

    def begin(self, forget: bool) -> None:
        self._before, self._now = [] if forget else sorted(self._now, key=lambda kept: kept.prompt), []

    def known(self, prompt: tuple[int, ...]) -> tuple[Kept | None, int]:
        """(what is kept of the prompt that this one shares most with, how many tokens); at least one token is
        left to run."""
        place = bisect.bisect(self._before, prompt, key=lambda kept: kept.prompt)
        near = [
            (len(os.path.commonprefix([kept.prompt, prompt[:-1]])), kept)
            for kept in self._before[max(0, place - 1) : place + 1]
        ]
        length, kept = max(near, key=lambda pair: pair[0], default=(0, None))
        return (kept, length) if length else (None, 0)

    def add(
        self, prompts: Sequence[tuple[int, ...]], keys: list[torch.Tensor], values: list[torch.Tensor]
    ) -> None:
        """Keys and values of one batch, per layer [P, H, L, D] with padding behind."""
        self._now += [Kept(tuple(prompt), keys, values, row) for row, prompt in enumerate(prompts)]
