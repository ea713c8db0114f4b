"""Policies: what turns message lists into sampled completions. `LocalPolicy` runs a transformers model in process."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from peft.tuners.lora import LoraLayer

from rlpa_lib.config import InputError
from rlpa_lib.decoding import Sampled, decode, prefill
from rlpa_lib.llm.quoting import defuse, exact_signs
from rlpa_lib.prompt_memory import PromptMemory

Message = dict[str, str]


@dataclass(frozen=True)
class Completion:
    """One sampled reply: the very ids that training uses, the end token included when `finished`.

    `logprobs` are natural logarithms at the temperature of sampling, fp32, one a token id. `version` counts the updates of
    the adapter that sampled it, where a server holds one (0: none yet, or sampled in process). `dropped` counts the oldest turns that its
    prompt had no room for (see `window`).
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finished: bool
    version: int = field(default=0, kw_only=True)
    dropped: int = field(default=0, kw_only=True)

    @property
    def n_generated(self) -> int:
        """How many tokens were generated; a policy behind an endpoint has a count but no ids."""
        return len(self.token_ids)


class Policy(Protocol):
    """Anything that can answer: n completions for each message list, in order."""

    def generate(
        self, messages: Sequence[list[Message]], n: int, *, seed: int, temperature: float, max_new_tokens: int
    ) -> list[list[Completion]]: ...


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts; the same parts give the same seed on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def harmless(tokenizer, messages: list[Message]) -> list[Message]:
    """The messages as data: a control token's name in a message ("<|user|>") is broken up, so that only the chat template, which is
    tokenised as one text with what the messages say, sets roles and ends turns."""
    specials = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    signs = exact_signs(frozenset(specials | set(tokenizer.all_special_tokens)))
    return [{**m, "content": defuse(m["content"], signs)} for m in messages]


def prompt_ids(tokenizer, messages: list[Message]) -> list[int]:
    """Token ids of a message list under the tokenizer's chat template, ready for the assistant's next words.

    A final assistant message is the beginning of the answer, which the policy continues (its completion holds what comes after).
    No message can bring control tokens in (`harmless`).
    """
    said = harmless(tokenizer, messages)
    said, begun = (said[:-1], said[-1]["content"]) if said[-1]["role"] == "assistant" else (said, "")
    text = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False) + begun
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def fit_prompt(tokenizer, messages: list[Message], limit: int) -> tuple[list[int], int]:
    """(token ids, number of dropped turns) of a prompt of at most `limit` tokens, by the rule of `window`. InputError as there."""
    encoded: dict[int, list[int]] = {}

    def size(part: list[Message]) -> int:
        encoded[len(part)] = prompt_ids(tokenizer, part)
        return len(encoded[len(part)])

    kept, dropped = window(messages, limit, size)
    return encoded[len(kept)], dropped


def window(messages: Sequence[Message], limit: int, size: Callable[[list[Message]], int]) -> tuple[list[Message], int]:
    """(messages of at most `limit` tokens, number of dropped turns): the rule for dialogues that outgrow the context.

    Whole turns (a user message and its answer) go, from the oldest on and no more than needed. System prompt and last user message stay
    always; the latest answer, which holds the latest profile block, is the last to go, and is lost only when it does not fit beside these
    two: then as many turns are dropped as there were. `size` is asked about log2(turns) times. InputError: those two alone are too long.
    """
    lead = [m for m in messages[:1] if m["role"] == "system"]
    rest = list(messages[len(lead) :])
    if size(lead + rest) <= limit:
        return lead + rest, 0
    low, high = 0, (len(rest) - 1) // 2  # an answer that was begun goes with the last user message
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if size(lead + rest[2 * middle :]) <= limit else (middle + 1, high)
    kept = lead + rest[2 * low :]
    if (tokens := size(kept)) > limit:
        raise InputError(f"rollout.max_prompt_tokens: the system prompt and the last user message take {tokens} tokens, limit {limit}")
    return kept, low


def row_draws(keys: Sequence[object], n: int, steps: int, seed: int) -> torch.Tensor:
    """Numbers in [0, 1) of shape [len(keys) * n, steps]: each row has its own stream, made from (seed, key, sample)."""
    rows = []
    for key in keys:
        for sample in range(n):
            generator = torch.Generator().manual_seed(derive_seed(seed, key, sample))
            rows.append(torch.rand(steps, generator=generator))
    return torch.stack(rows).clamp_max(1 - 1e-6)


@contextmanager
def merged_adapters(model) -> Iterator[None]:
    """Within the context the active LoRA adapters are added into the weights (fp32 only: other dtypes would round them away).

    Afterwards the weights are bit for bit what they were. A small model then decodes about a quarter faster.
    """
    table = model.get_input_embeddings().weight  # may be shared with the output layer
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, LoraLayer) and hasattr(layer, "get_delta_weight") and not (layer.merged or layer.disable_adapters)
    ]
    layers = [m for m in layers if m.base_layer.weight is not table and m.base_layer.weight.dtype == torch.float32]
    before = [layer.base_layer.weight.data for layer in layers]
    try:
        for layer, weight in zip(layers, before, strict=True):
            active = [name for name in layer.active_adapters if name in layer.lora_A]
            layer.base_layer.weight.data = weight + sum(layer.get_delta_weight(name) for name in active)
            layer.merged_adapters.extend(active)
        yield
    finally:
        for layer, weight in zip(layers, before, strict=True):
            layer.base_layer.weight.data = weight
            layer.merged_adapters.clear()


