"""What a score is made of: format, criteria, guesses, the personal part (swap test), and the first turn, where nothing personal is known.

All functions take the judgement rows of one method and benchmark (`scoring.Judgement.to_json`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from rlpa_lib.dialogue.judging import CRITERIA
from rlpa_lib.evaluation import intervals, scoring

NAN = float("nan")
Measure = Callable[[dict], tuple[float, float]]  # of one judgement row: (part, whole), summed over each user
NOTHING = (0, 0)


def diagnostics(rows: Sequence[dict]) -> dict[str, float]:
    """Rates over all turns, each with its 95 % interval over users (_low, _high): format, each criterion among what was judged, profile,
    guesses, lengths, tokens. `distinct_responses` counts what this run said and has none."""
    shares = {
        "format_rate": lambda r: (r["format_ok"], 1),
        **{c: lambda r, c=c: (r["marks"][c], 1) if r["marks"] else NOTHING for c in CRITERIA},
        "profile_f1": lambda r: (r["profile_f1"], 1) if r["n_matched"] is not None else NOTHING,
        "profile_recall_of_told": lambda r: (r["n_matched"] - r["n_right_guesses"], r["n_told"]) if r["n_matched"] is not None else NOTHING,
        "theoretical_max": lambda r: (r["n_told"] / r["n_true"], 1),
        "guess_precision": lambda r: (r["n_right_guesses"], r["n_guesses"]),
        "unjudged": lambda r: (r["score"] is None, 1),
    }
    numbers = {
        "guesses_per_turn": lambda r: (r["n_guesses"], 1),
        "response_words": lambda r: (len(r["response"].split()), 1),
        "tokens_per_turn": lambda r: (r["n_tokens"], 1),
        "hidden_tokens_per_turn": lambda r: (sum(step["n_tokens"] for step in r["hidden"]), 1),
    }
    distinct = {"distinct_responses": len({r["response"] for r in rows}) / len(rows)}
    return {**_over_users(rows, shares), **_over_users(rows, numbers, (0.0, np.inf)), **distinct}


def _over_users(rows: Sequence[dict], measures: Mapping[str, Measure], limits: tuple[float, float] = (0.0, 1.0)) -> dict[str, float]:
    """Sum of parts over sum of wholes of each measure, with its interval over users."""
    places = {user: place for place, user in enumerate(dict.fromkeys(r["user"] for r in rows))}
    found = {}
    for name, measure in measures.items():
        sums = np.zeros((len(places), 2))
        for row in rows:
            sums[places[row["user"]]] += measure(row)
        interval = intervals.ratio_interval(*sums.T, limits)
        found |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found


def swap_summary(rows: Sequence[dict], first: int = 2) -> dict[str, float]:
    """Share aligned with the own and with another user's persona from turn `first` on (before that only "Hello" has been said), in
    [0, 1]; `personal_share` is the difference. 95 % intervals over users. NaN when the run has no such turn or no swap."""
    own, swapped = scoring.score_table(rows), scoring.score_table(rows, "swapped_score")
    own, swapped = own[:, first - 1 :], swapped[:, first - 1 :]
    both = ~np.isnan(own) & ~np.isnan(swapped)
    none = not both.any(axis=0).all() or not own.shape[1] or len(own) < 2
    found = {}
    for name, table, bottom in (("own", own, 0.0), ("swapped", swapped, 0.0), ("personal_share", own - swapped, -1.0)):
        missing = intervals.Interval(NAN, NAN, NAN, 0.95)
        interval = missing if none else intervals.bootstrap_interval(np.where(both, table, np.nan), limits=(bottom, 1.0))
        found |= {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return found


def first_turn(rows: Sequence[dict]) -> dict[str, float]:
    """What AL(1) is made of, in shares of users. The user has said "Hello", so a response can only be well made, or guess.

    `al1`; `swapped`, the share that would also suit another user; `broken` and, per criterion, `fails_X`; how many ask something; words;
    profile items (all guesses) and how many are right: each with its 95 % interval (_low, _high). How many responses differ
    from each other or are the commonest one counts what this run said.
    """
    now = [r for r in rows if r["turn"] == 1]
    texts = Counter(r["response"] for r in now)
    shares = {
        "al1": lambda r: (r["score"], 1) if r["score"] is not None else NOTHING,
        "swapped": lambda r: (r["swapped_score"], 1) if r["swapped_score"] is not None else NOTHING,
        "broken": lambda r: (not r["format_ok"], 1),
        **{f"fails_{c}": lambda r, c=c: (bool(r["marks"]) and not r["marks"][c], 1) for c in CRITERIA},
        "asks": lambda r: ("?" in r["response"] or "？" in r["response"], 1),
        "right_items": lambda r: (r["n_matched"] or 0, r["n_inferred"]),
    }
    numbers = {"words": lambda r: (len(r["response"].split()), 1), "profile_items": lambda r: (r["n_inferred"], 1)}
    counted = {"distinct": len(texts) / len(now), "commonest": texts.most_common(1)[0][1] / len(now)}
    return {**_over_users(now, shares), **counted, **_over_users(now, numbers, (0.0, np.inf))}


def mean_table(frame: pd.DataFrame, by: Sequence[str], columns: Sequence[str], user: str = "user") -> pd.DataFrame:
    """Mean of each column, in [0, 1], per group, with its 95 % interval over users (_low, _high); NaN cells are left out."""
    lines = []
    for key, part in frame.groupby(list(by), sort=False):
        line = dict(zip(by, key, strict=True))
        for column in columns:
            sums = part.groupby(user)[column].agg(["sum", "count"])
            found = intervals.ratio_interval(sums["sum"], sums["count"])
            line |= {column: found.estimate, f"{column}_low": found.low, f"{column}_high": found.high}
        lines.append(line)
    return pd.DataFrame(lines)


def by_turn(rows: Sequence[dict]) -> pd.DataFrame:
    """Share aligned with the own and with another user's persona at each turn, in [0, 1]: columns turn, own, swapped, each with its interval."""
    frame = pd.DataFrame(rows)[["user", "turn", "score", "swapped_score"]].astype({"score": float, "swapped_score": float})
    named = frame.rename(columns={"score": "own", "swapped_score": "swapped"}).sort_values("turn")
    return mean_table(named, ["turn"], ["own", "swapped"])


def cost(lines: Sequence[dict]) -> pd.DataFrame:
    """Seconds by party and tokens of each row, from metrics/evaluation.jsonl; `overhead` is all seconds over those of the methods.

    Of a turn that was played twice (after a kill or a change of the code) the last line counts.
    """
    frame = pd.DataFrame(lines).drop_duplicates(["method", "benchmark", "turn"], keep="last")
    table = frame.groupby(["method", "benchmark"], sort=False)[["method_s", "user_s", "judges_s", "tokens"]].sum().reset_index()
    table["tokens_per_second"] = table["tokens"] / table["method_s"]
    return table
