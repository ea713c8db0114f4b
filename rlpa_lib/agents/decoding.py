"""Batched sampling: a prompt is run once, from where the last call's prompts end, and its N samples share one
copy of its keys and values."""

import bisect
import math
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from rlpa_lib.agents import architecture

KERNEL = "rlpa_shared_prefix"
BLOCK = 64  # tokens by which the store of sampled keys grows

Prompt = tuple[int, ...]
Layers = list[Sequence[torch.Tensor]]  # keys and values of each layer, both [P, H, L, D]
Sampled = tuple[tuple[int, ...], tuple[float, ...], bool]  # token ids, log-probabilities, finished


@dataclass(frozen=True)
class Kept:
    """A prompt, and its row in the keys and values of the batch it was run in."""

    prompt: Prompt
    layers: Layers
    row: int


class PromptMemory:
    """Keys and values of the last call's prompts: a prompt that begins like one of them is run from there on.

    `begin` opens a call, `known` looks up, `add` stores; weights stay fixed. Only tokens are compared: why
    prompts begin alike (a dialogue goes on, a draft is reviewed, a window has slid on) does not matter.
    """

    def __init__(self) -> None:
        self._before: list[Kept] = []
        self._now: list[Kept] = []

    def begin(self) -> None:
        self._before, self._now = sorted(self._now, key=lambda kept: kept.prompt), []

    def known(self, prompt: Prompt) -> tuple[Kept | None, int]:
        """(prompt that shares most tokens with this one, how many); at least one token is left to run."""
        place = bisect.bisect(self._before, prompt, key=lambda kept: kept.prompt)
        near = [
            (len(os.path.commonprefix([kept.prompt, prompt[:-1]])), kept)
            for kept in self._before[max(0, place - 1) : place + 1]
        ]
        length, kept = max(near, key=lambda pair: pair[0], default=(0, None))
        return (kept, length) if length else (None, 0)

    def add(self, prompts: Sequence[Prompt], layers: Layers) -> None:
        self._now += [Kept(prompt, layers, row) for row, prompt in enumerate(prompts)]


@torch.inference_mode()
def run_prompts(
    model: PreTrainedModel, prompts: Sequence[Prompt], portion: int | None = None,
    memory: PromptMemory | None = None,
) -> tuple[torch.Tensor, Layers]:
    """Last hidden states [P, D], and keys and values per layer, padded on the right. `portion` is how many
    tokens pass at once (None: all): a CPU is faster on what its cache can hold. With `memory`, beginnings
    shared with a prompt of the last call are not run again."""
    known = [memory.known(prompt) if memory else (None, 0) for prompt in prompts]
    longest, parts, start = max(map(len, prompts)), [], 0
    for size in _portions([len(p) - shared for p, (_, shared) in zip(prompts, known, strict=True)], portion):
        parts.append(_run(model, prompts[start : start + size], known[start : start + size]))
        start += size
    last, layers = torch.cat([hidden for hidden, _ in parts]), parts[0][1]
    if len(parts) > 1:
        by_layer = zip(*(pairs for _, pairs in parts), strict=True)
        layers = [[_stack(same, longest) for same in zip(*pairs, strict=True)] for pairs in by_layer]
    if memory is not None:
        memory.add(prompts, layers)
    return last, layers


def _stack(tensors: Sequence[torch.Tensor], length: int) -> torch.Tensor:
    """Keys or values of several portions as one, padded with zeros to `length` tokens."""
    return torch.cat([pad(x, (0, 0, 0, length - x.shape[2])) for x in tensors])


def _portions(sizes: Sequence[int], tokens: int | None) -> Iterator[int]:
    """How many rows of these lengths pass at once: at most `tokens` after padding, at least one row."""
    start, limit = 0, math.inf if tokens is None else tokens
    for end in range(1, len(sizes) + 1):
        if end == len(sizes) or (end + 1 - start) * max(sizes[start : end + 1]) > limit:
            yield end - start
            start = end


