"""Runs prompts through the model and keeps the results, so that the next call skips known beginnings."""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel


@dataclass(frozen=True)
class Kept:
    """A prompt, and its row in the keys and values [P, H, L, D] per layer of the batch it was run in."""

    prompt: tuple[int, ...]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    row: int


class PromptMemory:
    """Keys and values of the last call's prompts: a prompt that begins like one of them is run from there on.

    `begin` opens a call (`forget`: nothing known), `known` looks up, `add` stores; weights stay fixed.
    """

    def __init__(self) -> None:
        self._before: list[Kept] = []
        self._now: list[Kept] = []

    def begin(self, forget: bool) -> None:
        self._before, self._now = [] if forget else sorted(self._now, key=lambda kept: kept.prompt), []

    def known(self, prompt: tuple[int, ...]) -> tuple[Kept | None, int]:
        """(prompt that shares most tokens with this one, how many); at least one token is left to run."""
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
        """Store keys and values of one batch, per layer [P, H, L, D], padded on the right."""
        self._now += [Kept(tuple(prompt), keys, values, row) for row, prompt in enumerate(prompts)]


def run_prompts(
    model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], portion: int | None = None,
    memory: PromptMemory | None = None,
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Last hidden states [P, D], and keys and values per layer [P, H, L, D], padded on the right. `portion`
    is how many tokens pass at once (None: all): a CPU is faster on what its cache can hold. With `memory`,
    beginnings shared with a prompt of the last call are not run again."""
    device = model.get_input_embeddings().weight.device
    longest = max(map(len, prompts))
    known = [memory.known(tuple(p)) if memory else (None, 0) for p in prompts]
    last, keys, values, start = [], [], [], 0
    for size in _portions([len(p) - shared for p, (_, shared) in zip(prompts, known, strict=True)], portion):
        part = slice(start, start + size)
        hidden, cache = _run(model, prompts[part], known[part], device)
        last.append(hidden)
        keys.append([_widen(layer_keys, longest) for layer_keys, _ in cache])
        values.append([_widen(layer_values, longest) for _, layer_values in cache])
        start += size
    keys, values = (
        [torch.cat(layer) if len(layer) > 1 else layer[0] for layer in zip(*store, strict=True)]
        for store in (keys, values)
    )
    if memory is not None:
        memory.add(prompts, keys, values)
    return torch.cat(last), keys, values


def _run(
    model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], known: Sequence[tuple[Kept | None, int]],
    device: torch.device,
):
    """(last hidden states [P, D], keys and values per layer [P, H, L, D]); beginnings may be known."""
    shared_P = torch.tensor([shared for _, shared in known], device=device)
    rests = [p[shared:] for p, (_, shared) in zip(prompts, known, strict=True)]
    width, past = max(map(len, rests)), int(shared_P.max())
    ids = torch.tensor([[*rest, *[0] * (width - len(rest))] for rest in rests], device=device)
    cache, given = DynamicCache(config=model.config), {}
    if past:
        for layer in range(model.config.num_hidden_layers):
            cache.update(*(_beginnings(known, name, layer, past) for name in ("keys", "values")), layer)
        rest_S, past_C = torch.arange(width, device=device), torch.arange(past, device=device)
        own_PSS = (rest_S[:, None] >= rest_S).expand(len(prompts), -1, -1)
        seen = torch.cat([(past_C < shared_P[:, None])[:, None].expand(-1, width, -1), own_PSS], dim=-1)
        mask = torch.zeros(seen.shape, dtype=model.dtype, device=device).masked_fill(
            ~seen, torch.finfo(model.dtype).min
        )
        given = {"attention_mask": mask[:, None], "position_ids": shared_P[:, None] + rest_S}
    hidden = model.get_decoder()(  # without a past, causal attention ignores padding behind: no mask needed
        input_ids=ids, past_key_values=cache, use_cache=True, **given
    ).last_hidden_state
    ends = torch.tensor([len(rest) - 1 for rest in rests], device=device)
    last = hidden[torch.arange(len(prompts), device=device), ends]
    pairs = [(layer.keys, layer.values) for layer in cache.layers]
    if past:  # a gap lies between a known beginning and the rest
        place_L = torch.arange(max(map(len, prompts)), device=device)
        from_L = torch.where(
            place_L < shared_P[:, None],
            place_L,
            (past + place_L - shared_P[:, None]).clamp_max(past + width - 1),
        )
        pairs = [
            tuple(x.gather(2, from_L[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])) for x in pair)
            for pair in pairs
        ]
    return last, pairs


def _beginnings(known: Sequence[tuple[Kept | None, int]], name: str, layer: int, past: int) -> torch.Tensor:
    """What is known of each prompt, keys or values of a layer: [P, H, past, D], padded with zeros."""
    like = next(getattr(kept, name)[layer] for kept, _ in known if kept is not None)
    out = like.new_zeros(len(known), like.shape[1], past, like.shape[3])
    for row, (kept, shared) in enumerate(known):
        if kept is not None:
            out[row, :, :shared] = getattr(kept, name)[layer][kept.row, :, :shared]
    return out


def _portions(sizes: Sequence[int], tokens: int | None) -> Iterator[int]:
    """How many rows of these lengths pass at once: at most `tokens` after padding, at least one row."""
    start = 0
    for end in range(1, len(sizes) + 1):
        full = (
            tokens is not None
            and end < len(sizes)
            and (end + 1 - start) * max(sizes[start : end + 1]) > tokens
        )
        if full or end == len(sizes):
            yield end - start
            start = end


def _widen(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """Keys or values [P, H, L, D] padded with zeros to `length` tokens, which the mask leaves out."""
    return (
        torch.nn.functional.pad(tensor, (0, 0, 0, length - tensor.shape[2]))
        if tensor.shape[2] < length
        else tensor
    )
