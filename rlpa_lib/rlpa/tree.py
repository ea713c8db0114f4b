"""Token sequences as one tree: what several of them begin with runs through the network once.

Three turns of a dialogue, two samples each (S system prompt, u user, p profile block, r reply; each letter a
run of tokens). Samples of a turn often begin with the same profile block; the next turn's prompt goes on with
the reply that was kept; only the latest reply in a prompt shows its block.

    turn 1   S u1 | p1 r1                                        S u1 -+- p1 -+- r1 u2 -+- p2 r3
             S u1 | p1 r2                                              |      |         '- p3 r4
    turn 2   S u1 p1 r1 u2 | p2 r3             as a tree               |      '- r2
             S u1 p1 r1 u2 | p3 r4                                     '- r1 u2 p2 r3 u3 -+- p4 r5
    turn 3   S u1 r1 u2 p2 r3 u3 | p4 r5                                                  '- p5 r6
             S u1 r1 u2 p2 r3 u3 | p5 r6

Nothing but tokens decides: where a template or a window has prompts share less, the tree shares less, and
sequences that share nothing are a forest. The tokens stand in one row, depth first, so that all that follows
a token is a run of places. A token's position is that in its own sequence; it sees what is above it.

Attention with one square mask would mostly compute what nobody sees. `cut` parts the row into blocks of
queries, each with the keys of its own places and of those above: a chain without a branch, all that follows
one, or a whole subtree, whichever is least work. A chain at the root is plain causal attention.

Axes: L places, Q queries and K keys of a block, H heads, D dimensions of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

KERNEL = "rlpa_tree"  # transformers' name for `attend`
CALL, KEY = 4096, 64  # in scores (query times key), what it takes to begin a block and to keep a key

Span = tuple[int, int]  # places from the first to before the last


class Block(NamedTuple):
    """A run of queries, the places of their keys, and whether what they see is plain causal attention."""

    queries: Span
    keys: list[Span]
    causal: bool

    @property
    def size(self) -> tuple[int, int]:
        """Q and K."""
        return self.queries[1] - self.queries[0], sum(stop - start for start, stop in self.keys)


@dataclass(frozen=True)
class Tree:
    """Tokens and positions at the places of a row, and which places each of the sequences takes.

    `chains` are the runs of places without a branch, in order; `above` the chain before each (-1: none).
    """

    tokens: list[int]
    positions: list[int]
    paths: list[list[int]]
    chains: list[Span]
    above: list[int]

    def subtrees(self) -> list[Span]:
        """For each chain the places from its start to the end of all that follows it."""
        stops = [stop for _, stop in self.chains]
        for chain, above in reversed([*enumerate(self.above)]):
            if above >= 0:
                stops[above] = max(stops[above], stops[chain])
        return [(start, stop) for (start, _), stop in zip(self.chains, stops, strict=True)]


def count_shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    unlike = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(unlike, min(len(first), len(second)))


def count_places(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens of the sequences' tree."""
    ordered = sorted(sequences)
    return sum(map(len, ordered)) - sum(count_shared(*pair) for pair in pairwise(ordered))


def grow(sequences: Sequence[tuple[int, ...]]) -> Tree:
    """The tree of these sequences; equal ones take the same places."""
    tokens, positions, paths, starts, parents = [], [], [[]] * len(sequences), {0}, {}
    before, path = (), []
    for index in sorted(range(len(sequences)), key=sequences.__getitem__):
        sequence, place = sequences[index], len(tokens)
        shared = count_shared(before, sequence)
        new = range(place, place + len(sequence) - shared)
        if new and place and shared < len(before):  # a branch, so the chain above ends here
            parents[place] = path[shared - 1] if shared else -1
            starts |= {place, parents[place] + 1}
        tokens += sequence[shared:]
        positions += range(shared, len(sequence))
        before, path = sequence, path[:shared] + [*new]
        paths[index] = path
    bounds = [*sorted(starts), len(tokens)]
    last = {stop - 1: chain for chain, stop in enumerate(bounds[1:])}
    above = [last.get(parents.get(start, start - 1), -1) for start in bounds[:-1]]
    return Tree(tokens, positions, paths, list(pairwise(bounds)), above)