def _run(
    model: PreTrainedModel, prompts: Sequence[Prompt], known: Sequence[tuple[Kept | None, int]]
) -> tuple[torch.Tensor, Layers]:
    """`run_prompts` of one portion, whose beginnings may be known."""
    device = model.get_input_embeddings().weight.device
    shared_P = torch.tensor([shared for _, shared in known]).to(device)
    rests = [p[shared:] for p, (_, shared) in zip(prompts, known, strict=True)]
    width, past = max(map(len, rests)), max(shared for _, shared in known)
    ids = torch.tensor([[*rest, *[0] * (width - len(rest))] for rest in rests]).to(device)
    cache, given = DynamicCache(config=model.config), {}
    if past:
        for layer in range(model.config.num_hidden_layers):
            cache.update(*_beginnings(known, layer, past), layer)
        rest_S, past_C = torch.arange(width, device=device), torch.arange(past, device=device)
        own_PSS = (rest_S[:, None] >= rest_S).expand(len(prompts), -1, -1)
        seen = torch.cat([(past_C < shared_P[:, None])[:, None].expand(-1, width, -1), own_PSS], dim=-1)
        mask = torch.zeros(seen.shape, dtype=model.dtype, device=device)
        mask = mask.masked_fill(~seen, torch.finfo(model.dtype).min)
        given = {"attention_mask": mask[:, None], "position_ids": shared_P[:, None] + rest_S}
    # without a past, causal attention ignores padding behind: no mask needed
    out = model.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True, **given)
    ends = torch.tensor([len(rest) - 1 for rest in rests]).to(device)
    last = out.last_hidden_state[torch.arange(len(prompts), device=device), ends]
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    if past:  # a gap lies between a known beginning and the rest
        place_L, shared_P1 = torch.arange(max(map(len, prompts)), device=device), shared_P[:, None]
        behind = (past + place_L - shared_P1).clamp_max(past + width - 1)
        from_P1L1 = torch.where(place_L < shared_P1, place_L, behind)[:, None, :, None]
        layers = [
            [x.gather(2, from_P1L1.expand(-1, x.shape[1], -1, x.shape[3])) for x in pair] for pair in layers
        ]
    return last, layers


def _beginnings(known: Sequence[tuple[Kept | None, int]], layer: int, past: int) -> list[torch.Tensor]:
    """What is known of each prompt, keys and values of a layer: [P, H, past, D], padded with zeros."""
    like = next(kept.layers[layer] for kept, _ in known if kept is not None)
    out = [x.new_zeros(len(known), x.shape[1], past, x.shape[3]) for x in like]
    for row, (kept, shared) in enumerate(known):
        if kept is not None:
            for store, x in zip(out, kept.layers[layer], strict=True):
                store[row, :, :shared] = x[kept.row, :, :shared]
    return out


