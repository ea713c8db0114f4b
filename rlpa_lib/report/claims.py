"""Which claims of the paper hold in one run: holds, does not hold or not tested, by rules that are written beside each verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
import pandas as pd
from pandas.errors import EmptyDataError
from scipy import stats

from rlpa_lib.evaluation.tables import LABELS
from rlpa_lib.runs import record as records
from rlpa_lib.runs import storage

Verdict = Literal["holds", "does not hold", "not tested"]
VERDICTS: tuple[Verdict, ...] = ("holds", "does not hold", "not tested")
RULE = (
    "A claim holds when every 95 % interval that its rule names lies above 0, and does not hold when at least one of them does not: "
    "an interval across 0 counts as not shown. It is not tested when anything that the rule needs was not run. Intervals are over users "
    "(over cohorts for training reward) of this one run; another training seed may give another result. A run with fewer than 30 users tests nothing."
)
LEAST_USERS = 30
OURS = "our question"  # a claim that the paper does not make, and that is not counted as one of its claims
_UNTRAINED = ("base", "rlpa_prompting")
_PROMPTING = ("reminder", "self_critic", "cot", "rag")
_OFFLINE = ("sft", "dpo")
_BOTH = ("vanilla", "extended")
_FLAT = 1e-12
_ABOVE = "RLPA minus each of {names} lies above 0 ({where}; paired by user)."


@dataclass(frozen=True)
class Claim:
    """One claim in our words: its place, what the paper prints for it, the rule, the verdict of this run and its evidence."""

    claim: str
    where: str
    paper: str
    rule: str
    verdict: Verdict
    evidence: str


def check_claims(run_dir: Path) -> list[Claim]:
    """Verdicts on the paper's main claims from a run directory alone; whatever is missing there makes a claim "not tested"."""
    found = [*_against_methods(run_dir), _rises_over_turns(run_dir), _reward_rises(run_dir), *_without_rule()]
    users = records.read(run_dir)["params"]["evaluation"]["users"]
    if users >= LEAST_USERS:
        return found
    return [replace(claim, verdict="not tested", evidence=f"only {users} users; {claim.evidence}") for claim in found]


def to_frame(found: Sequence[Claim]) -> pd.DataFrame:
    """Claims as a table, one row each."""
    return pd.DataFrame([vars(claim) for claim in found])


def read_table(run_dir: Path, name: str) -> pd.DataFrame | None:
    """tables/<name>.csv of a run, or None when it was not written or is empty."""
    file = run_dir / "tables" / f"{name}.csv"
    if not file.is_file():
        return None
    try:
        table = pd.read_csv(file)
    except EmptyDataError:
        return None
    return table if len(table) else None


def read_number(row: pd.Series, column: str) -> float:
    """The row's value as a float; NaN when the column is missing or empty."""
    value = row.get(column)
    return float(value) if value is not None and not isinstance(value, str) else math.nan


_TRAINED = (  # claim, place, what the paper prints, rows that RLPA must beat, benchmarks, table of paired differences
    ("Training with RLPA improves alignment with new users", "section 4.2, table 1", "73.38 against 7.97 for Base", _UNTRAINED, _BOTH[:1], "paired"),
    (
        "The improvement carries over to slots never seen in training",
        "section 4.2, table 1",
        "52.74 against 1.78 for Base",
        _UNTRAINED,
        _BOTH[1:],
        "paired",
    ),
    (
        "The improvement is more than a better first reply",
        f"{OURS}; tables 4 and 5",
        "turn 1: 62.16 and 49.32, others at most 13.51",
        _UNTRAINED,
        _BOTH,
        "paired_without_k1",
    ),
    (
        "RLPA beats prompting methods on the same model",
        "abstract, table 1",
        "73.38 and 52.74 against at most 52.43 and 26.30",
        _PROMPTING,
        _BOTH,
        "paired",
    ),
    ("RLPA beats SFT and DPO", "section 4.2, table 1", "+29.06 and +28.11 (vanilla), over +28 (extended)", _OFFLINE, _BOTH, "paired"),
)


def _against_methods(run_dir: Path) -> Iterator[Claim]:
    for text, where, paper, methods, benchmarks, table in _TRAINED:
        names = ", ".join(LABELS[m] for m in methods)
        place = " and ".join(benchmarks) + (", turn 1 left out" if table != "paired" else "")
        verdict, evidence = _beats(read_table(run_dir, table), methods, benchmarks)
        yield Claim(text, where, paper, _ABOVE.format(names=names, where=place), verdict, evidence)


