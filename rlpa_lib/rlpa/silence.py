"""A training in which no reply keeps the format earns 0 everywhere and learns nothing: it has to stop."""

from collections.abc import Sequence


class SilentTraining(RuntimeError):
    """No reply keeps the format; the message says what to look at."""


def check_format(
    name: str, rows: Sequence[dict], patience: int | None, read: str, *, over: bool = False
) -> None:
    """SilentTraining: the last `patience` updates (null: never) saw no well-formed reply, or if training is
    `over` none of fewer updates did. `rows` are the metrics of all updates so far, with `format_rate` and
    (the last) `finished_share`; `read` says where replies are."""
    last = rows[-patience:] if patience else []
    if not last or (len(last) < patience and not over) or any(row["format_rate"] for row in last):
        return
    ended = last[-1]["finished_share"]
    remedy = (
        "a reply that ends is rare: compare the end tokens and chat template of policy.model with what it "
        "writes, or raise rollout.max_new_tokens"
        if ended < 0.5
        else "they end, but are no profile and response block: give policy.adapter an SFT adapter that knows "
        "the format, set policy.warm_up, or check run.prompt_set and profile.strictness"
    )
    raise SilentTraining(
        f"training {name}: no reply of the last {len(last)} updates kept the format (format 0.00), so every "
        f"reward is 0. {read}: {ended:.0%} of them end; {remedy}. "
        "ppo.format_patience says after how many such updates training stops"
    )
