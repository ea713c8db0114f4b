"""Which claims of the paper hold in one run: holds, does not hold or not tested, by the rule beside each."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import yaml
from pandas.errors import EmptyDataError
from scipy import stats

from rlpa_lib.runs import record as records
from rlpa_lib.runs import storage
from rlpa_lib.settings.base import BENCHMARKS
from rlpa_lib.settings.kinds import METHODS

Verdict = Literal["holds", "does not hold", "not tested"]
Judged = tuple[Verdict, str]  # with the evidence
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
LEAST_USERS = 30
LABELS = {name: method.label for name, method in METHODS.items()}
OURS = "our question"  # a claim that the paper does not make, and that is not counted as one of its claims
_FLAT = 1e-12


@dataclass(frozen=True)
class Claim:
    """One claim in our words: place, what the paper prints, the rule, this run's verdict and its evidence."""

    claim: str
    where: str
    paper: str
    rule: str
    verdict: Verdict
    evidence: str


def check_claims(run_dir: Path) -> list[Claim]:
    """Verdicts on the claims of claims.yaml and two more from a run directory; what was not run is open."""
    told = yaml.safe_load((resources.files("rlpa_lib.report") / "claims.yaml").read_text(encoding="utf-8"))
    found = [_check_difference(run_dir, entry) for entry in told["differences"]]
    compared = {"turns": _compare_turns(read_table(run_dir, "table1")),
                "training": _compare_halves(load_rewards(run_dir))}  # fmt: skip
    for name, (verdict, evidence) in compared.items():
        found.append(Claim(**told[name], verdict=verdict, evidence=evidence))
    found += [Claim(**entry, rule="no rule", verdict="not tested") for entry in told["unchecked"]]
    users = records.read(run_dir)["params"]["evaluation"]["users"]
    if users >= LEAST_USERS:
        return found
    return [replace(c, verdict="not tested", evidence=f"only {users} users; {c.evidence}") for c in found]


def read_table(run_dir: Path, name: str) -> pd.DataFrame | None:
    """tables/<name>.csv of a run, methods by their labels; None when it was not written or is empty."""
    try:
        table = pd.read_csv(run_dir / "tables" / f"{name}.csv")
    except (FileNotFoundError, EmptyDataError):
        return None
    if "method" in table:
        table["method"] = table["method"].replace(LABELS)
    return table if len(table) else None


def read_number(row: pd.Series, column: str) -> float:
    """The row's value as a float; NaN when the column is missing or empty."""
    value = row.get(column)
    return float(value) if value is not None and not isinstance(value, str) else math.nan


def read_interval(row: pd.Series, column: str) -> tuple[float, float, float]:
    """A value of the row with the ends of its interval, from columns x, x_low and x_high."""
    value, low, high = (read_number(row, f"{column}{part}") for part in ("", "_low", "_high"))
    return value, low, high


def _check_difference(run_dir: Path, entry: Mapping[str, Any]) -> Claim:
    names, benchmarks = [LABELS.get(row, row) for row in entry["rows"]], entry["benchmarks"]
    place = ", ".join(filter(None, (" and ".join(benchmarks), entry.get("limit"))))
    rule = f"RLPA minus each of {', '.join(names)} lies above 0 ({place}; paired by user)."
    judged = _compare_rows(read_table(run_dir, entry["table"]), names, benchmarks)
    return Claim(entry["claim"], entry["where"], entry["paper"], rule, *judged)


def _compare_rows(paired: pd.DataFrame | None, names: list[str], benchmarks: Sequence[str]) -> Judged:
    """Verdict over all pairs, and each difference in percent points with its interval."""
    if paired is None or not {"method", "difference", "low", "high"} <= set(paired):
        return "not tested", "no paired comparison in this run"
    if "benchmark" not in paired:
        paired = paired.assign(benchmark="vanilla")  # table 2 is about these users alone
    known = {(row["benchmark"], row["method"]): row for _, row in paired.dropna(subset="low").iterrows()}
    pairs = list(itertools.product(benchmarks, names))
    shown = [
        f"{bench}, {name}: {row['difference']:+.1f} [{row['low']:.1f}, {row['high']:.1f}]"
        for bench, name in pairs if (row := known.get((bench, name))) is not None
    ]  # fmt: skip
    if missing := ", ".join(f"{name} ({bench})" for bench, name in pairs if (bench, name) not in known):
        return "not tested", "; ".join([*shown, f"not run: {missing}"])
    return _judge(known[pair]["low"] for pair in pairs), "; ".join(shown)


def _judge(lows: Iterable[float]) -> Verdict:
    return "holds" if min(lows) > 0 else "does not hold"


def _compare_turns(table: pd.DataFrame | None) -> Judged:
    """Verdict over N-IR of RLPA on both benchmarks, from table 1."""
    shown, lows = [], []
    ours = [] if table is None or "method" not in table else table[table["method"] == LABELS["rlpa"]]
    for benchmark in BENCHMARKS if len(ours) else ():
        slope, low, high = read_interval(ours.iloc[0], f"{benchmark}_n_ir")
        if not math.isnan(low):
            lows.append(low)
            shown.append(f"{benchmark}: N-IR {slope:+.3f} [{low:.3f}, {high:.3f}]")
    verdict = _judge(lows) if len(lows) == len(BENCHMARKS) else "not tested"
    return verdict, "; ".join(shown) or "RLPA was not evaluated in this run"


def load_rewards(run_dir: Path) -> list[float]:
    """Mean turn reward of each finished cohort of metrics/ppo.jsonl, in order; [] if training was not run."""
    file = run_dir / "metrics" / "ppo.jsonl"
    cohorts: dict[int, list[float]] = {}
    for row in storage.read_jsonl(file, appended=True) if file.is_file() else ():
        cohorts.setdefault(row["iteration"], []).append(row["reward_total"])
    return [fmean(rewards) for _, rewards in sorted(cohorts.items())]


def _compare_halves(rewards: Sequence[float]) -> Judged:
    if not rewards:
        return "not tested", "no training in this run"
    half = len(rewards) // 2
    if half < 2:
        return "not tested", f"{len(rewards)} cohorts, at least four are needed"
    early, late = rewards[:half], rewards[-half:]
    rise = fmean(late) - fmean(early)
    if max(np.ptp(early), np.ptp(late)) < _FLAT:  # no spread to estimate an error from
        return "not tested", f"{rise:+.3f}, without any variation between cohorts"
    low, high = stats.ttest_ind(late, early, equal_var=False).confidence_interval(0.95)
    return _judge([low]), f"{fmean(early):.3f} to {fmean(late):.3f}: {rise:+.3f} [{low:.3f}, {high:.3f}]"
