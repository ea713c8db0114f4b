"""GPU memory and (by rules of thumb) hours of sampling and training a policy, from its shape and tokens."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from rlpa_lib.plan import memory as update_memory
from rlpa_lib.plan.memory import BYTES, Shape
from rlpa_lib.settings.config import Config
from rlpa_lib.settings.kinds import POLICIES

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

    def passed(self, times: int) -> Work:
        """What training passes through the model when each prompt goes through it `times`; 0: nothing."""
        return (
            Work(times * self.requests, times * self.prompt, self.replies, self.completion)
            if times
            else Work()
        )


@dataclass(frozen=True)
class GPU:
    """An accelerator, and what of its speed is reached."""

    name: str = "A100 80 GB"
    flops: float = 312e12  # dense bf16, a second
    used: float = 0.35  # the share of it that training reaches
    bandwidth: float = 2.0e12  # bytes a second of memory
    reached: float = 0.3  # the share of it that decoding reaches
    loop_steps: float = 30.0  # decoding steps a second that a Python loop (not vLLM) cannot exceed


A100 = GPU()


def shape(cfg: Config) -> Shape | None:
    """The shape of a policy run on GPUs here; None: behind an endpoint, unknown, or a model for CPUs."""
    if not POLICIES[cfg.policy.kind].trainable or cfg.policy.model in ("tiny", "smollm2"):
        return None
    return update_memory.shape_of(cfg.policy.model)


def memory(cfg: Config, own: Work, trained: Work) -> float | None:
    """GB on one GPU that holds all: one update (`memory.predict`) at average lengths, or for sampling alone
    the weights, keys and values; None where the shape is unknown or nothing is run."""
    known = shape(cfg)
    if known is None or not (own.requests or trained.requests):
        return None
    each, sampling, update = BYTES[cfg.policy.dtype], 0.0, 0
    if own.requests:
        together = cfg.rollout.micro_batch * (cfg.rollout.samples if trained.requests else 1)
        length = own.prompt / own.requests + own.completion / own.replies
        kept = 2 * known.layers * known.kv_heads * known.head_dim * each
        sampling = each * known.weights() + together * length * kept
    if trained.requests:
        prompt, reply = trained.prompt / trained.requests, trained.completion / trained.replies
        update = sum(update_memory.predict(known, cfg, round(prompt), max(1, round(reply))).values())
    return max(sampling, update) / 1e9


def hours(cfg: Config, own: Work, trained: Work, epochs: int, gpu: GPU) -> float | None:
    """Hours of one GPU for sampling and training; None where the shape is unknown."""
    known = shape(cfg)
    if known is None:
        return None
    size, reached = known.weights(), gpu.flops * gpu.used
    steps = gpu.reached * gpu.bandwidth / (BYTES[cfg.policy.dtype] * size)
    local = cfg.rollout.micro_batch * (cfg.rollout.samples if trained.requests else 1)
    served = steps * SERVED_AT_ONCE * len(cfg.policy.servers)
    speed = served if POLICIES[cfg.policy.kind].needs_servers else min(steps, gpu.loop_steps) * local
    sampling = own.completion / speed + 2 * size * own.prompt / reached
    # forward 2, backward 2 (frozen weights) or 4 (trained); the critic's adapter again; a frozen pass first
    passes = epochs * (4 if cfg.policy.tuning == "lora" else 6) * (2 if cfg.ppo.critic == "lora" else 1) + 2
    return (sampling + passes * size * (trained.prompt + trained.completion) / reached) / 3600


def assumptions(cfg: Config, gpu: GPU) -> list[str]:
    """What the numbers rest on, for people."""
    known = shape(cfg)
    if known is None:
        return ["GPU: none. The policy is behind a server, runs on a CPU, or its shape is not known here."]
    return [
        f"GPU: {gpu.name}, {known.weights() / 1e9:.2f} billion weights; training reaches {gpu.used:.0%} of "
        f"{gpu.flops / 1e12:.0f} TFLOP/s, decoding {gpu.reached:.0%} of the memory's speed, and at most "
        f"{gpu.loop_steps:g} steps a second outside vLLM.",
        "GPU memory: one GPU holds all, prompts and replies of average length; SFT and DPO are counted with "
        "PPO's micro-batch and critic, so high.",
    ]