def _beats(paired: pd.DataFrame | None, methods: Sequence[str], benchmarks: Sequence[str]) -> tuple[Verdict, str]:
    """Verdict over all pairs, and each difference in percent points with its interval."""
    if paired is None or not {"benchmark", "method", "difference", "low", "high"} <= set(paired):
        return "not tested", "no paired comparison in this run"
    lows, shown, missing = [], [], []
    for benchmark in benchmarks:
        for method in methods:
            rows = paired[(paired["benchmark"] == benchmark) & paired["method"].isin((LABELS[method], method))]
            if rows.empty or math.isnan(read_number(rows.iloc[0], "low")):
                missing.append(f"{LABELS[method]} ({benchmark})")
                continue
            row = rows.iloc[0]
            lows.append(row["low"])
            shown.append(f"{benchmark}, {LABELS[method]}: {row['difference']:+.1f} [{row['low']:.1f}, {row['high']:.1f}]")
    if missing:
        return "not tested", "; ".join([*shown, f"not run: {', '.join(missing)}"])
    return ("holds" if min(lows) > 0 else "does not hold"), "; ".join(shown)


def _rises_over_turns(run_dir: Path) -> Claim:
    table, shown, lows = read_table(run_dir, "table1"), [], []
    rows = None if table is None or "method" not in table else table[table["method"].isin((LABELS["rlpa"], "rlpa"))]
    for benchmark in _BOTH if rows is not None and len(rows) else ():
        slope, low, high = (read_number(rows.iloc[0], f"{benchmark}_n_ir{part}") for part in ("", "_low", "_high"))
        if not math.isnan(low):
            lows.append(low)
            shown.append(f"{benchmark}: N-IR {slope:+.3f} [{low:.3f}, {high:.3f}]")
    verdict: Verdict = "not tested" if len(lows) < len(_BOTH) else "holds" if min(lows) > 0 else "does not hold"
    rule = "N-IR of RLPA (slope per turn, minimum and maximum over all turns) lies above 0 on both benchmarks."
    text = "With RLPA alignment keeps rising over the turns"
    return Claim(text, "section 4.2, figure 3", "N-IR 0.090 and 0.100", rule, verdict, "; ".join(shown) or "RLPA was not evaluated in this run")


def _reward_rises(run_dir: Path) -> Claim:
    verdict, evidence = _halves(load_rewards(run_dir))
    rule = "Mean reward of the second half of the cohorts minus the first half lies above 0 (Welch interval over cohorts; at least four)."
    return Claim("Training raises the reward", "appendix I, figure 18", "a rising curve, no numbers", rule, verdict, evidence)


def load_rewards(run_dir: Path) -> list[float]:
    """Mean turn reward of each finished cohort in metrics/ppo.jsonl, in order; [] when training was not run."""
    file = run_dir / "metrics" / "ppo.jsonl"
    rows = storage.read_jsonl(file, appended=True) if file.is_file() else []
    cohorts: dict[int, list[float]] = {}
    for row in rows:
        cohorts.setdefault(row["iteration"], []).append(row["reward_total"])
    return [fmean(cohorts[iteration]) for iteration in sorted(cohorts)]


def _halves(rewards: Sequence[float]) -> tuple[Verdict, str]:
    if not rewards:
        return "not tested", "no training in this run"
    half = len(rewards) // 2
    if half < 2:
        return "not tested", f"{len(rewards)} cohorts, at least four are needed"
    early, late = rewards[:half], rewards[-half:]
    rise = fmean(late) - fmean(early)
    if max(np.ptp(early), np.ptp(late)) < _FLAT:  # no spread to estimate an error from
        return "not tested", f"{rise:+.3f}, without any variation between cohorts"
    interval = stats.ttest_ind(late, early, equal_var=False).confidence_interval(0.95)
    evidence = f"{fmean(early):.3f} to {fmean(late):.3f}: {rise:+.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    return ("holds" if interval.low > 0 else "does not hold"), evidence


def _without_rule() -> Iterator[Claim]:
    """Claims that no rule reads off a record: a person has to look, and the notebook says what at."""
    entries = (
        ("RLPA is on par with or above closed models", "abstract, section 4.2", "GPT-4o 74.59 and 54.66", "needs endpoints"),
        ("Both rewards are needed", "section 5.1, table 2", "45.54 and 66.19 against 73.38", "see table 2"),
        ("RLPA adapts when preferences change", "section 5.2, figure 4a", "70.27 at the change, 82.43 at turn 9", "see figure 4a"),
        ("The profile stays accurate over 70 turns", "section 5.3, figure 4b", "9.26 rising to 52.54", "see figure 4b"),
        ("RLPA beats reasoning models with fewer tokens", "section 5.4, figure 5", "a figure without numbers", "needs endpoints; figure 5"),
        ("Simulated users and judges agree with people", "appendices G and H", "kappa 0.62 to 0.74", "needs people who label; 34 has the page"),
    )
    for text, where, paper, see in entries:
        yield Claim(text, where, paper, "no rule", "not tested", see)
