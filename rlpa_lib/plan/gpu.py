"""GPU memory of sampling and training a policy, from its shape and tokens; hours are in `speeds`.

`predict` counts the bytes of one update tensor by tensor (transformers' Qwen2 family).
"""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from pathlib import Path

from rlpa_lib.agents.world import WEIGHTS
from rlpa_lib.settings.config import Config
from rlpa_lib.settings.kinds import POLICIES

HEAD_HIDDEN = 256  # `rlpa.networks.ValueHead`
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Work:
    """Prompts put to a model with their tokens, and its replies with theirs."""

    requests: float = 0.0
    prompt: float = 0.0
    replies: float = 0.0
    completion: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def times(self, factor: float) -> Work:
        """The same work `factor` times."""
        return Work(*(factor * value for value in astuple(self)))


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
    def kv_width(self) -> int:
        """Width of the keys (or values) of all heads."""
        return self.kv_heads * (self.hidden // self.heads)

    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear maps of one layer: q, k, v, o, gate, up, down."""
        h, kv, i = self.hidden, self.kv_width, self.intermediate
        return [(h, h), (h, kv), (h, kv), (h, h), (h, i), (h, i), (i, h)]

    def weights(self) -> int:
        """All weights: embeddings, linear maps, biases of q, k, v (Qwen2), norms."""
        layer = sum(a * b for a, b in self.linears()) + self.hidden + 2 * self.kv_width + 2 * self.hidden
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
    file = Path(WEIGHTS if source == "tiny" else source).expanduser() / "config.json"
    if source in KNOWN or not file.is_file():
        return KNOWN.get(source)
    c = json.loads(file.read_text(encoding="utf-8"))
    return Shape(
        c["num_hidden_layers"], c["hidden_size"], c["num_attention_heads"],
        c.get("num_key_value_heads", c["num_attention_heads"]), intermediate=c["intermediate_size"],
        vocabulary=c["vocab_size"], tied=c.get("tie_word_embeddings", False),
    )  # fmt: skip


def shape(cfg: Config) -> Shape | None:
    """The shape of a policy run on GPUs here; None: behind an endpoint, unknown, or a model for CPUs."""
    here = POLICIES[cfg.policy.kind].trainable and cfg.policy.model not in ("tiny", "smollm2")
    return shape_of(cfg.policy.model) if here else None


def memory(cfg: Config, own: Work, trained: Work) -> float | None:
    """GB on one GPU that holds all: one update (`predict`) at average lengths, or for sampling alone the
    weights, keys and values; None where the shape is unknown or nothing is run."""
    known, each, peaks = shape(cfg), BYTES[cfg.policy.dtype], []
    if known and own.requests:
        length = own.prompt / own.requests + own.completion / own.replies
        kept = 2 * known.layers * known.kv_width * each
        peaks.append(each * known.weights() + sampled_together(cfg, trained) * length * kept)
    if known and trained.requests:
        prompt, reply = trained.prompt / trained.requests, trained.completion / trained.replies
        peaks.append(sum(predict(known, cfg, round(prompt), max(1, round(reply))).values()))
    return max(peaks) / 1e9 if peaks else None


def sampled_together(cfg: Config, trained: Work) -> int:
    """Sequences that this process decodes at once."""
    return cfg.rollout.micro_batch * (cfg.rollout.samples if trained.requests else 1)


def predict(shape: Shape, cfg: Config, prompt: int, completion: int) -> dict[str, int]:
    """Bytes by part at an update's peak, the start of the policy's backward pass over one micro-batch, for
    prompts of `prompt` tokens and completions of `completion`. In-process sampling is not part of it."""
    size, full, own = BYTES[cfg.policy.dtype], cfg.policy.tuning == "full", cfg.ppo.critic == "lora"
    adapter, width = shape.adapter(cfg.policy.lora_rank), shape.hidden * (1 if own else 2)
    trained = shape.weights() if full else adapter
    critic = adapter * own + 2 * width + (width + 1) * HEAD_HIDDEN + HEAD_HIDDEN + 1
    copies = size * shape.weights() if full else size * (cfg.policy.adapter is not None) * trained
    samples, n = cfg.ppo.micro_batch or cfg.ppo.minibatch, cfg.rollout.samples
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


def _per_token(shape: Shape, cfg: Config, tree: bool) -> int:
    """Bytes that one layer keeps of one token for the backward pass."""
    size, h, i = BYTES[cfg.policy.dtype], shape.hidden, shape.intermediate
    keys = 2 * (h if tree else shape.kv_width)  # spread to all heads under a mask
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
    known = shape_of(cfg.policy.model)
    if known is None or not POLICIES[cfg.policy.kind].trainable:
        return ""
    longest = cfg.rollout.max_prompt_tokens, cfg.rollout.max_new_tokens
    usual = min(1024, longest[0]), min(256, longest[1])
    named = f"peak memory of one update of {cfg.policy.model} in one process"
    lines = [f"{named}, GiB (sampling in process not counted)"]
    for name, (prompt, completion) in (("usual", usual), ("longest", longest)):
        parts = predict(known, cfg, prompt, completion)
        told = ", ".join(f"{part} {size / 2**30:.2f}" for part, size in parts.items() if size)
        total = sum(parts.values()) / 2**30
        lines.append(f"{name} replies ({prompt:,} + {completion:,} tokens): {total:.1f} = {told}")
    return "\n".join(lines)
