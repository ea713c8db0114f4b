"""Batched sampling in which the N samples of a prompt share one copy of the prompt's keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlpa_lib.agents.prefill import PromptMemory, run_prompts

KERNEL = "rlpa_shared_prefix"
BLOCK = 64  # tokens by which the store of sampled keys grows


@dataclass(frozen=True)
class Sampled:
    """Token ids and log-probabilities of one row, cut after the end token; `finished`: whether it came."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


class SharedPrefix:
    """Keys and values while decoding: per layer the prompts' [P, H, L, D] and the rows' own [R, H, T, D].

    `slots_R` places a row at prompt * n + sample; a row that ended early leaves its slot empty.
    """

    def __init__(self, keys: list[torch.Tensor], values: list[torch.Tensor], lengths_P: torch.Tensor, n: int):
        self.prompt_keys, self.prompt_values, self.n, self.step = keys, values, n, 0
        places_L = torch.arange(keys[0].shape[2], device=keys[0].device)
        outside = places_L[None, :] >= lengths_P[:, None]
        self.mask_P11L = torch.zeros(outside.shape, device=outside.device).masked_fill(outside, -torch.inf)[
            :, None, None
        ]
        self.slots_R = torch.arange(len(lengths_P) * n, device=keys[0].device)
        self.own_keys: list[torch.Tensor] = [self._room(k) for k in keys]
        self.own_values: list[torch.Tensor] = [self._room(v) for v in values]

    def _room(self, prompt: torch.Tensor) -> torch.Tensor:
        return prompt.new_zeros(len(self.slots_R), prompt.shape[1], BLOCK, prompt.shape[3])

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's key and value of this step; return all its own so far, each [R, H, step + 1, D]."""
        for store, new in ((self.own_keys, key), (self.own_values, value)):
            if self.step >= store[layer].shape[2]:
                store[layer] = torch.cat([store[layer], torch.zeros_like(store[layer][:, :, :BLOCK])], dim=2)
            store[layer][:, :, self.step] = new[:, :, 0]
        return self.own_keys[layer][:, :, : self.step + 1], self.own_values[layer][:, :, : self.step + 1]

    def keep(self, rows: torch.Tensor) -> None:
        """Continue with these rows only; prompts without any are dropped."""
        kept, slots = self.slots_R[rows], self.slots_R[rows]
        prompts, place = torch.unique(kept // self.n, return_inverse=True)
        self.slots_R = place * self.n + slots % self.n
        self.mask_P11L = self.mask_P11L[prompts]
        for store in (self.prompt_keys, self.prompt_values):
            store[:] = [tensor[prompts] for tensor in store]
        for store in (self.own_keys, self.own_values):
            store[:] = [tensor[rows] for tensor in store]


def _part(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> list[torch.Tensor]:
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
    own_keys, own_values = shared.append(module.layer_idx, key, value)
    rows, heads, _, dim = query.shape
    kv, n = key.shape[1], shared.n
    per_kv = heads // kv
    query = (query * scaling).view(rows, kv, per_kv, dim)
    slots = shared.mask_P11L.shape[0] * n
    spread = query
    if slots != rows:
        spread = query.new_zeros(slots, kv, per_kv, dim).index_copy_(0, shared.slots_R, query)
    grouped = spread.view(-1, n, kv, per_kv, dim).transpose(1, 2).reshape(-1, kv, n * per_kv, dim)
    layer = module.layer_idx
    parts = _part(grouped, shared.prompt_keys[layer], shared.prompt_values[layer], shared.mask_P11L)
    parts = [
        p.view(-1, kv, n, per_kv, p.shape[-1]).transpose(1, 2).reshape(slots, kv, per_kv, -1) for p in parts
    ]
    if slots != rows:
        parts = [p[shared.slots_R] for p in parts]
    top, weight, summed = parts
    own_top, own_weight, own_summed = _part(query, own_keys, own_values, None)
    peak = torch.maximum(top, own_top)
    scale, own_scale = (top - peak).exp_(), (own_top - peak).exp_()
    joined = (summed * scale + own_summed * own_scale) / (weight * scale + own_weight * own_scale)
    return joined.to(query.dtype).reshape(rows, 1, heads, dim), None


@contextmanager
def decoding_kernel(model: PreTrainedModel) -> Iterator[None]:
    """Within the context the model's layers use `shared_prefix_attention`."""
    ALL_ATTENTION_FUNCTIONS.register(KERNEL, shared_prefix_attention)
    before = model.config._attn_implementation
    model.config._attn_implementation = KERNEL
    try:
        yield
    finally:
        model.config._attn_implementation = before


def prefill(
    model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], owners_P: torch.Tensor, n: int,
    portion: int | None = None, memory: PromptMemory | None = None,
) -> tuple[SharedPrefix, torch.Tensor, torch.Tensor]:
    """Run each prompt once: the owners' SharedPrefix, last hidden states [P * n, 1, D], lengths [P * n]."""
    last, keys, values = run_prompts(model, prompts, portion, memory)
    lengths = torch.tensor([len(p) for p in prompts], device=owners_P.device)[owners_P]
    shared = SharedPrefix(*([layer[owners_P] for layer in store] for store in (keys, values)), lengths, n)
    return shared, last[owners_P].repeat_interleave(n, dim=0)[:, None], lengths.repeat_interleave(n)


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


class _Output:
    """What R rows have said so far, over T steps."""

    def __init__(self, rows: int, steps: int, end_id: int, device: torch.device):
        self.end_id = end_id
        self.tokens_RT = torch.full((rows, steps), end_id, dtype=torch.long, device=device)
        self.logprobs_RT = torch.zeros(rows, steps, device=device)
        self.sizes_R = torch.full((rows,), steps, device=device)
        self.done_R = torch.zeros(rows, dtype=torch.bool, device=device)

    def write(
        self, rows: torch.Tensor, step: int, tokens: torch.Tensor, logprobs: torch.Tensor
    ) -> torch.Tensor:
        """Record one step of these rows; return which of them go on. Nothing after a row's end is read."""
        self.tokens_RT[rows, step], self.logprobs_RT[rows, step] = tokens, logprobs
        ended = rows[(tokens == self.end_id) & ~self.done_R[rows]]
        self.sizes_R[ended] = step + 1
        self.done_R[ended] = True
        return ~self.done_R[rows]

    def sampled(self) -> list[Sampled]:
        columns = (self.tokens_RT, self.logprobs_RT, self.sizes_R, self.done_R)
        lists = zip(*(column.tolist() for column in columns), strict=True)
        return [
            Sampled(tuple(tokens[:size]), tuple(logprobs[:size]), done)
            for tokens, logprobs, size, done in lists
        ]


@torch.inference_mode()
def decode(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], owners: Sequence[int], n: int,
    draws_RT: torch.Tensor, *, temperature: float, end_id: int, portion: int | None = None,
    memory: PromptMemory | None = None,
) -> list[Sampled]:
    """Sample n completions for each of `owners` (indices into the distinct `prompts`): R = len(owners) * n
    rows, an owner's side by side. `draws_RT` holds a number in [0, 1) per row and step (T at most). Rows that
    ended leave the batch once they are half of it. `portion`, `memory`: see `run_prompts`."""
    device = model.get_input_embeddings().weight.device
    head, body, (total, longest) = model.get_output_embeddings(), model.get_decoder(), draws_RT.shape
    draws_RT = draws_RT.to(device)
    shared, hidden, lengths_R = prefill(
        model, prompts, torch.tensor(owners, device=device), n, portion, memory
    )
    output, rows = _Output(total, longest, end_id, device), torch.arange(total, device=device)
    with decoding_kernel(model):
        for step in range(longest):
            token, logprob = choose(head(hidden[:, -1]), draws_RT[rows, step], temperature)
            running = output.write(rows, step, token[:, 0], logprob[:, 0])
            n_running = int(running.sum())
            if n_running == 0 or step + 1 == longest:
                break
            if 2 * n_running <= len(rows):
                local = running.nonzero()[:, 0]
                shared.keep(local)
                rows, token = rows[local], token[local]
            shared.step = step
            places = (lengths_R[rows] + step)[:, None]
            hidden = body(
                input_ids=token, position_ids=places, use_cache=False, shared=shared
            ).last_hidden_state
    return output.sampled()
