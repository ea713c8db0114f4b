"""Claims of the abstract, sections 1-5 and appendices C-I, in our words, against the paper's own tables.

A verdict is about the printed numbers alone, never about what was done. Averages are recomputed from the ten
printed turns, so that slips in printed averages do not decide a claim.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from numpy.typing import ArrayLike

from rlpa_lib.audit.resolution import QWEN, STATED_USERS, average_error, infer_users, name_rows, on_grid
from rlpa_lib.evaluation.metrics import normalized_improvement
from rlpa_lib.evaluation.paper_tables import TURNS, MissingRow, Tables, curve

Parts = Iterator[tuple[bool, str]]  # of a claim: whether each holds, and the evidence; all must
OURS = f"{QWEN} RLPA"
_MAIN = ("table4", "table5")


@dataclass(frozen=True)
class Claim:
    """One claim: place in the paper, our paraphrase, the value or order it states, and what tables say."""

    key: str
    where: str
    text: str
    stated: str
    verdict: Literal["holds", "does not hold", "cannot be checked"]
    evidence: str
    charitable: str = ""


def check_claims(tables: Tables) -> list[Claim]:
    """All claims with verdicts: first those about tables, then those about figures and inside the text."""
    entries = yaml.safe_load((resources.files("rlpa_lib.audit") / "claims.yaml").read_text(encoding="utf-8"))
    return [_decide(tables, **entry) if "check" in entry else Claim(**entry) for entry in entries]


def _decide(
    tables: Tables, check: str, told: tuple = (), note: str | None = None, charitable: str = "", **shown: Any
) -> Claim:
    try:
        holds, evidence = zip(*CHECKS[check](tables, *told), strict=True)
    except MissingRow as error:
        return Claim(**shown, verdict="cannot be checked", evidence=str(error))
    evidence = "; ".join([*evidence, note] if note else evidence)
    if all(holds):
        return Claim(**shown, verdict="holds", evidence=evidence)
    return Claim(**shown, verdict="does not hold", evidence=evidence, charitable=charitable)


def _curve(tables: Tables, table: str, method: str = "RLPA", model: str = QWEN) -> np.ndarray:
    return curve(tables.row(table, model, method))


def _averages(tables: Tables, table: str) -> pd.Series:
    rows = tables.rows(table)
    return pd.Series([curve(row).mean() for _, row in rows.iterrows()], index=name_rows(rows))


def _first_on_backbone(tables: Tables) -> Parts:
    for table in _MAIN:
        ours = _curve(tables, table).mean()
        others = _averages(tables, table).filter(like=QWEN).drop(OURS)
        if others.empty:
            raise MissingRow(f"{table} has no other {QWEN} row")
        best = others.idxmax().removeprefix(QWEN).strip()
        yield ours > others.max(), f"{table}: {ours:.2f} against {others.max():.2f} ({best})"


def _beats(tables: Tables, *models: str) -> Parts:
    for table, model in itertools.product(_MAIN, models):
        ours, theirs = _curve(tables, table).mean(), _curve(tables, table, "Self-Critic", model).mean()
        yield ours > theirs, f"{table}: {ours:.2f} against {theirs:.2f} ({model})"


def _near_gpt4o(tables: Tables) -> Parts:
    for table in _MAIN:
        users = infer_users(tables.rows(table))
        pair = _curve(tables, table), _curve(tables, table, "Self-Critic", "GPT-4o")
        gap = pair[0].mean() - pair[1].mean()
        # Independent turns give the narrowest error: a gap inside it is chance whatever the correlation.
        half = 1.96 * math.hypot(*(average_error(levels, users, 0.0) for levels in pair))
        yield abs(gap) <= half, f"{table}: {gap:+.2f}, chance allows at least {half:.2f}"


def _rank(tables: Tables, table: str, values: ArrayLike) -> tuple[int, str]:
    """RLPA's rank by a value of each row of a table, and the evidence in words."""
    tables.row(table, QWEN, "RLPA")
    series = pd.Series(np.asarray(values), index=name_rows(tables.rows(table)))
    rank = int((series > series[OURS]).sum()) + 1
    return rank, f"rank {rank} ({series[OURS]:.3g}; highest {series.max():.3g}, {series.idxmax()})"


def _ranks_first(tables: Tables) -> Parts:
    for table in _MAIN:
        tables.row(table, QWEN, "RLPA")
        scores = _averages(tables, table)
        above = scores[scores > scores[OURS]].sort_values(ascending=False)
        ahead = ", ".join(f"{name} {value:.2f}" for name, value in above.items())
        yield above.empty, f"{table}: rank {len(above) + 1}" + (f" behind {ahead}" if ahead else "")


def _best_printed(tables: Tables, column: str) -> Parts:
    rank, text = _rank(tables, "table4", tables.rows("table4")[column])
    yield rank == 1, text


def _gain(tables: Tables, method: str, stated: float) -> Parts:
    ours, theirs = tables.row("table4", QWEN, "RLPA"), tables.row("table4", QWEN, method)
    gain, printed = curve(ours).mean() - curve(theirs).mean(), ours["avg"] - theirs["avg"]
    yield abs(gain - stated) < 0.02, f"from the turns {gain:.2f}, from the printed averages {printed:.2f}"