def _distinct(prompts: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Each prompt once, and for every entry where it stands there."""
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    return list(places), [places[prompt] for prompt in prompts]


class LocalPolicy:
    """A causal language model of transformers (with or without PEFT adapters) sampled by `decoding.decode`.

    A completion depends on (weights, seed, prompt, how many equal prompts came before it in the call, sample index),
    not on the batch around it, up to rounding. `n_cut` counts prompts that lost turns to `max_prompt_tokens`; `portion` is how many
    prompt tokens pass through the model at once (None: the whole batch). With `reuse`, for weights that do not change, a call that goes on
    from the last one (`goes_on`) runs of each prompt only what is new.
    """

    def __init__(
        self, model, tokenizer, *, max_prompt_tokens: int = 4096, batch_prompts: int = 128, portion: int | None = None, reuse: bool = False
    ):
        if tokenizer.eos_token_id is None:
            raise InputError("policy.model: the tokenizer has no end token")
        self.model, self.tokenizer = model, tokenizer
        self.max_prompt_tokens, self.batch_prompts, self.portion, self.n_cut = max_prompt_tokens, batch_prompts, portion, 0
        self._memory = PromptMemory() if reuse else None

    def generate(
        self, messages: Sequence[list[Message]], n: int, *, seed: int, temperature: float, max_new_tokens: int, own: Sequence[int] | None = None,
        goes_on: bool = False,
    ) -> list[list[Completion]]:
        """n completions a message list; `temperature` 0 is greedy. Raises InputError on n, lengths or temperature < their minimum.

        `own` are the indices to be answered, where several processes share the batch: what they sample together is what one would.
        `goes_on`: the prompts begin like those of the last call. Rounding then depends on the calls before, so whoever wants the same bits
        again makes the same calls (or `recall`s them).
        """
        if n < 1 or max_new_tokens < 1 or temperature < 0:
            raise InputError("generate needs n >= 1, max_new_tokens >= 1 and temperature >= 0")
        prompts, dropped = zip(*map(self._encode, messages), strict=True) if messages else ((), ())
        seen: Counter[tuple[int, ...]] = Counter()
        keys = []
        for prompt in prompts:
            keys.append((seen[prompt], *prompt))
            seen[prompt] += 1
        wanted = range(len(prompts)) if own is None else own
        answers: dict[int, list[Completion]] = {}
        for part in self._batches(prompts, wanted, goes_on):
            draws = row_draws([keys[i] for i in part], n, max_new_tokens, seed)
            sampled = self._decode([prompts[i] for i in part], n, draws, temperature)
            for place, i in enumerate(part):
                answers[i] = [self._completion(prompts[i], s, dropped[i]) for s in sampled[place * n : (place + 1) * n]]
        return [answers[i] for i in wanted]

    @torch.inference_mode()
    def recall(self, messages: Sequence[list[Message]], goes_on: bool = True) -> None:
        """Remember these prompts as `generate` would have, without sampling; nothing happens without `reuse`."""
        if self._memory is None:
            return
        prompts = [self._encode(m)[0] for m in messages]
        for part in self._batches(prompts, range(len(prompts)), goes_on):
            distinct, owners = _distinct([prompts[i] for i in part])
            with self._sampling() as model:
                prefill(model, distinct, torch.tensor(owners, device=self.model.device), 1, self.portion, self._memory)

    def _batches(self, prompts: Sequence[tuple[int, ...]], wanted: Sequence[int], goes_on: bool) -> Iterator[list[int]]:
        """Indices of the wanted prompts, those of similar length together."""
        if self._memory is not None:
            self._memory.begin(forget=not goes_on)
        order = sorted(wanted, key=lambda i: (len(prompts[i]), prompts[i], i))
        for start in range(0, len(order), self.batch_prompts):
            yield order[start : start + self.batch_prompts]

    def _encode(self, messages: list[Message]) -> tuple[tuple[int, ...], int]:
        ids, dropped = fit_prompt(self.tokenizer, messages, self.max_prompt_tokens)
        self.n_cut += bool(dropped)
        return tuple(ids), dropped

    def _decode(self, prompts: list[tuple[int, ...]], n: int, draws: torch.Tensor, temperature: float) -> list[Sampled]:
        distinct, owners = _distinct(prompts)
        with self._sampling() as model:
            return decode(
                model, distinct, owners, n, draws, temperature=temperature, end_id=self.tokenizer.eos_token_id, portion=self.portion,
                memory=self._memory,
            )  # fmt: skip

    @contextmanager
    def _sampling(self) -> Iterator[torch.nn.Module]:
        """The plain model with its adapters merged, without dropout."""
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        was_training = model.training
        model.eval()
        with torch.no_grad(), merged_adapters(self.model):
            yield model
        model.train(was_training)

    def _completion(self, prompt: tuple[int, ...], sampled: Sampled, dropped: int) -> Completion:
        text_ids = sampled.token_ids[:-1] if sampled.finished else sampled.token_ids
        text = self.tokenizer.decode(text_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return Completion(prompt, sampled.token_ids, sampled.logprobs, text, sampled.finished, dropped=dropped)
