"""GPU memory (`rlpa.memory`) and, by rules of thumb, hours of sampling and training a policy."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from rlpa_lib.rlpa.memory import BYTES, Shape, predict, shape_of
from rlpa_lib.settings.config import Config
from rlpa_lib.settings.kinds import POLICIES

# An accelerator, and what of its speed is reached
GPU = "A100 80 GB"
FLOPS, TRAINING_SHARE = 312e12, 0.35  # dense bf16 a second, and the share of it that training reaches
BANDWIDTH, DECODING_SHARE = 2.0e12, 0.3  # bytes a second of memory, and the share that decoding reaches
LOOP_STEPS = 30.0  # decoding steps a second that a Python loop (not vLLM) cannot exceed
SERVED_AT_ONCE = 64  # sequences that a vLLM server decodes together


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
        peaks.append(each * known.weights() + _sampled_together(cfg, trained) * length * kept)
    if known and trained.requests:
        prompt, reply = trained.prompt / trained.requests, trained.completion / trained.replies
        peaks.append(sum(predict(known, cfg, round(prompt), max(1, round(reply))).values()))
    return max(peaks) / 1e9 if peaks else None


def _sampled_together(cfg: Config, trained: Work) -> int:
    return cfg.rollout.micro_batch * (cfg.rollout.samples if trained.requests else 1)


def hours(cfg: Config, own: Work, trained: Work, epochs: int) -> float | None:
    """Hours of one GPU for sampling and training; None where the shape is unknown."""
    if (known := shape(cfg)) is None:
        return None
    size, reached = known.weights(), FLOPS * TRAINING_SHARE
    steps = DECODING_SHARE * BANDWIDTH / (BYTES[cfg.policy.dtype] * size)
    served = steps * SERVED_AT_ONCE * len(cfg.policy.servers)
    local = min(steps, LOOP_STEPS) * _sampled_together(cfg, trained)
    speed = served if POLICIES[cfg.policy.kind].needs_servers else local
    sampling = own.completion / speed + 2 * size * own.prompt / reached
    # forward 2, backward 2 (frozen weights) or 4 (trained); the critic's adapter again; a frozen pass first
    passes = epochs * (4 if cfg.policy.tuning == "lora" else 6) * (2 if cfg.ppo.critic == "lora" else 1) + 2
    return (sampling + passes * size * (trained.prompt + trained.completion) / reached) / 3600


def assumptions(cfg: Config) -> list[str]:
    """What the numbers rest on, for people."""
    if (known := shape(cfg)) is None:
        return ["GPU: none. The policy is behind a server, runs on a CPU, or its shape is not known here."]
    return [
        f"GPU: {GPU}, {known.weights() / 1e9:.2f} billion weights; training reaches {TRAINING_SHARE:.0%} of "
        f"{FLOPS / 1e12:.0f} TFLOP/s, decoding {DECODING_SHARE:.0%} of the memory's speed, and at most "
        f"{LOOP_STEPS:g} steps a second outside vLLM.",
        "GPU memory: one GPU holds all, prompts and replies of average length; SFT and DPO are counted with "
        "PPO's micro-batch and critic, so high.",
    ]


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