def _gain_extended(tables: Tables) -> Parts:
    ours = _curve(tables, "table5").mean()
    gains = {method: ours - _curve(tables, "table5", method).mean() for method in ("SFT", "DPO")}
    yield min(gains.values()) > 28, ", ".join(f"{gain:.2f} over {method}" for method, gain in gains.items())


def _gpt_r2(tables: Tables) -> Parts:
    large, small = (tables.row("table4", model, "Self-Critic")["n_r2"] for model in ("GPT-4o", "GPT-4o-mini"))
    yield (large, small) == (0.38, 0.5), f"table 4 prints {large:.3f}, {small:.3f}"


def _leads_extended(tables: Tables) -> Parts:
    rows = tables.rows("table5")
    scores = {"average": _averages(tables, "table5"), "n_ir": rows["n_ir"], "n_r2": rows["n_r2"]}
    for name, values in scores.items():
        rank, text = _rank(tables, "table5", values)
        yield rank == 1, f"{name}: {text}"
    pairs = [normalized_improvement(curve(row), "global") for _, row in rows.iterrows()]
    n_ir, n_r2 = (_rank(tables, "table5", values)[0] for values in zip(*pairs, strict=True))
    yield True, f"by table 4's reading N-IR rank {n_ir}, N-R² rank {n_r2}"


def _peaks(tables: Tables) -> Parts:
    for method in ("SFT", "DPO"):
        al = _curve(tables, "table5", method)
        text = f"{method} peaks at turn {al.argmax() + 1} ({al.max():.2f}) and ends at {al[-1]:.2f}"
        yield 3 <= al.argmax() <= 5 and al[-1] < al.max(), text


def _rises(tables: Tables) -> Parts:
    al = _curve(tables, "table5")
    falls = ", ".join(f"{a:.2f} to {b:.2f}" for a, b in itertools.pairwise(al) if b < a) or "none"
    yield al[-1] > al[0], f"{al[0]:.2f} at turn 1, {al[-1]:.2f} at turn 10; falls on the way: {falls}"


def _average_is(tables: Tables, method: str, stated: float) -> Parts:
    value = _curve(tables, "table2", method).mean()
    yield abs(value - stated) < 0.011, f"mean of the ten turns {value:.2f}"


def _ablation_drop(tables: Tables) -> Parts:
    users, ours = infer_users(tables.rows("table2")), _curve(tables, "table2")
    for method, note in (("RLPA w/ PR", ""), ("RLPA w/ RR", " (by how a user's turns correlate)")):
        other = _curve(tables, "table2", method)
        errors = [[average_error(al, users, corr) for al in (ours, other)] for corr in (0.0, 1.0)]
        low, high = (1.96 * math.hypot(*pair) for pair in errors)
        drop = ours.mean() - other.mean()
        yield drop > 0, f"{method} {drop:.2f} lower, chance allows {low:.2f} to {high:.2f}{note}"


def _ablation_first(tables: Tables) -> Parts:
    ours, ablated = (_curve(tables, "table2", method)[0] for method in ("RLPA", "RLPA w/ RR"))
    gap = f"a gap of {(ours - ablated) * STATED_USERS / 100:.1f} users of 74"
    yield ablated == 58.92 and ablated < ours, f"{ablated:.2f} against {ours:.2f}: {gap}"


def _ablation_falls(tables: Tables) -> Parts:
    ours, ablated = ((np.diff(_curve(tables, "table2", name)) < 0).sum() for name in ("RLPA", "RLPA w/ RR"))
    yield ablated > ours, f"falls between turns: RR {ablated}, RLPA {ours} of 9"


def _users_extended(tables: Tables) -> Parts:
    rows = tables.rows("table5")
    if rows.empty:
        raise MissingRow("turnwise.csv has no rows of table5")
    users, off = infer_users(rows), (~on_grid(rows[list(TURNS)].to_numpy(float), STATED_USERS)).sum()
    cells = f"{off} of {10 * len(rows)} are no whole number of {STATED_USERS}"
    yield users == STATED_USERS, f"table 5's percentages fit {users} users; {cells}"


def _user_model(tables: Tables, column: str, stated: float) -> Parts:
    value, top = tables.row("table6", "DeepSeek-V3")[column], tables.rows("table6")[column].max()
    yield value == stated == top, f"table 6 prints {value:.2f}; highest {top:.2f}"


def _judge_quality(tables: Tables) -> Parts:
    accuracy, kappa = tables.rows("table10").iloc[0][["accuracy", "cohens_kappa"]]
    yield accuracy == 0.87 and kappa == 0.74, f"table 10: {accuracy:.3f}, {kappa:.3f}"


# As claims.yaml names them.
CHECKS = {check.__name__.removeprefix("_"): check for check in (
    _first_on_backbone, _beats, _near_gpt4o, _ranks_first, _best_printed, _gain, _gain_extended, _gpt_r2,
    _leads_extended, _peaks, _rises, _average_is, _ablation_drop, _ablation_first, _ablation_falls,
    _users_extended, _user_model, _judge_quality,
)}  # fmt: skip
