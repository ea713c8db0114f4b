"""Groups of samples as batches: all samples of a prompt behind one copy of it, or one row each.

Axes: S samples, T tokens of the longest completion, N completion tokens; B packed rows, L tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Group = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]  # token ids of a prompt and of its completions


@dataclass(frozen=True)
class Packed:
    """Model input, and where the N completion tokens are predicted: state (row, place) predicts the target,
    number `kept_N` of the [S, T] table of samples and places, whose real tokens `keep_ST` marks.

    Places are integers made from the lists: finding them in a mask would have the CPU wait for the device.
    `mask_B1LL` is additive (0 or -inf), or None where plain causal attention is right.
    """

    input_ids_BL: Tensor
    position_ids_BL: Tensor
    mask_B1LL: Tensor | None
    keep_ST: Tensor
    kept_N: Tensor
    rows_N: Tensor
    places_N: Tensor
    targets_N: Tensor


def pack_groups(
    groups: Sequence[Group], packing: str, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Packed:
    """All samples of a prompt behind one copy of it ("tree"), or one copy each ("rows"), in the given order.

    The last token of a sample is only a target.
    """
    if packing == "rows":
        groups = [(prompt, (completion,)) for prompt, completions in groups for completion in completions]
    ids, positions, segments, places, in_rows = [], [], [], [], []
    for row, (prompt, completions) in enumerate(groups):
        ids.append(list(prompt))
        positions.append(list(range(len(prompt))))
        segments.append([0] * len(prompt))
        for segment, completion in enumerate(completions, start=1):
            fed, start = completion[:-1], len(ids[row])
            in_rows.append(row)
            places.append([len(prompt) - 1, *range(start, start + len(fed))])
            ids[row] += fed
            positions[row] += range(len(prompt), len(prompt) + len(fed))
            segments[row] += [segment] * len(fed)
    targets = [completion for _, completions in groups for completion in completions]
    longest = max(map(len, targets))
    flat = [
        (sample * longest + t, in_rows[sample], place, token)
        for sample, completion in enumerate(targets)
        for t, (place, token) in enumerate(zip(places[sample], completion, strict=True))
    ]
    kept, rows, at, tokens = torch.tensor(flat).T.contiguous()
    tensors = {
        "input_ids_BL": pad_rows(ids), "position_ids_BL": pad_rows(positions),
        "mask_B1LL": tree_mask(pad_rows(segments, -1), dtype) if packing == "tree" else None,
        "keep_ST": pad_rows([[1] * len(c) for c in targets]).bool(),
        "kept_N": kept, "rows_N": rows, "places_N": at, "targets_N": tokens,
    }
    there = {name: x if x is None else x.to(device) for name, x in tensors.items()}
    if there["mask_B1LL"] is not None and there["mask_B1LL"].device.type != "cpu":
        there["mask_B1LL"] = align_rows(there["mask_B1LL"])
    return Packed(**there)


def align_rows(mask: Tensor) -> Tensor:
    """The same mask with rows that begin at multiples of 8 numbers: of any other torch's memory-efficient
    attention makes a copy in every layer, and keeps it for the backward pass."""
    length = mask.shape[-1]
    return mask.new_empty(*mask.shape[:-1], -(-length // 8) * 8)[..., :length].copy_(mask)


def tree_mask(segments_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, L, L]: a token sees the prompt (0) and its sample so far; padding (-1) itself."""
    length = segments_BL.shape[1]
    query, key = segments_BL[:, :, None], segments_BL[:, None, :]
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = earlier & ((key == 0) | (key == query)) & (query >= 0)
    allowed |= torch.eye(length, dtype=torch.bool)
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, -torch.inf)[:, None]


def pad_rows(rows: Sequence[Sequence[float]], value: int = 0) -> Tensor:
    """Rows of numbers as one tensor, filled up on the right."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def spread(flat: Tensor, packed: Packed) -> Tensor:
    """Kept tokens [N, ...] in their places [S, T, ...], zero elsewhere."""
    shape = packed.keep_ST.shape
    made = flat.new_zeros(shape.numel(), *flat.shape[1:])
    return made.index_copy(0, packed.kept_N, flat).unflatten(0, shape)
