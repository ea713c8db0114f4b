"""The policy as a transformers model in this process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from peft.tuners.lora import LoraLayer

from rlpa_lib.agents.decoding import Sampled, decode
from rlpa_lib.agents.prefill import PromptMemory, run_prompts
from rlpa_lib.agents.prompt_tokens import fit_prompt
from rlpa_lib.dialogue.protocols import Completion, Message
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import InputError


def row_draws(keys: Sequence[object], n: int, steps: int, seed: int) -> torch.Tensor:
    """Numbers in [0, 1), [len(keys) * n, steps]: each row's own stream, made from (seed, key, sample)."""
    rows = []
    for key in keys:
        for sample in range(n):
            generator = torch.Generator().manual_seed(derive_seed(seed, key, sample))
            rows.append(torch.rand(steps, generator=generator))
    return torch.stack(rows).clamp_max(1 - 1e-6)


@contextmanager
def merged_adapters(model) -> Iterator[None]:
    """Within the context active LoRA adapters are merged into the weights (fp32 only: other dtypes would
    round them away), so a small model decodes about 25 % faster; afterwards the same bits are restored."""
    table = model.get_input_embeddings().weight  # may be shared with the output layer
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
        and hasattr(layer, "get_delta_weight")
        and not (layer.merged or layer.disable_adapters)
    ]
    layers = [
        m for m in layers if m.base_layer.weight is not table and m.base_layer.weight.dtype == torch.float32
    ]
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
    """Each prompt once, and for every entry the index of its prompt."""
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    return list(places), [places[prompt] for prompt in prompts]


def _continues(new: list[str], old: list[str]) -> bool:
    return len(new) >= len(old) and new[: len(old) - 1] == old[:-1]


class LocalPolicy:
    """A causal language model of transformers (with or without PEFT adapters) sampled by `decoding.decode`.

    A completion depends on (weights, seed, prompt, number of equal prompts before it in the call, sample
    index), not on the batch, up to rounding. `n_cut` counts prompts that lost turns to `max_prompt_tokens`;
    `portion` is how many prompt tokens pass through the model at once (None: all). With `reuse`, for fixed
    weights, a call that continues the last call's dialogues runs only what is new in each prompt. Rounding
    then depends on earlier calls; `recall` repeats those that another process made.
    """

    def __init__(
        self, model, tokenizer, *, max_prompt_tokens: int = 4096, batch_prompts: int = 128,
        portion: int | None = None, reuse: bool = False,
    ):
        if tokenizer.eos_token_id is None:
            raise InputError("policy.model: the tokenizer has no end token")
        self.model, self.tokenizer, self.portion, self.n_cut = model, tokenizer, portion, 0
        self.max_prompt_tokens, self.batch_prompts = max_prompt_tokens, batch_prompts
        self._memory = PromptMemory() if reuse else None
        self._heard: list[list[str]] = []  # what users and system prompts said in the last call
        self._only_reads = False

    def generate(
        self, messages: Sequence[list[Message]], n: int, *, seed: int, temperature: float,
        max_new_tokens: int, own: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """n completions per message list; `temperature` 0 is greedy. InputError: n, lengths or temperature
        below their minimum. `own`: indices to answer if processes share a batch; samples stay the same."""
        if n < 1 or max_new_tokens < 1 or temperature < 0:
            raise InputError("generate needs n >= 1, max_new_tokens >= 1 and temperature >= 0")
        prompts, dropped = zip(*map(self._encode, messages), strict=True) if messages else ((), ())
        seen: Counter[tuple[int, ...]] = Counter()
        keys = []
        for prompt in prompts:
            keys.append((seen[prompt], *prompt))
            seen[prompt] += 1
        wanted = range(len(prompts)) if own is None else own
        if self._memory is not None:
            self._memory.begin(forget=not self._goes_on(messages))
        answers: dict[int, list[Completion]] = {}
        for part in self._batches(prompts, wanted):
            if self._only_reads:
                self._read([prompts[i] for i in part])
                answers |= {
                    i: [Completion(prompts[i], (), (), "", False, dropped=dropped[i])] * n for i in part
                }
                continue
            draws = row_draws([keys[i] for i in part], n, max_new_tokens, seed)
            sampled = self._decode([prompts[i] for i in part], n, draws, temperature)
            for place, i in enumerate(part):
                rows = sampled[place * n : (place + 1) * n]
                answers[i] = [self._completion(prompts[i], row, dropped[i]) for row in rows]
        return [answers[i] for i in wanted]

    def recall(self, ask: Callable[[], object]) -> None:
        """Call `ask`, which asks this policy, but only read the prompts: its answers are empty. A process
        that takes over another's dialogues then has the same bits in memory. Does nothing without `reuse`."""
        if self._memory is None:
            return
        self._only_reads = True
        try:
            ask()
        finally:
            self._only_reads = False

    def _goes_on(self, messages: Sequence[list[Message]]) -> bool:
        """Whether dialogues continue the last call's; answers and reminders at the end may differ."""
        last = self._heard
        self._heard = [[m["content"] for m in talk if m["role"] != "assistant"] for talk in messages]
        return bool(last) and len(last) == len(messages) and all(map(_continues, self._heard, last))

    def _batches(self, prompts: Sequence[tuple[int, ...]], wanted: Sequence[int]) -> Iterator[list[int]]:
        """Indices of the wanted prompts, grouped by similar length."""
        order = sorted(wanted, key=lambda i: (len(prompts[i]), prompts[i], i))
        for start in range(0, len(order), self.batch_prompts):
            yield order[start : start + self.batch_prompts]

    def _encode(self, messages: list[Message]) -> tuple[tuple[int, ...], int]:
        ids, dropped = fit_prompt(self.tokenizer, messages, self.max_prompt_tokens)
        self.n_cut += bool(dropped)
        return tuple(ids), dropped

    @torch.inference_mode()
    def _read(self, prompts: list[tuple[int, ...]]) -> None:
        with self._sampling() as model:
            run_prompts(model, _distinct(prompts)[0], self.portion, self._memory)

    def _decode(
        self, prompts: list[tuple[int, ...]], n: int, draws: torch.Tensor, temperature: float
    ) -> list[Sampled]:
        distinct, owners = _distinct(prompts)
        with self._sampling() as model:
            return decode(
                model, distinct, owners, n, draws, temperature=temperature,
                end_id=self.tokenizer.eos_token_id, portion=self.portion, memory=self._memory,
            )

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
        return Completion(
            prompt, sampled.token_ids, sampled.logprobs, text, sampled.finished, dropped=dropped
        )
