"""GPU memory (`rlpa.memory`) of sampling and training a policy; hours are in `speeds`."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Self

from rlpa_lib.rlpa.memory import BYTES, Shape, predict, shape_of
from rlpa_lib.settings.config import Config
from rlpa_lib.settings.kinds import POLICIES


@dataclass(frozen=True)
class Amounts:
    """Numbers that are added field by field."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Work(Amounts):
    """Prompts put to a model with their tokens, and its replies with theirs."""

    requests: float = 0.0
    prompt: float = 0.0
    replies: float = 0.0
    completion: float = 0.0

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
        peaks.append(each * known.weights() + sampled_together(cfg, trained) * length * kept)
    if known and trained.requests:
        prompt, reply = trained.prompt / trained.requests, trained.completion / trained.replies
        peaks.append(sum(predict(known, cfg, round(prompt), max(1, round(reply))).values()))
    return max(peaks) / 1e9 if peaks else None


def sampled_together(cfg: Config, trained: Work) -> int:
    """Sequences that this process decodes at once."""
    return cfg.rollout.micro_batch * (cfg.rollout.samples if trained.requests else 1)


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
