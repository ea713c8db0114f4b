"""A training in which no reply keeps the format earns 0 everywhere and learns nothing: it has to stop."""

from collections.abc import Sequence


class SilentTraining(RuntimeError):
    """No reply keeps the format; the message says what to look at."""


def check_format(name: str, rows: Sequence[dict], patience: int | None) -> None:
    """SilentTraining: the last `patience` updates saw no well-formed reply (null: never). `rows` are the
    metrics of all updates so far, with `update`, `format_rate` and `finished_share`."""
    last = rows[-patience:] if patience else []
    if last and len(last) == patience and not any(row["format_rate"] for row in last):
        raise SilentTraining(_explain(name, last))


def _explain(name: str, rows: Sequence[dict]) -> str:
    ended, file = rows[-1]["finished_share"], f"dialogues/{name}/update-{rows[-1]['update']:04d}.jsonl"
    remedy = (
        "a reply that ends is rare: compare the end tokens and chat template of policy.model with what it "
        "writes, or raise rollout.max_new_tokens"
        if ended < 0.5
        else "they end, but are no profile and response block: give policy.adapter an SFT adapter that knows "
        "the format, set policy.warm_up, or check run.prompt_set and profile.strictness"
    )
    return (
        f"training {name}: no reply of the last {len(rows)} updates kept the format (format 0.00), so every "
        f"reward is 0. Read the completions in {file}: {ended:.0%} of them end; {remedy}. "
        "ppo.format_patience says after how many such updates training stops"
    )
