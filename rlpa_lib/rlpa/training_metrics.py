"""What an update leaves in metrics/ and dialogues/: rewards part by part, KL, values, lengths, cuts."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rlpa_lib.dialogue.judging import DIMENSIONS
from rlpa_lib.rlpa import ppo
from rlpa_lib.rlpa.experience import Experience
from rlpa_lib.rlpa.rewards import Reward
from rlpa_lib.rlpa.rollout import TurnGroup
from rlpa_lib.settings.kinds import REWARD_CRITERIA


def reward_metrics(groups: Sequence[TurnGroup]) -> dict[str, float]:
    """Means over samples of every reward part, and what samples look like; shares 0..1, lengths in tokens."""
    samples = [s for g in groups for s in g.samples]
    rewards = [s.reward for s in samples if s.reward is not None]
    chosen = [r for g in groups if (r := g.samples[g.chosen].reward) is not None]
    guesses, inferred = sum(r.n_unrevealed_guesses for r in rewards), sum(r.n_inferred for r in rewards)
    matched = sum(r.n_unrevealed_matched for r in rewards)
    return {
        "reward_total": fmean(r.total for r in rewards),
        "reward_profile": fmean(r.profile for r in rewards),
        "reward_response": fmean(r.response for r in rewards),
        "precision": fmean(r.precision for r in rewards),
        "recall": fmean(r.recall for r in rewards),
        "reward_total_chosen": fmean(r.total for r in chosen) if chosen else float("nan"),
        **{name: fmean(r.criteria[name] for r in rewards) for name in REWARD_CRITERIA},
        **_dimension_means(rewards),
        "format_rate": fmean(r.format_ok for r in rewards),
        "unjudged_share": 1 - len(rewards) / len(samples),
        "unrevealed_share": guesses / inferred if inferred else 0.0,
        "unrevealed_precision": matched / guesses if guesses else float("nan"),
        "profile_items": inferred / len(rewards),
        "distinct_responses": len({s.reply.response for s in samples}) / len(samples),
        "finished_share": fmean(s.completion.finished for s in samples),
        "completions_cut": sum(not s.completion.finished for s in samples),
        "prompt_tokens": fmean(len(g.prompt_ids) for g in groups),
        "completion_tokens": fmean(len(s.completion.token_ids) for s in samples),
    }


def _dimension_means(rewards: Sequence[Reward]) -> dict[str, float]:
    """Shares of the four dimensions of section 3.3 over the replies with such marks; empty without any."""
    marked = [r.dimensions for r in rewards if r.dimensions]
    return {name: fmean(marks[name] for marks in marked) for name in DIMENSIONS} if marked else {}


def data_metrics(data: Experience) -> dict[str, float]:
    """KL to the reference (k1 and k3 in nats a token, k1 in nats a reply), return, explained variance."""
    apart, k3 = (ppo.kl_estimate(data.old_logprobs, data.reference, name) for name in ("k1", "k3"))
    return {
        "kl": float(ppo.masked_mean(apart, data.keep)),
        "kl_reply": float((apart * data.keep).sum() / len(data.keep)),
        "kl_k3": float(ppo.masked_mean(k3, data.keep)),
        "return": float(ppo.masked_mean(data.returns, data.keep)),
        "explained_variance": ppo.explained_variance(data.values, data.returns, data.keep),
    }


def sample_rows(groups: Sequence[TurnGroup]) -> list[dict]:
    """One row a sample for dialogues/: where it belongs, its text and its reward."""
    return [
        {"dialogue": g.dialogue_id, "turn": g.turn, "sample": i, "chosen": i == g.chosen,
         "completion": s.completion.text, "reward": None if s.reward is None else vars(s.reward)}
        for g in groups
        for i, s in enumerate(g.samples)
    ]  # fmt: skip


def progress_line(metrics: dict, total: int) -> str:
    """One line for the screen."""
    return (
        f"update {metrics['update']}/{total} turn {metrics['turn']}: reward {metrics['reward_total']:.3f} "
        f"(profile {metrics['reward_profile']:.3f}, response {metrics['reward_response']:.3f}) "
        f"format {metrics['format_rate']:.2f} KL {metrics['kl']:.4f}"
    )
