"""What a score is made of: format, criteria, guesses, the personal part (swap test), and the first turn, where nothing personal is known.

All functions take the judgement rows of one method and benchmark (`evaluation.Judgement.to_json`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pandas as pd

from rlpa_lib import evaluation, intervals
from rlpa_lib.judges import CRITERIA

NAN = float("nan")


def diagnostics(rows: Sequence[dict]) -> dict[str, float]:
    """Rates over all turns: format, each criterion among what was judged, profile, guesses, lengths, tokens."""
    guesses = sum(r["n_guesses"] for r in rows)
    judged = [r for r in rows if r["marks"]]
    matched = [r for r in rows if r["n_matched"] is not None]
    return {
        "format_rate": fmean(r["format_ok"] for r in rows),
        **{c: fmean(r["marks"][c] for r in judged) if judged else NAN for c in CRITERIA},
        "profile_f1": fmean(r["profile_f1"] for r in matched) if matched else NAN,
        "profile_recall_of_told": sum(r["n_matched"] - r["n_right_guesses"] for r in matched) / max(1, sum(r["n_told"] for r in matched)),
        "theoretical_max": fmean(r["n_told"] / r["n_true"] for r in rows),
        "guesses_per_turn": guesses / len(rows),
        "guess_precision": sum(r["n_right_guesses"] for r in rows) / guesses if guesses else NAN,
        "response_words": fmean(len(r["response"].split()) for r in rows),
        "distinct_responses": len({r["response"] for r in rows}) / len(rows),
        "tokens_per_turn": fmean(r["n_tokens"] for r in rows),
        "hidden_tokens_per_turn": fmean(sum(step["n_tokens"] for step in r["hidden"]) for r in rows),
        "unjudged": fmean(r["score"] is None for r in rows),
    }


def swap_summary(rows: Sequence[dict], first: int = 2) -> dict[str, float]:
    """Share aligned with the own and with another user's persona from turn `first` on (before that only "Hello" has been said), in
    [0, 1]; `personal_share` is the difference, with a 95 % interval over users. NaN when the run has no such turn or no swap."""
    own, swapped = evaluation.score_table(rows), evaluation.score_table(rows, "swapped_score")
    own, swapped = own[:, first - 1 :], swapped[:, first - 1 :]
    both = ~np.isnan(own) & ~np.isnan(swapped)
    if not both.any(axis=0).all() or not own.shape[1] or len(own) < 2:
        return dict.fromkeys(("own", "swapped", "personal_share", "low", "high"), NAN)
    means = [float(intervals.average_alignment(np.nanmean(np.where(both, table, np.nan), axis=0))) for table in (own, swapped)]
    personal = intervals.bootstrap_interval(np.where(both, own - swapped, np.nan))
    return {"own": means[0], "swapped": means[1], "personal_share": personal.estimate, "low": personal.low, "high": personal.high}


def first_turn(rows: Sequence[dict]) -> dict[str, float]:
    """What AL(1) is made of, in shares of users. The user has said "Hello", so a response can only be well made, or guess.

    `al1` with its exact 95 % interval; `swapped`, the share that would also suit another user; `broken` and, per criterion, `fails_X`;
    how many responses ask something, differ from each other or are the commonest one; profile items (all guesses) and how many are right.
    """
    now = [r for r in rows if r["turn"] == 1]
    scored = [r["score"] for r in now if r["score"] is not None]
    low, high = intervals.binomial_interval(sum(scored), len(scored)) if scored else (NAN, NAN)
    swapped = [r["swapped_score"] for r in now if r["swapped_score"] is not None]
    judged = [r["marks"] for r in now if r["marks"]]
    texts = Counter(r["response"] for r in now)
    items = sum(r["n_inferred"] for r in now)
    return {
        "al1": fmean(scored) if scored else NAN, "low": float(low), "high": float(high),
        "swapped": fmean(swapped) if swapped else NAN,
        "broken": fmean(not r["format_ok"] for r in now),
        **{f"fails_{c}": sum(not marks[c] for marks in judged) / len(now) for c in CRITERIA},
        "asks": fmean("?" in r["response"] or "？" in r["response"] for r in now),
        "distinct": len(texts) / len(now), "commonest": texts.most_common(1)[0][1] / len(now),
        "words": fmean(len(r["response"].split()) for r in now),
        "profile_items": items / len(now),
        "right_items": sum(r["n_matched"] or 0 for r in now) / items if items else NAN,
    }  # fmt: skip


def by_turn(rows: Sequence[dict]) -> pd.DataFrame:
    """Share aligned with the own and with another user's persona at each turn, in [0, 1]: columns turn, own, swapped."""
    frame = pd.DataFrame(rows)[["turn", "score", "swapped_score"]].astype(float)
    means = frame.groupby("turn").mean().reset_index().rename(columns={"score": "own", "swapped_score": "swapped"})
    return means.astype({"turn": int})


def cost(lines: Sequence[dict]) -> pd.DataFrame:
    """Seconds by party and tokens of each row, from metrics/evaluation.jsonl; `overhead` is all seconds over those of the methods.

    Of a turn that was played twice (after a kill or a change of the code) the last line counts.
    """
    frame = pd.DataFrame(lines).drop_duplicates(["method", "benchmark", "turn"], keep="last")
    table = frame.groupby(["method", "benchmark"], sort=False)[["method_s", "user_s", "judges_s", "tokens"]].sum().reset_index()
    table["tokens_per_second"] = table["tokens"] / table["method_s"]
    return table
