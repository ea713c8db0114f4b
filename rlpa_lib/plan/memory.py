"""Bytes at the peak of one update in one process, counted tensor by tensor (transformers' Qwen2 family)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rlpa_lib.agents.world import WEIGHTS
from rlpa_lib.settings.config import Config
from rlpa_lib.settings.kinds import POLICIES

HEAD_HIDDEN = 256  # `rlpa.networks.ValueHead`
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


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

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear maps of one layer: q, k, v, o, gate, up, down."""
        h, kv, i = self.hidden, self.kv_heads * self.head_dim, self.intermediate
        return [(h, h), (h, kv), (h, kv), (h, h), (h, i), (h, i), (i, h)]

    def weights(self) -> int:
        """All weights: embeddings, linear maps, biases of q, k, v (Qwen2), norms."""
        kv = self.kv_heads * self.head_dim
        layer = sum(a * b for a, b in self.linears()) + self.hidden + 2 * kv + 2 * self.hidden
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.layers * layer + self.hidden

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
    file = Path(source).expanduser() / "config.json"
    if source in KNOWN or not file.is_file():
        return KNOWN.get(source)
    c = json.loads(file.read_text(encoding="utf-8"))
    return Shape(
        c["num_hidden_layers"], c["hidden_size"], c["num_attention_heads"],
        c.get("num_key_value_heads", c["num_attention_heads"]), intermediate=c["intermediate_size"],
        vocabulary=c["vocab_size"], tied=c.get("tie_word_embeddings", False),
    )


def predict(shape: Shape, cfg: Config, prompt: int, completion: int) -> dict[str, int]:
    """Bytes by part at an update's peak, the start of the policy's backward pass over one micro-batch, for
    prompts of `prompt` tokens and completions of `completion`. In-process sampling is not part of it."""
    size, full = BYTES[cfg.policy.dtype], cfg.policy.tuning == "full"
    trained = shape.weights() if full else shape.adapter(cfg.policy.lora_rank)
    critic = _critic(shape, cfg)
    copies = size * shape.weights() if full else size * (cfg.policy.adapter is not None) * trained
    samples = cfg.ppo.micro_batch or cfg.ppo.minibatch
    n = cfg.rollout.samples
    tree = cfg.ppo.packing == "tree"
    rows, row = (samples // n, prompt + n * (completion - 1)) if tree else (samples, prompt + completion - 1)
    return {
        "backbone": (4 if full else size) * shape.weights() + copies,
        "trained weights": 4 * critic + (0 if full else 4 * trained),
        "gradients": 4 * (trained + critic),
        "moments": 8 * (trained + critic),
        "activations": rows * row * shape.layers * _per_token(shape, cfg, tree),
        "attention masks": size * 2 * rows * row**2 if tree else 0,
        "vocabulary": samples * completion * shape.vocabulary * 4,
    }


def _critic(shape: Shape, cfg: Config) -> int:
    own = cfg.ppo.critic == "lora"
    width = shape.hidden * (1 if own else 2)
    return (
        (shape.adapter(cfg.policy.lora_rank) if own else 0)
        + 2 * width
        + (width + 1) * HEAD_HIDDEN
        + HEAD_HIDDEN
        + 1
    )


def _per_token(shape: Shape, cfg: Config, tree: bool) -> int:
    """Bytes that one layer keeps of one token for the backward pass."""
    size, h, i = BYTES[cfg.policy.dtype], shape.hidden, shape.intermediate
    keys = 2 * (h if tree else shape.kv_heads * shape.head_dim)  # spread to all heads under a mask
    # q, k, v and attention's output; gate, silu(gate), up, their product; the norms' inputs and outputs
    attention, mlp = size * (2 * h + keys), size * 3 * i
    if cfg.policy.tuning == "full":
        return 16 * h + attention + mlp + 2 * i * size
    low = 4 * len(shape.linears()) * cfg.policy.lora_rank
    # below fp32 the norms keep fp32 copies, and each adapter one of its input (PEFT computes in fp32)
    inputs = 4 * (4 * h + 2 * h + i) if size < 4 else 4 * (2 * h + i)
    return 8 * h + attention + mlp + inputs + low


def table(cfg: Config) -> str:
    """The prediction in GiB for usual and for longest replies; "" for a model that is not known here."""
    shape = shape_of(_folder(cfg.policy.model))
    if shape is None or not POLICIES[cfg.policy.kind].trainable:
        return ""
    longest = cfg.rollout.max_prompt_tokens, cfg.rollout.max_new_tokens
    usual = min(1024, longest[0]), min(256, longest[1])
    named = f"peak memory of one update of {cfg.policy.model} in one process"
    lines = [f"{named}, GiB (sampling in process not counted)"]
    for name, (prompt, completion) in (("usual", usual), ("longest", longest)):
        parts = predict(shape, cfg, prompt, completion)
        told = ", ".join(f"{part} {size / 2**30:.2f}" for part, size in parts.items() if size)
        total = sum(parts.values()) / 2**30
        lines.append(f"{name} replies ({prompt:,} + {completion:,} tokens): {total:.1f} = {told}")
    return "\n".join(lines)


def _folder(model: str) -> str:
    return str(WEIGHTS) if model == "tiny" else model
