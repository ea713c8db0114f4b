"""Batches for the update: all samples of a prompt behind one copy of it ("tree"), or one copy each ("rows").

Axes: B packed rows, L tokens of a packed row, S samples, T tokens of the longest completion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Group = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]  # token ids of a prompt and of its completions


@dataclass(frozen=True)
class Packed:
    """Model input, and where completion tokens are predicted: state (row, place) predicts `targets_ST`.

    `mask_B1LL` is additive (0 or -inf), or None where plain causal attention is right. `keep_ST` marks real
    tokens.
    """

    input_ids_BL: Tensor
    position_ids_BL: Tensor
    mask_B1LL: Tensor | None
    rows_ST: Tensor
    places_ST: Tensor
    targets_ST: Tensor
    keep_ST: Tensor


def pack_groups(
    groups: Sequence[Group], packing: str, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Packed:
    """Pack groups as "tree" or "rows"; samples keep their order. The last token of each is only a target."""
    if packing == "rows":
        groups = [(prompt, (completion,)) for prompt, completions in groups for completion in completions]
    rows = [_lay_out(prompt, completions) for prompt, completions in groups]
    ids, positions, segments, _ = zip(*rows, strict=True)
    samples = [
        (row, places, completion)
        for row, ((_, completions), (_, _, _, of_row)) in enumerate(zip(groups, rows, strict=True))
        for places, completion in zip(of_row, completions, strict=True)
    ]
    in_rows, places, completions = zip(*samples, strict=True)
    tensors = {
        "input_ids_BL": pad_rows(ids), "position_ids_BL": pad_rows(positions),
        "mask_B1LL": tree_mask(pad_rows(segments, -1), dtype) if packing == "tree" else None,
        "rows_ST": torch.tensor(in_rows)[:, None].expand(-1, max(map(len, completions))),
        "places_ST": pad_rows(places), "targets_ST": pad_rows(completions),
        "keep_ST": pad_rows([[1] * len(c) for c in completions]).bool(),
    }
    return Packed(**{name: None if x is None else x.to(device) for name, x in tensors.items()})


def _lay_out(prompt: Sequence[int], completions: Sequence[Sequence[int]]):
    """Ids, positions, segments (0 prompt, 1.. samples) of a packed row; per sample the predicting places."""
    ids, positions, segments = list(prompt), list(range(len(prompt))), [0] * len(prompt)
    places = []
    for segment, completion in enumerate(completions, start=1):
        fed = completion[:-1]
        places.append([len(prompt) - 1, *range(len(ids), len(ids) + len(fed))])
        ids += fed
        positions += range(len(prompt), len(prompt) + len(fed))
        segments += [segment] * len(fed)
    return ids, positions, segments, places


def tree_mask(segments_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, L, L]: a token sees the prompt and its sample so far; padding (-1) sees itself."""
    length = segments_BL.shape[1]
    query, key = segments_BL[:, :, None], segments_BL[:, None, :]
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = earlier & ((key == 0) | (key == query)) & (query >= 0)
    allowed |= torch.eye(length, dtype=torch.bool)
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, -torch.inf)[:, None]


def pad_rows(rows: Sequence[Sequence[float]], value: int = 0) -> Tensor:
    """Rows of numbers as one tensor, filled up on the right."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])
