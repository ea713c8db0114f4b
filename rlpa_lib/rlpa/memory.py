"""Bytes that an update needs on its device, counted tensor by tensor (transformers' Qwen2 family)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpa_lib.agents.world import WEIGHTS
from rlpa_lib.rlpa.packing import Group, feed
from rlpa_lib.rlpa.tree import cut, grow
from rlpa_lib.settings.config import Config

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 4}  # auto: a plan takes the larger
EXPERTS = "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"  # keys of a config
HEAD_HIDDEN = 256  # `networks.ValueHead`
SCORED = 64  # tokens that go through the output layer at once: `networks.ROWS`
MARGIN = 0.9  # share of the free memory that is planned with: the rest is for kernels and fragments


@dataclass(frozen=True)
class Shape:
    """What of a model's config decides its size."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool = True
    head: int | None = None  # width of one head; None: the heads share `hidden`

    @property
    def width(self) -> int:
        """Width of the queries of all heads."""
        return self.heads * (self.head or self.hidden // self.heads)

    @property
    def kv_width(self) -> int:
        """Width of the keys (or values) of all heads."""
        return self.kv_heads * (self.head or self.hidden // self.heads)

    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear maps of one layer: q, k, v, o, gate, up, down."""
        h, q, kv, i = self.hidden, self.width, self.kv_width, self.intermediate
        return [(h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h)]

    def weights(self) -> int:
        """All weights: embeddings, linear maps, biases of q, k, v (Qwen2), norms."""
        layer = sum(a * b for a, b in self.linears()) + self.width + 2 * self.kv_width + 2 * self.hidden
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.layers * layer + self.hidden

    def linear_weights(self) -> int:
        """Weights of the linear maps of one layer."""
        return sum(a * b for a, b in self.linears())

    def adapter(self, rank: int) -> int:
        """Weights of a LoRA on all linear maps."""
        return self.layers * rank * sum(a + b for a, b in self.linears())


# of models that may not be on this machine; from their published config.json
KNOWN = {
    "Qwen/Qwen2.5-0.5B-Instruct": Shape(24, 896, 14, 2, intermediate=4864, vocabulary=151936),
    "Qwen/Qwen2.5-1.5B-Instruct": Shape(28, 1536, 12, 2, intermediate=8960, vocabulary=151936),
    "Qwen/Qwen2.5-3B-Instruct": Shape(36, 2048, 16, 2, intermediate=11008, vocabulary=151936),
    "Qwen/Qwen2.5-7B-Instruct": Shape(28, 3584, 28, 4, intermediate=18944, vocabulary=152064, tied=False),
}


def shape_of(source: str) -> Shape | None:
    """A model's shape by its published name or its folder's config.json; None: it is not known here."""
    file = Path(WEIGHTS if source == "tiny" else source).expanduser() / "config.json"
    if source in KNOWN or not file.is_file():
        return KNOWN.get(source)
    try:
        return shape_from(json.loads(file.read_text(encoding="utf-8")))
    except KeyError:
        return None


def shape_from(config: Mapping[str, Any]) -> Shape:
    """The shape that a transformers config, as a mapping, says. KeyError: it does not say all, or layers have
    several experts."""
    c = config.get("text_config") or config
    if any(isinstance(n := c.get(key), int) and n > 1 for key in EXPERTS):
        raise KeyError("one MLP a layer")
    return Shape(
        c["num_hidden_layers"], c["hidden_size"], c["num_attention_heads"],
        c.get("num_key_value_heads") or c["num_attention_heads"], intermediate=c["intermediate_size"],
        vocabulary=c["vocab_size"], tied=c.get("tie_word_embeddings", False), head=c.get("head_dim"),
    )  # fmt: skip


@dataclass(frozen=True)
class Load:
    """What decides the size of a pass: its tokens, how many of them the vocabulary is computed for, keys that
    attention keeps, those of them that stand under a mask, and the masks' numbers."""

    tokens: int
    scored: int
    keys: int
    masked: int = 0
    scores: int = 0

    def resize(self, tokens: int) -> Load:
        """A load of that many tokens in the same proportions; all of them may be scored."""
        others = (-(-n * tokens // self.tokens) for n in (self.keys, self.masked, self.scores))
        return Load(tokens, tokens, *others)


def weigh(groups: Sequence[Group], packing: str) -> Load:
    """The load of these groups packed together."""
    fed, scored = feed(groups), sum(len(c) for _, completions in groups for c in completions)
    if packing == "rows":
        tokens = len(fed) * max(map(len, fed))
        return Load(tokens, scored, tokens)
    tree = grow(fed)
    blocks = cut(tree)
    masked = [block.size for block in blocks if not block.causal]
    keys = sum(block.size[1] for block in blocks)
    return Load(len(tree.tokens), scored, keys, sum(k for _, k in masked), sum(q * k for q, k in masked))


def predict(shape: Shape, cfg: Config, prompt: int, completion: int) -> dict[str, int]:
    """Bytes by part at an update's peak, the policy's backward pass over one micro-batch, for prompts of
    `prompt` tokens and completions of `completion` that share nothing. In-process sampling is not part of
    it."""
    samples, n = cfg.ppo.micro_batch or cfg.ppo.minibatch, cfg.rollout.samples
    starts = range(0, samples, n)
    groups = [_make_group(prompt, completion, min(n, samples - start), start) for start in starts]
    return predict_fixed(shape, cfg) | predict_pass(shape, cfg, weigh(groups, cfg.ppo.packing))


def _make_group(prompt: int, completion: int, samples: int, start: int = 0) -> Group:
    """A group of these lengths whose sequences share nothing with those of another `start`."""
    return (start,) * prompt, tuple((start + i + 1,) * completion for i in range(samples))


def predict_fixed(shape: Shape, cfg: Config) -> dict[str, int]:
    """Bytes by part of what stays from one pass to the next."""
    size, full, own = BYTES[cfg.policy.dtype], cfg.policy.tuning == "full", cfg.ppo.critic == "lora"
    adapter, width = shape.adapter(cfg.policy.lora_rank), shape.hidden * (1 if own else 2)
    trained = shape.weights() if full else adapter
    critic = adapter * own + 2 * width + (width + 1) * HEAD_HIDDEN + HEAD_HIDDEN + 1
    learning = trained + critic * (cfg.ppo.baseline == "critic")
    copies = size * shape.weights() if full else size * (cfg.policy.adapter is not None) * trained
    return {
        "backbone": (4 if full else size) * shape.weights() + copies,
        "trained weights": 4 * critic + (0 if full else 4 * trained),
        "gradients": 4 * learning,
        "moments": 8 * learning,
    }


def predict_pass(shape: Shape, cfg: Config, load: Load) -> dict[str, int]:
    """Bytes by part that a pass adds at its peak."""
    size, full, tokens = BYTES[cfg.policy.dtype], cfg.policy.tuning == "full", load.tokens
    mixed, one = full and size < 4, _keep_layer(shape, cfg, load)
    casts, table = size * shape.linear_weights() if mixed else 0, shape.vocabulary * shape.hidden
    # the output layer is in use first, and then one layer after another
    again = cfg.policy.gradient_checkpointing
    scoring = SCORED * shape.vocabulary * 16 + ((2 * size * again + 4) * table if mixed else 0)
    # without checkpointing each part of the logits keeps a cast of the output layer of its own
    parts = size * table * -(-load.scored // SCORED) if mixed else 0
    layer = tokens * (size if size == 4 or full else size + 4) * shape.intermediate
    if again:  # each layer's input, and all of the one that runs once more
        kept, layer = tokens * (4 if full else size) * shape.hidden, layer + one + casts
    else:
        kept = one
    if full:
        vocabulary = 0 if again else 4 * load.scored * shape.vocabulary + parts
    else:  # the gradient by each state
        vocabulary = size * load.scored * shape.hidden
    return {
        "activations": shape.layers * kept,
        "weights cast": 0 if again else shape.layers * casts,
        "attention masks": size * load.scores,
        "vocabulary": vocabulary,
        "in use backward": max(scoring, layer),
    }


def fit_tokens(shape: Shape, cfg: Config, free: int) -> int:
    """Tokens that a pass of the longest prompts and replies can hold in `free` bytes, less a margin; at least
    1."""
    rollout, low, high = cfg.rollout, 1, 2**24
    group = _make_group(rollout.max_prompt_tokens, rollout.max_new_tokens, rollout.samples)
    load = weigh([group], cfg.ppo.packing)
    while low < high:
        middle = (low + high + 1) // 2
        if sum(predict_pass(shape, cfg, load.resize(middle)).values()) <= MARGIN * free:
            low = middle
        else:
            high = middle - 1
    return low


def _keep_layer(shape: Shape, cfg: Config, load: Load) -> int:
    """Bytes that one layer keeps of a pass for the backward pass."""
    size, h, i, tree = BYTES[cfg.policy.dtype], shape.hidden, shape.intermediate, cfg.ppo.packing == "tree"
    # keys and values of all blocks, and under a mask once more, spread to all heads
    spread = shape.width * load.masked if shape.heads > shape.kv_heads else 0
    keys = 2 * size * (shape.kv_width * load.keys + spread)
    # queries and attention's output, of a tree also put together from its blocks
    attention, mlp = size * (2 + tree) * shape.width, size * 3 * i  # gate, silu(gate), up, their product
    if cfg.policy.tuning == "full":
        return keys + load.tokens * (16 * h + attention + mlp)
    low = 4 * len(shape.linears()) * cfg.policy.lora_rank
    # below fp32 the norms keep fp32 copies, and each adapter one of its input (PEFT computes in fp32)
    inputs = 4 * (4 * h + h + shape.width + i) if size < 4 else 4 * (h + shape.width + i)
    return keys + load.tokens * (8 * h + attention + mlp + inputs + low)
