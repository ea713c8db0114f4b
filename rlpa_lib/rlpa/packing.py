"""Groups of samples as batches: all of them as one tree of tokens, or one row each.

Axes: S samples, T tokens of the longest completion, N completion tokens, of which U differ in what stands
before them or in themselves; B packed rows, L tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlpa_lib.rlpa import tree as trees

Group = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]  # token ids of a prompt and of its completions


@dataclass(frozen=True)
class Packed:
    """Model input, and where completion tokens are predicted: state (row, place) number u predicts the u-th
    target. The n-th completion token is prediction `steps_N[n]`, and number `kept_N[n]` of the [S, T] table
    of samples and places, whose real tokens `keep_ST` marks.

    Places are integers made from the lists: finding them in a mask would have the CPU wait for the device.
    `tree`: how attention runs over one row that holds a tree; None: plain causal attention.
    """

    input_ids_BL: Tensor
    position_ids_BL: Tensor
    tree: trees.Blocks | None
    keep_ST: Tensor
    kept_N: Tensor
    steps_N: Tensor
    rows_U: Tensor
    places_U: Tensor
    targets_U: Tensor


def pack_groups(
    groups: Sequence[Group], packing: str, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Packed:
    """All samples as one tree ("tree"), or a row each ("rows"), in the given order.

    The last token of a sample is only a target.
    """
    samples = [(prompt, completion) for prompt, completions in groups for completion in completions]
    fed, blocks = feed(groups), None
    if packing == "tree":
        tree = trees.grow(fed)
        blocks = trees.plan_attention(tree, dtype, device)
        ids, positions, paths, rows = [tree.tokens], [tree.positions], tree.paths, [0] * len(fed)
    else:
        ids, positions = fed, [range(len(row)) for row in fed]
        paths, rows = positions, range(len(fed))
    longest = max(len(completion) for _, completion in samples)
    steps: dict[tuple[int, int, int], int] = {}  # (row, place, target) -> its number
    flat = [
        (sample * longest + t, steps.setdefault((rows[sample], place, token), len(steps)))
        for sample, (prompt, completion) in enumerate(samples)
        for t, (place, token) in enumerate(zip(paths[sample][len(prompt) - 1 :], completion, strict=True))
    ]
    (kept, of_step), (at_rows, at, targets) = torch.tensor(flat).T.contiguous(), torch.tensor([*steps]).T
    tensors = {
        "input_ids_BL": pad_rows(ids), "position_ids_BL": pad_rows(positions),
        "keep_ST": pad_rows([[1] * len(completion) for _, completion in samples]).bool(),
        "kept_N": kept, "steps_N": of_step,
        "rows_U": at_rows.contiguous(), "places_U": at.contiguous(), "targets_U": targets.contiguous(),
    }
    return Packed(tree=blocks, **{name: x.to(device) for name, x in tensors.items()})


def feed(groups: Sequence[Group]) -> list[tuple[int, ...]]:
    """What the network reads of each sample: the prompt, and all but the last token of the completion."""
    return [(*prompt, *completion[:-1]) for prompt, completions in groups for completion in completions]


def pad_rows(rows: Sequence[Sequence[float]], value: int = 0) -> Tensor:
    """Rows of numbers as one tensor, filled up on the right."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def spread(flat: Tensor, packed: Packed) -> Tensor:
    """Numbers of predictions [U, ...] at the tokens that they are of [S, T, ...], zero elsewhere."""
    shape, of_tokens = packed.keep_ST.shape, flat.index_select(0, packed.steps_N)
    made = flat.new_zeros(shape.numel(), *flat.shape[1:])
    return made.index_copy(0, packed.kept_N, of_tokens).unflatten(0, shape)
