"""The policy as a transformers model in this process."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from peft.tuners.lora import Linear, LoraLayer

from rlpa_lib.agents import architecture
from rlpa_lib.agents.decoding import Prompt, PromptMemory, Sampled, decode, run_prompts
from rlpa_lib.agents.prompt_tokens import (
    check_request,
    count_earlier,
    decode_reply,
    find_end_ids,
    fit_prompt,
)
from rlpa_lib.dialogue.protocols import Completion, Message
from rlpa_lib.runs.seeds import derive_seed


def row_draws(keys: Sequence[tuple[int, object]], n: int, steps: int) -> torch.Tensor:
    """Numbers in [0, 1), [len(keys) * n, steps]: each row's own stream, made from (seed, key, sample) of its
    pair of seed and key."""
    seeds = [derive_seed(seed, key, sample) for seed, key in keys for sample in range(n)]
    rows = [torch.rand(steps, generator=torch.Generator().manual_seed(own)) for own in seeds]
    return torch.stack(rows).clamp_max(1 - 1e-6)


@contextmanager
def merged_adapters(model) -> Iterator[None]:
    """Within the context active LoRA adapters are merged into the weights (fp32 only: other dtypes would
    round them away), so a small model decodes about 25 % faster; afterwards the same bits are restored. Where
    an adapter is more than a difference of weights (DoRA, a bias of its own), PEFT's own layer stays."""
    table = model.get_input_embeddings().weight  # may be shared with the output layer
    layers = [
        m
        for m in model.modules()
        if isinstance(m, Linear)
        and not (m.merged or m.disable_adapters or m.base_layer.weight is table)
        and m.base_layer.weight.dtype == torch.float32
        and all(map(partial(_is_plain, m), m.active_adapters))
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


def _is_plain(layer: LoraLayer, name: str) -> bool:
    return name not in layer.lora_variant and not layer.lora_bias.get(name)


class LocalPolicy:
    """A causal language model of transformers (with or without PEFT adapters) sampled by `decoding.decode`.

    A completion depends on (weights, seed, prompt, number of equal prompts with that seed before it in the
    call, sample index), not on the batch, up to rounding. `n_cut` counts prompts that lost turns to
    `max_prompt_tokens`; `portion` is how many prompt tokens pass through the model at once (None: all). With
    `reuse`, for fixed weights, a prompt that begins with the same tokens as one of the last call is run from
    there on alone: what dialogues, drafts and windows have in common is found, not assumed. Rounding then
    depends on earlier calls; `recall` repeats those that another process made. The first completion's
    log-probabilities are held against the model's own forward pass (InputError: `compare_with_model`).
    """

    seed_each = True  # a call may give every prompt a seed of its own

    def __init__(
        self, model, tokenizer, *, max_prompt_tokens: int = 4096, batch_prompts: int = 128,
        portion: int | None = None, reuse: bool = False,
    ):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = base.config.get_text_config(decoder=True)
        self.end_ids = find_end_ids(tokenizer, config, base.generation_config)
        self.model, self.tokenizer, self.portion, self.n_cut = model, tokenizer, portion, 0
        self.max_prompt_tokens, self.batch_prompts = max_prompt_tokens, batch_prompts
        self._memory = PromptMemory() if reuse else None
        self._recalled: Iterator[Sequence[str]] | None = None  # the answers to the calls that are repeated
        self._compared = False  # with the model's own forward pass

    def generate(
        self, messages: Sequence[list[Message]], n: int, *, seed: int | Sequence[int], temperature: float,
        max_new_tokens: int, own: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """n completions per message list; `temperature` 0 is greedy, `seed` one for all or one for each.
        InputError: n, lengths or temperature below their minimum. `own`: indices to answer if processes share
        a batch; samples stay the same."""
        check_request(n, max_new_tokens, temperature)
        fitted = [fit_prompt(self.tokenizer, talk, self.max_prompt_tokens) for talk in messages]
        self.n_cut += sum(dropped > 0 for _, dropped in fitted)
        prompts = [tuple(ids) for ids, _ in fitted]
        seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
        seeded = list(zip(seeds, prompts, strict=True))
        keys = [(own, (k, *prompt)) for k, (own, prompt) in zip(count_earlier(seeded), seeded, strict=True)]
        if self._memory is not None:
            self._memory.begin()
        wanted = range(len(prompts)) if own is None else own
        order = sorted(wanted, key=lambda i: (len(prompts[i]), prompts[i], i))  # similar lengths side by side
        answers: dict[int, list[Completion]] = {}
        for start in range(0, len(order), self.batch_prompts):
            part = order[start : start + self.batch_prompts]
            draws = row_draws([keys[i] for i in part], n, max_new_tokens)
            sampled = iter(self._sample([prompts[i] for i in part], n, draws, temperature))
            for i in part:
                answers[i] = [self._completion(prompts[i], next(sampled), fitted[i][1]) for _ in range(n)]
        if self._recalled is not None:
            texts = next(self._recalled, ("",) * len(messages))
            return [[replace(answers[i][0], text=texts[i])] for i in wanted]
        return [answers[i] for i in wanted]

    def recall(self, ask: Callable[[], object], texts: Sequence[Sequence[str]] = ()) -> None:
        """Call `ask`, which asks this policy, but only read the prompts. What it answers is given: a list of
        texts a call, empty ones where there is none left. A process that takes over another's dialogues then
        has the same bits in memory. Does nothing without `reuse`."""
        if self._memory is None:
            return
        self._recalled = iter(texts)
        try:
            ask()
        finally:
            self._recalled = None

    def _sample(
        self, prompts: list[Prompt], n: int, draws: torch.Tensor, temperature: float
    ) -> list[Sampled]:
        """By the plain model with its adapters merged, without dropout."""
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        was_training = model.training
        model.eval()
        known = {"portion": self.portion, "memory": self._memory}
        with torch.no_grad(), merged_adapters(self.model):
            if self._recalled is not None:
                run_prompts(model, list(dict.fromkeys(prompts)), **known)
                sampled = [((), (), False)] * (len(prompts) * n)
            else:
                options = {"temperature": temperature, "end_ids": self.end_ids, **known}
                sampled = decode(model, prompts, n, draws, **options)
        if not self._compared and self._recalled is None:
            architecture.compare_with_model(self.model, prompts[0], *sampled[0][:2], temperature)
            self._compared = True
        model.train(was_training)
        return sampled

    def _completion(self, prompt: Prompt, sampled: Sampled, dropped: int) -> Completion:
        token_ids, logprobs, finished = sampled
        thought, text = decode_reply(self.tokenizer, prompt, token_ids, finished)
        said = (prompt, token_ids, logprobs, text, finished)
        return Completion(*said, dropped=dropped, reasoning=thought)
