"""What an update leaves in metrics/ and dialogues/: rewards part by part, KL, values, lengths and what was cut."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rlpa_lib.dialogue.judging import CRITERIA, DIMENSIONS
from rlpa_lib.rlpa import ppo
from rlpa_lib.rlpa.experience import Experience
from rlpa_lib.rlpa.rewards import Reward
from rlpa_lib.rlpa.rollout import Sample, TurnGroup


def reward_metrics(groups: Sequence[TurnGroup]) -> dict[str, float]:
    """Means over samples of every reward part, and what the samples look like; shares in 0..1, lengths in tokens."""
    samples = [s for g in groups for s in g.samples]
    rewards = [s.reward for s in samples if s.reward is not None]
    chosen = [g.samples[g.chosen].reward for g in groups]
    guesses, inferred = sum(r.n_unrevealed_guesses for r in rewards), sum(r.n_inferred for r in rewards)
    means = {name: fmean(getattr(r, name) for r in rewards) for name in ("total", "profile", "response", "precision", "recall")}
    return {
        **{f"reward_{name}" if name in ("total", "profile", "response") else name: x for name, x in means.items()},
        "reward_total_chosen": fmean(r.total for r in chosen if r is not None) if any(chosen) else float("nan"),
        **{name: fmean(r.criteria[name] for r in rewards) for name in CRITERIA},
        **_dimension_means(rewards),
        "format_rate": fmean(r.format_ok for r in rewards),
        "unjudged_share": 1 - len(rewards) / len(samples),
        "unrevealed_share": guesses / inferred if inferred else 0.0,
        "unrevealed_precision": sum(r.n_unrevealed_matched for r in rewards) / guesses if guesses else float("nan"),
        "profile_items": inferred / len(rewards),
        "distinct_responses": len({s.reply.response for s in samples}) / len(samples),
        "finished_share": fmean(s.completion.finished for s in samples),
        "completions_cut": sum(not s.completion.finished for s in samples),
        "prompt_tokens": fmean(len(g.prompt_ids) for g in groups),
        "completion_tokens": fmean(len(s.completion.token_ids) for s in samples),
    }


def _dimension_means(rewards: Sequence[Reward]) -> dict[str, float]:
    """Shares of the four dimensions of section 3.3 over the replies that the judge has marked so; empty where none is."""
    marked = [r.dimensions for r in rewards if r.dimensions]
    return {name: fmean(given[name] for given in marked) for name in DIMENSIONS} if marked else {}


def data_metrics(data: Experience) -> dict[str, float]:
    """KL to the reference (k1 and k3 in nats a token, k1 in nats a reply), mean return, and how well the values explain the returns."""
    mean = lambda x: float(ppo.masked_mean(x, data.keep))  # noqa: E731
    apart = ppo.kl_estimate(data.old_logprobs, data.reference, "k1")
    return {
        "kl": mean(apart),
        "kl_reply": float((apart * data.keep).sum() / len(data.keep)),
        "kl_k3": mean(ppo.kl_estimate(data.old_logprobs, data.reference, "k3")),
        "return": mean(data.returns),
        "explained_variance": ppo.explained_variance(data.values, data.returns, data.keep),
    }


def sample_rows(groups: Sequence[TurnGroup]) -> list[dict]:
    """One row a sample for dialogues/: where it belongs, its text and its reward."""
    return [
        {"dialogue": g.dialogue_id, "turn": g.turn, "sample": i, "chosen": i == g.chosen, **_sample_row(s)}
        for g in groups
        for i, s in enumerate(g.samples)
    ]


def _sample_row(sample: Sample) -> dict:
    return {"completion": sample.completion.text, "reward": None if sample.reward is None else vars(sample.reward)}


def progress_line(metrics: dict, total: int) -> str:
    """One line for the screen."""
    return (
        f"update {metrics['update']}/{total} turn {metrics['turn']}: reward {metrics['reward_total']:.3f} "
        f"(profile {metrics['reward_profile']:.3f}, response {metrics['reward_response']:.3f}) "
        f"format {metrics['format_rate']:.2f} KL {metrics['kl']:.4f}"
    )