def cut(tree: Tree) -> list[Block]:
    """The tree's row in blocks, from the first place on."""
    spans, below = tree.subtrees(), [[] for _ in tree.chains]
    for chain, above in enumerate(tree.above):
        if above >= 0:
            below[above].append(chain)
    plans = [(0, "")] * len(spans)
    for chain in reversed(range(len(spans))):
        (start, end), stop, depth = tree.chains[chain], spans[chain][1], tree.positions[spans[chain][0]]
        alone, all_below = _cost(end - start, depth + end - start), _cost(stop - end, depth + stop - start)
        plans[chain] = min(
            (_cost(stop - start, depth + stop - start), "whole"), (alone + all_below, "in two"),
            (alone + sum(plans[c][0] for c in below[chain]), "each"),
        )
    blocks, seen, done = [], {-1: []}, 0
    for chain, (start, stop) in enumerate(spans):
        if start < done:  # in a block of a chain above
            continue
        above, end, way = tree.above[chain], tree.chains[chain][1], plans[chain][1]
        upper = seen[above] + ([tree.chains[above]] if above >= 0 else [])
        first = stop if way == "whole" else end
        blocks.append(Block((start, first), _join([*upper, (start, first)]), not upper and first == end))
        if way == "in two":
            blocks.append(Block((end, stop), _join([*upper, (start, stop)]), False))
        seen[chain], done = upper, end if way == "each" else stop
    return blocks


def _cost(queries: int, keys: int) -> int:
    return CALL + (queries + KEY) * keys


@dataclass(frozen=True)
class Blocks:
    """Attention over a tree's row: how many queries each block has, the spans of all keys one after another,
    how many keys each block has, and masks [1, 1, Q, K] (0 or -inf; None: causal)."""

    queries: list[int]
    spans: list[Span]
    keys: list[int]
    masks: list[Tensor | None]


def plan_attention(tree: Tree, dtype: torch.dtype, device: torch.device | str) -> Blocks:
    """The tree's blocks with their masks, made on the device from places alone: nothing is read back."""
    ends = [0] * len(tree.tokens)
    for (start, end), (_, stop) in zip(tree.chains, tree.subtrees(), strict=True):
        ends[start:end] = [stop] * (end - start)
    ends_L, blocks = torch.tensor([*ends, 0]).to(device), cut(tree)
    queries, keys = zip(*(block.size for block in blocks), strict=True)
    masks = [None if block.causal else _mask(block, ends_L, dtype) for block in blocks]
    return Blocks([*queries], [span for block in blocks for span in block.keys], [*keys], masks)


def _join(spans: Sequence[Span]) -> list[Span]:
    """The same places in as few spans as there can be."""
    joined: list[Span] = []
    for start, stop in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def _mask(block: Block, ends_L: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [1, 1, Q, K]. Its rows begin at multiples of 8 numbers: of any other the memory-efficient
    attention of GPUs makes a copy in every layer, and keeps it for the backward pass."""
    _, size = block.size
    nowhere = [torch.full((-size % 8,), len(ends_L) - 1)]  # seen from no place
    keys_K = torch.cat([torch.arange(*span) for span in block.keys] + nowhere).to(ends_L.device)
    query_Q1 = torch.arange(*block.queries, device=ends_L.device)[:, None]
    seen = (keys_K <= query_Q1) & (query_Q1 < ends_L[keys_K])
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, -torch.inf)
    return mask[None, None, :, :size]


class _Gather(torch.autograd.Function):
    """Spans of [1, H, L, D] along L, one after another; gradients add up where spans overlap. (Slices would
    each have a gradient of the whole length.)"""

    @staticmethod
    def forward(ctx, x: Tensor, spans: list[Span]) -> Tensor:
        ctx.shape, ctx.spans = x.shape, spans
        return torch.cat([x[:, :, start:stop] for start, stop in spans], dim=2)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        made = gradient.new_zeros(ctx.shape)
        parts = gradient.split([stop - start for start, stop in ctx.spans], dim=2)
        for (start, stop), part in zip(ctx.spans, parts, strict=True):
            made[:, :, start:stop] += part
        return made, None


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, *, tree: Blocks,
    scaling: float | None = None, dropout: float = 0.0, **_,
) -> tuple[Tensor, None]:
    """A layer's attention, block by block; queries [1, H, L, D], keys and values of H or fewer heads."""
    shared = query.shape[1] // key.shape[1]
    if len(tree.spans) > 1:
        key, value = (_Gather.apply(x, tree.spans) for x in (key, value))
    sides = query.split(tree.queries, dim=2), key.split(tree.keys, dim=2), value.split(tree.keys, dim=2)
    made = []
    for q, k, v, mask in zip(*sides, tree.masks, strict=True):
        if mask is None:
            kind = {"is_causal": True, "enable_gqa": shared > 1}
        else:  # under a mask no fast kernel of a GPU lets heads share keys
            kind = {"attn_mask": mask}
            k, v = (x.repeat_interleave(shared, dim=1) if shared > 1 else x for x in (k, v))
        out = functional.scaled_dot_product_attention(q, k, v, scale=scaling, dropout_p=dropout, **kind)
        made.append(out.transpose(1, 2))
    return made[0] if len(made) == 1 else torch.cat(made, dim=1), None
