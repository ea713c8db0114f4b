"""Batches for the update: the samples of a prompt behind one copy of it ("tree"), or each behind its own ("rows").

Axes: B packed rows, L tokens of a packed row, S samples, T tokens of the longest completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Group = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]  # token ids of a prompt and of its completions


@dataclass(frozen=True)
class Packed:
    """Model input, and where each completion token is predicted: hidden state (row, place) predicts `targets_ST`.

    `mask_B1LL` is additive (0 or -inf), or None where plain causal attention is right. `keep_ST` marks real tokens.
    """

    input_ids_BL: torch.Tensor
    position_ids_BL: torch.Tensor
    mask_B1LL: torch.Tensor | None
    rows_ST: torch.Tensor
    places_ST: torch.Tensor
    targets_ST: torch.Tensor
    keep_ST: torch.Tensor


def pack(groups: Sequence[Group], packing: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> Packed:
    """Pack groups as "tree" or "rows"; samples keep their order. The last token of a completion is only ever a target."""
    if packing == "rows":
        groups = [(prompt, (completion,)) for prompt, completions in groups for completion in completions]
    rows = [_row(prompt, completions) for prompt, completions in groups]
    length = max(len(ids) for ids, _, _, _ in rows)
    ids, positions, segments = (_padded([row[i] for row in rows], length, pad) for i, pad in ((0, 0), (1, 0), (2, -1)))
    samples = [(row, places, c) for row, group in enumerate(groups) for places, c in zip(rows[row][3], group[1], strict=True)]
    longest = max(len(c) for _, _, c in samples)
    keep = _padded([[1] * len(c) for _, _, c in samples], longest, 0).bool()
    packed = Packed(
        ids,
        positions,
        tree_mask(segments, dtype) if packing == "tree" else None,
        torch.tensor([row for row, _, _ in samples])[:, None].expand(-1, longest),
        _padded([places for _, places, _ in samples], longest, 0),
        _padded([c for _, _, c in samples], longest, 0),
        keep,
    )
    moved = {name: None if value is None else value.to(device) for name, value in vars(packed).items()}
    return Packed(**moved)


def with_end(group: Group) -> Group:
    """The group with one more place a sample: the state after its last token. Its target is a dummy, never to be trained on."""
    prompt, completions = group
    return prompt, tuple((*completion, 0) for completion in completions)


def _row(prompt: Sequence[int], completions: Sequence[Sequence[int]]):
    """Token ids, positions, segments (0 prompt, 1.. samples) of one packed row, and per sample the predicting places."""
    ids, positions, segments = list(prompt), list(range(len(prompt))), [0] * len(prompt)
    places = []
    for segment, completion in enumerate(completions, start=1):
        fed = completion[:-1]
        places.append([len(prompt) - 1, *range(len(ids), len(ids) + len(fed))])
        ids += fed
        positions += range(len(prompt), len(prompt) + len(fed))
        segments += [segment] * len(fed)
    return ids, positions, segments, places


def tree_mask(segments_BL: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Additive mask [B, 1, L, L]: a token sees the prompt and its own sample up to itself; padding (-1) sees itself."""
    length = segments_BL.shape[1]
    query, key = segments_BL[:, :, None], segments_BL[:, None, :]
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = earlier & ((key == 0) | (key == query)) & (query >= 0)
    allowed |= torch.eye(length, dtype=torch.bool)
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, -torch.inf)[:, None]


def _padded(rows: Sequence[Sequence[int]], length: int, value: int) -> torch.Tensor:
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])
