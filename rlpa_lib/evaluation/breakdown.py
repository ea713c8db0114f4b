"""What a score is made of: format, criteria, guesses, the personal part (swap test), and the first turn.

All functions take the judgement rows of one method and benchmark (`scoring.Judgement.to_json`)."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from rlpa_lib.evaluation import tables
from rlpa_lib.evaluation.intervals import SHARE, UNKNOWN, Limits, bootstrap_interval, ratio_interval
from rlpa_lib.settings.kinds import EVALUATION_CRITERIA

# Of each judgement row a part and a whole, both to be summed; or a value, NaN where there is none.
Measure = tuple[pd.Series, pd.Series] | pd.Series
NUMBER: Limits = (0.0, np.inf)


def diagnostics(rows: Sequence[dict]) -> dict[str, float]:
    """Rates over all turns with 95 % intervals over users (_low, _high): format, each criterion among what
    was judged, profile, guesses, lengths, tokens; distinct_responses has no interval."""
    frame = pd.DataFrame(rows)
    matched = frame["n_matched"].astype(float)
    told = frame["n_told"].where(matched.notna())
    shares = {
        "format_rate": frame["format_ok"],
        **_read_marks(rows),
        "profile_f1": frame["profile_f1"],
        "profile_recall_of_told": (matched - frame["n_right_guesses"], told),
        "theoretical_max": frame["n_told"] / frame["n_true"],
        "guess_precision": (frame["n_right_guesses"], frame["n_guesses"]),
        "unjudged": frame["score"].isna(),
    }
    numbers = {
        "guesses_per_turn": frame["n_guesses"],
        "response_words": frame["response"].str.split().str.len(),
        "tokens_per_turn": frame["n_tokens"],
        "hidden_tokens_per_turn": frame["hidden"].map(lambda steps: sum(step["n_tokens"] for step in steps)),
    }
    rates = _rate_over_users(frame, shares) | _rate_over_users(frame, numbers, NUMBER)
    return rates | {"distinct_responses": frame["response"].nunique() / len(frame)}


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
    """What AL(1) is made of, in shares of users. All have said "Hello" and nothing else.

    `al1`; `swapped`, the share that would also suit another user; `broken` and, per criterion, `fails_X`; how
    many ask something; words; profile items (all guesses) and how many are right: each with its 95 % interval
    (_low, _high). How many responses differ from each other or are the commonest one counts what this run
    said."""
    now = [r for r in rows if r["turn"] == 1]
    frame = pd.DataFrame(now)
    shares = {
        "al1": frame["score"],
        "swapped": frame["swapped_score"],
        "broken": ~frame["format_ok"],
        **{f"fails_{criterion}": passed == 0 for criterion, passed in _read_marks(now).items()},
        "asks": frame["response"].str.contains("[?？]"),
        "right_items": (frame["n_matched"], frame["n_inferred"]),
    }
    numbers = {"words": frame["response"].str.split().str.len(), "profile_items": frame["n_inferred"]}
    counts = frame["response"].value_counts()
    counted = {"distinct": len(counts) / len(now), "commonest": int(counts.iloc[0]) / len(now)}
    return _rate_over_users(frame, shares) | counted | _rate_over_users(frame, numbers, NUMBER)


def _read_marks(rows: Sequence[dict]) -> pd.DataFrame:
    """1, 0 or NaN (not judged), a column a criterion."""
    return pd.DataFrame([r["marks"] or {} for r in rows], columns=list(EVALUATION_CRITERIA), dtype=float)


def _rate_over_users(
    frame: pd.DataFrame, measures: Mapping[str, Measure], limits: Limits = SHARE
) -> dict[str, float]:
    """Sum of parts over sum of wholes of each measure, with its interval over users; NaN counts as 0."""
    users, found = pd.factorize(frame["user"])[0], {}
    for name, measure in measures.items():
        pair = measure if isinstance(measure, tuple) else (measure, measure.notna())
        sums = [np.bincount(users, weights=series.astype(float).fillna(0)) for series in pair]
        found |= ratio_interval(*sums, limits).columns(name)
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