class SharedPrefix:
    """Keys and values while decoding: per layer the prompts' [P, H, L, D] and the rows' own [R, H, T, D].

    `slots_R` places a row at prompt * n + sample; a row that ended early leaves its slot empty.
    """

    def __init__(self, prompt: Layers, lengths_P: torch.Tensor, n: int):
        self.prompt, self.n, self.step = prompt, n, 0
        outside_PL = torch.arange(prompt[0][0].shape[2], device=lengths_P.device) >= lengths_P[:, None]
        self.mask_P11L = torch.where(outside_PL, -torch.inf, 0.0)[:, None, None]
        rows = len(lengths_P) * n
        self.slots_R = torch.arange(rows, device=lengths_P.device)
        self.own = [[x.new_zeros(rows, x.shape[1], BLOCK, x.shape[3]) for x in pair] for pair in prompt]

    def append(self, layer: int, *new: torch.Tensor) -> list[torch.Tensor]:
        """Store a layer's key and value of this step; return all its own so far, each [R, H, step + 1, D]."""
        own = self.own[layer]
        for i, x in enumerate(new):
            if self.step >= own[i].shape[2]:
                own[i] = torch.cat([own[i], torch.zeros_like(own[i][:, :, :BLOCK])], dim=2)
            own[i][:, :, self.step] = x[:, :, 0]
        return [store[:, :, : self.step + 1] for store in own]

    def keep(self, rows: torch.Tensor) -> None:
        """Continue with these rows only; prompts without any are dropped."""
        slots = self.slots_R[rows]
        prompts, place = torch.unique(slots // self.n, return_inverse=True)
        self.slots_R, self.mask_P11L = place * self.n + slots % self.n, self.mask_P11L[prompts]
        for layers, kept in ((self.prompt, prompts), (self.own, rows)):
            for i, pair in enumerate(layers):
                layers[i] = [x[kept] for x in pair]


def _part(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None):
    """Unnormalised attention over one span: maximum score, sum of weights, weighted values (all fp32)."""
    scores = (query @ key.transpose(-1, -2)).float()
    if mask is not None:
        scores = scores + mask
    top = scores.amax(-1, keepdim=True)
    weights = (scores - top).exp_()
    return [top, weights.sum(-1, keepdim=True), (weights.to(value.dtype) @ value).float()]


def shared_prefix_attention(module, query, key, value, attention_mask, scaling=None, shared=None, **_):
    """Attention of one new token a row (query [R, heads, 1, D]) over the shared prompt and the row's own
    tokens, computed apart and joined by log-sum-exp, so that prompt keys are read once for n samples."""
    own = shared.append(module.layer_idx, key, value)
    (rows, heads, _, dim), kv, n = query.shape, key.shape[1], shared.n
    per_kv, slots = heads // kv, shared.mask_P11L.shape[0] * n
    query = spread = (query * scaling).view(rows, kv, per_kv, dim)
    if slots != rows:
        spread = query.new_zeros(slots, kv, per_kv, dim).index_copy_(0, shared.slots_R, query)
    grouped = spread.view(-1, n, kv, per_kv, dim).transpose(1, 2).reshape(-1, kv, n * per_kv, dim)
    parts = [
        p.view(-1, kv, n, per_kv, p.shape[-1]).transpose(1, 2).reshape(slots, kv, per_kv, -1)
        for p in _part(grouped, *shared.prompt[module.layer_idx], shared.mask_P11L)
    ]
    top, weight, summed = parts if slots == rows else [p[shared.slots_R] for p in parts]
    own_top, own_weight, own_summed = _part(query, *own, None)
    peak = torch.maximum(top, own_top)
    scale, own_scale = (top - peak).exp_(), (own_top - peak).exp_()
    joined = (summed * scale + own_summed * own_scale) / (weight * scale + own_weight * own_scale)
    return joined.to(query.dtype).reshape(rows, 1, heads, dim), None


def choose(
    logits_RV: torch.Tensor, draws_R: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pick a token a row and its log-probability, both [R, 1]; temperature 0 is greedy (log-probabilities at
    1). Sampling inverts the cumulative distribution at the row's number in [0, 1): rows stay independent."""
    logprobs = torch.log_softmax(logits_RV.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        tokens = logprobs.argmax(-1, keepdim=True)
    else:
        cumulative = logprobs.exp().cumsum(-1)
        tokens = torch.searchsorted(cumulative, draws_R[:, None] * cumulative[:, -1:], right=True)
        tokens = tokens.clamp_max(logits_RV.shape[-1] - 1)
    return tokens, logprobs.gather(-1, tokens)


def decode(
    model: PreTrainedModel, prompts: Sequence[Prompt], n: int, draws_RT: torch.Tensor, *, temperature: float,
    end_ids: Collection[int], portion: int | None = None, memory: PromptMemory | None = None,
) -> list[Sampled]:
    """Sample n completions for each prompt: R = len(prompts) * n rows, a prompt's side by side, cut after
    their end tokens. `draws_RT` holds a number in [0, 1) per row and step (T at most). Rows that ended leave
    the batch once they are half of it. Equal prompts are run once, as `run_prompts` says. InputError: the
    model computes something that is not computed here (`architecture.check` and `probe`)."""
    architecture.check(model, max(map(len, prompts)) + draws_RT.shape[1])
    architecture.probe(model, lambda *trial: _decode(model, *trial, temperature=1.0, end_ids=end_ids))
    options = {"portion": portion, "memory": memory}
    return _decode(model, prompts, n, draws_RT, temperature=temperature, end_ids=end_ids, **options)


@torch.inference_mode()
def _decode(
    model: PreTrainedModel, prompts: Sequence[Prompt], n: int, draws_RT: torch.Tensor, *, temperature: float,
    end_ids: Collection[int], portion: int | None = None, memory: PromptMemory | None = None,
) -> list[Sampled]:
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    last, layers = run_prompts(model, list(places), portion, memory)
    device, (total, longest) = last.device, draws_RT.shape
    owners_P = torch.tensor([places[prompt] for prompt in prompts]).to(device)
    lengths_P = torch.tensor([len(prompt) for prompt in prompts]).to(device)
    shared = SharedPrefix([[x[owners_P] for x in pair] for pair in layers], lengths_P, n)
    del layers
    hidden, lengths_R = last[owners_P].repeat_interleave(n, dim=0)[:, None], lengths_P.repeat_interleave(n)
    head, body, draws_RT = model.get_output_embeddings(), model.get_decoder(), draws_RT.to(device)
    ends = torch.tensor(sorted(end_ids)).to(device)
    tokens_RT = torch.full((total, longest), min(end_ids), device=device)
    logprobs_RT = torch.zeros(total, longest, device=device)
    rows, running = torch.arange(total, device=device), torch.ones(total, dtype=torch.bool, device=device)
    with architecture.use_attention(model, KERNEL, shared_prefix_attention):
        for step in range(longest):
            token, logprob = choose(head(hidden[:, -1]), draws_RT[rows, step], temperature)
            tokens_RT[rows, step], logprobs_RT[rows, step] = token[:, 0], logprob[:, 0]
            running = running & ~torch.isin(token[:, 0], ends)
            n_running = int(running.sum())
            if n_running == 0 or step + 1 == longest:
                break
            if 2 * n_running <= len(rows):
                local = running.nonzero()[:, 0]
                shared.keep(local)
                rows, token, running = rows[local], token[local], running[local]
            shared.step, places_R1 = step, (lengths_R[rows] + step)[:, None]
            out = body(input_ids=token, position_ids=places_R1, use_cache=False, shared=shared)
            hidden = out.last_hidden_state
    sampled = []
    for tokens, logprobs in zip(tokens_RT.tolist(), logprobs_RT.tolist(), strict=True):
        end = next((i for i, token in enumerate(tokens) if token in end_ids), None)
        size = longest if end is None else end + 1  # what follows the end is not read
        sampled.append((tuple(tokens[:size]), tuple(logprobs[:size]), end is not None))
    return sampled
