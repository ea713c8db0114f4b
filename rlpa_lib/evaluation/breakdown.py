"""What a score is made of: format, criteria, guesses, the personal part (swap test), and the first turn.

All functions take the judgement rows of one method and benchmark (`scoring.Judgement.to_json`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from rlpa_lib.evaluation import tables
from rlpa_lib.evaluation.intervals import SHARE, UNKNOWN, Limits, bootstrap_interval, ratio_interval
from rlpa_lib.settings.kinds import EVALUATION_CRITERIA

Measure = Callable[[dict], tuple[float, float]]  # of one judgement row: (part, whole), summed over each user
NOTHING = (0, 0)
NUMBER: Limits = (0.0, np.inf)


def diagnostics(rows: Sequence[dict]) -> dict[str, float]:
    """Rates over all turns with 95 % intervals over users (_low, _high): format, each criterion among what
    was judged, profile, guesses, lengths, tokens; distinct_responses has no interval."""
    shares = {
        "format_rate": lambda r: (r["format_ok"], 1),
        **{c: lambda r, c=c: (r["marks"][c], 1) if r["marks"] else NOTHING for c in EVALUATION_CRITERIA},
        "profile_f1": lambda r: _known(r["profile_f1"]),
        "profile_recall_of_told": _matched_of_told,
        "theoretical_max": lambda r: (r["n_told"] / r["n_true"], 1),
        "guess_precision": lambda r: (r["n_right_guesses"], r["n_guesses"]),
        "unjudged": lambda r: (r["score"] is None, 1),
    }
    numbers = {
        "guesses_per_turn": lambda r: (r["n_guesses"], 1),
        "response_words": _count_words,
        "tokens_per_turn": lambda r: (r["n_tokens"], 1),
        "hidden_tokens_per_turn": lambda r: (sum(step["n_tokens"] for step in r["hidden"]), 1),
    }
    distinct = {"distinct_responses": len({r["response"] for r in rows}) / len(rows)}
    return _rate_over_users(rows, shares) | _rate_over_users(rows, numbers, NUMBER) | distinct


def swap_summary(rows: Sequence[dict], first: int = 2) -> dict[str, float]:
    """Share aligned with the own and with another user's persona from turn `first` on, in [0, 1]. Before turn
    2 only "Hello" has been said. `personal_share` is the difference. 95 % intervals over users. NaN when the
    run has no such turn or no swap."""
    own, swapped = (tables.score_table(rows, field)[:, first - 1 :] for field in ("score", "swapped_score"))
    both = ~np.isnan(own) & ~np.isnan(swapped)
    known = both.any(axis=0).all() and own.shape[1] and len(own) >= 2
    found = {}
    for name, table, low in (("own", own, 0), ("swapped", swapped, 0), ("personal_share", own - swapped, -1)):
        cells = np.where(both, table, np.nan)
        found |= (bootstrap_interval(cells, limits=(low, 1.0)) if known else UNKNOWN).columns(name)
    return found


def first_turn(rows: Sequence[dict]) -> dict[str, float]:
    """What AL(1) is made of, in shares of users. All have said "Hello" and nothing else. `al1`; `swapped`,
    the share that would also suit another user; `broken` and, per criterion, `fails_X`; how many ask
    something; words; profile items (all guesses) and how many are right: each with its 95 % interval (_low,
    _high). How many responses differ from each other or are the commonest one counts what this run said."""
    now = [r for r in rows if r["turn"] == 1]
    texts = Counter(r["response"] for r in now)
    fails = {
        f"fails_{c}": lambda r, c=c: (bool(r["marks"] and not r["marks"][c]), 1) for c in EVALUATION_CRITERIA
    }
    shares = {
        "al1": lambda r: _known(r["score"]),
        "swapped": lambda r: _known(r["swapped_score"]),
        "broken": lambda r: (not r["format_ok"], 1),
        **fails,
        "asks": lambda r: ("?" in r["response"] or "？" in r["response"], 1),
        "right_items": lambda r: (r["n_matched"] or 0, r["n_inferred"]),
    }
    numbers = {"words": _count_words, "profile_items": lambda r: (r["n_inferred"], 1)}
    counted = {"distinct": len(texts) / len(now), "commonest": texts.most_common(1)[0][1] / len(now)}
    return _rate_over_users(now, shares) | counted | _rate_over_users(now, numbers, NUMBER)


def _known(value: float | None) -> tuple[float, int]:
    return NOTHING if value is None else (value, 1)


def _matched_of_told(row: dict) -> tuple[int, int]:
    return NOTHING if row["n_matched"] is None else (row["n_matched"] - row["n_right_guesses"], row["n_told"])


def _count_words(row: dict) -> tuple[int, int]:
    return len(row["response"].split()), 1


def _rate_over_users(
    rows: Sequence[dict], measures: Mapping[str, Measure], limits: Limits = SHARE
) -> dict[str, float]:
    """Sum of parts over sum of wholes of each measure, with its interval over users."""
    places = {user: place for place, user in enumerate(dict.fromkeys(r["user"] for r in rows))}
    found = {}
    for name, measure in measures.items():
        sums = np.zeros((len(places), 2))
        for row in rows:
            sums[places[row["user"]]] += measure(row)
        found |= ratio_interval(*sums.T, limits).columns(name)
    return found


def mean_table(frame: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Mean of each column, in [0, 1], per group, with its interval over users; NaN is left out."""
    lines = []
    for key, part in frame.groupby(list(by), sort=False):
        line = dict(zip(by, key, strict=True))
        for column in columns:
            sums = part.groupby("user")[column].agg(["sum", "count"])
            line |= ratio_interval(sums["sum"], sums["count"]).columns(column)
        lines.append(line)
    return pd.DataFrame(lines)


def by_turn(rows: Sequence[dict]) -> pd.DataFrame:
    """Share aligned with the own and with another user's persona at each turn, in [0, 1], with intervals."""
    frame = pd.DataFrame(rows)[["user", "turn", "score", "swapped_score"]]
    frame = frame.rename(columns={"score": "own", "swapped_score": "swapped"})
    frame = frame.astype({"own": float, "swapped": float}).sort_values("turn")
    return mean_table(frame, ["turn"], ["own", "swapped"])


def cost(lines: Sequence[dict]) -> pd.DataFrame:
    """Seconds by party and tokens of each row, from metrics/evaluation.jsonl. Of a turn that was played twice
    (after a kill or a change of the code) the last line counts."""
    frame = pd.DataFrame(lines).drop_duplicates(["method", "benchmark", "turn"], keep="last")
    columns = ["method_s", "user_s", "judges_s", "tokens"]
    sums = frame.groupby(["method", "benchmark"], sort=False)[columns].sum().reset_index()
    return sums.assign(tokens_per_second=sums["tokens"] / sums["method_s"])
