"""Claims of the abstract, sections 1-5 and appendices C-I, in our words, against the paper's own tables.

A verdict is about the printed numbers alone, never about what was done. Averages are recomputed from the ten
printed turns, so that slips in printed averages do not decide a claim.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import numpy as np
import pandas as pd
import yaml
from numpy.typing import ArrayLike

from rlpa_lib.audit.resolution import QWEN, STATED_USERS, average_error, infer_users, name_row, on_grid
from rlpa_lib.evaluation.metrics import normalized_improvement
from rlpa_lib.evaluation.paper_tables import TURNS, MissingRow, Tables, curve

Verdict = Literal["holds", "does not hold", "cannot be checked"]
Parts = Iterator[tuple[bool, str]]  # of a claim: whether each holds, and the evidence; all must
Check = Callable[..., Parts]  # is given the tables and what stands behind it in TABLE_CLAIMS
OURS = f"{QWEN} RLPA"
_MAIN = ("table4", "table5")


@dataclass(frozen=True)
class Claim:
    """One claim: place in the paper, our paraphrase, the value or order it states, and what tables say."""

    key: str
    where: str
    text: str
    stated: str
    verdict: Verdict
    evidence: str
    charitable: str = ""


def check_claims(tables: Tables) -> list[Claim]:
    """All claims with verdicts: first those about tables, then those about figures and inside the text."""
    checked = [_check(tables, where, *entry) for where, entries in TABLE_CLAIMS.items() for entry in entries]
    return [*checked, *(Claim(**entry) for entry in _load_facts()["claims"])]


@cache
def _load_facts() -> dict[str, Any]:
    return yaml.safe_load((resources.files("rlpa_lib.audit") / "facts.yaml").read_text(encoding="utf-8"))


def _check(tables: Tables, where: str, key: str, text: str, stated: str, check: Check, *told: Any) -> Claim:
    try:
        holds, evidence = zip(*check(tables, *told), strict=True)
    except MissingRow as error:
        return Claim(key, where, text, stated, verdict="cannot be checked", evidence=str(error))
    if all(holds):
        return Claim(key, where, text, stated, verdict="holds", evidence="; ".join(evidence))
    charitable = _load_facts()["charitable"].get(key, "")
    return Claim(
        key, where, text, stated, verdict="does not hold", evidence="; ".join(evidence), charitable=charitable
    )


def _curve(tables: Tables, table: str, method: str = "RLPA", model: str = QWEN) -> np.ndarray:
    return curve(tables.row(table, model, method))


def _average(tables: Tables, table: str, method: str = "RLPA", model: str = QWEN) -> float:
    return float(_curve(tables, table, method, model).mean())


def _averages(tables: Tables, table: str) -> pd.Series:
    rows = [row for _, row in tables.rows(table).iterrows()]
    return pd.Series([curve(row).mean() for row in rows], index=[name_row(row) for row in rows])


def _first_on_backbone(tables: Tables) -> Parts:
    for table in _MAIN:
        ours = _average(tables, table)
        others = _averages(tables, table).filter(like=QWEN).drop(OURS)
        if others.empty:
            raise MissingRow(f"{table} has no other {QWEN} row")
        best = others.idxmax().removeprefix(QWEN).strip()
        yield ours > others.max(), f"{table}: {ours:.2f} against {others.max():.2f} ({best})"
    yield True, "on average, not at every turn"


def _beats(tables: Tables, *models: str) -> Parts:
    for table, model in itertools.product(_MAIN, models):
        ours, theirs = _average(tables, table), _average(tables, table, "Self-Critic", model)
        yield ours > theirs, f"{table}: {ours:.2f} against {theirs:.2f} ({model})"


def _near_gpt4o(tables: Tables) -> Parts:
    for table in _MAIN:
        users = infer_users(tables.rows(table))
        pair = _curve(tables, table), _curve(tables, table, "Self-Critic", "GPT-4o")
        gap = float(pair[0].mean() - pair[1].mean())
        # Independent turns give the narrowest error: a gap inside it is chance whatever the correlation.
        half = 1.96 * math.hypot(*(average_error(levels, users, 0.0) for levels in pair))
        yield abs(gap) <= half, f"{table}: {gap:+.2f}, chance allows at least {half:.2f}"


def _rank(tables: Tables, table: str, values: ArrayLike) -> tuple[int, str]:
    """RLPA's rank by a value of each row of a table, and the evidence in words."""
    series = pd.Series(np.asarray(values), index=_averages(tables, table).index)
    if OURS not in series:
        raise MissingRow(f"no row {OURS}")
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
    tables.row("table4", QWEN, "RLPA")
    rank, text = _rank(tables, "table4", tables.rows("table4")[column])
    yield rank == 1, text


def _gain(tables: Tables, method: str, stated: float) -> Parts:
    ours, theirs = tables.row("table4", QWEN, "RLPA"), tables.row("table4", QWEN, method)
    gain, printed = float(curve(ours).mean() - curve(theirs).mean()), float(ours["avg"] - theirs["avg"])
    yield abs(gain - stated) < 0.02, f"from the turns {gain:.2f}, from the printed averages {printed:.2f}"


def _gain_extended(tables: Tables) -> Parts:
    ours = _average(tables, "table5")
    gains = {method: ours - _average(tables, "table5", method) for method in ("SFT", "DPO")}
    yield min(gains.values()) > 28, ", ".join(f"{gain:.2f} over {method}" for method, gain in gains.items())


def _gpt_r2(tables: Tables) -> Parts:
    large, small = (tables.row("table4", model, "Self-Critic")["n_r2"] for model in ("GPT-4o", "GPT-4o-mini"))
    yield (large, small) == (0.38, 0.5), f"table 4 prints {large:.3f}, {small:.3f}"
    note = "a curve that is already at 92 % by turn 4 has a low N-R² by its shape"
    yield True, f"{note}, so this says little about coherence"


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
        yield bool(3 <= al.argmax() <= 5 and al[-1] < al.max()), text


def _rises(tables: Tables) -> Parts:
    al = _curve(tables, "table5")
    falls = ", ".join(f"{a:.2f} to {b:.2f}" for a, b in zip(al, al[1:], strict=False) if b < a) or "none"
    yield bool(al[-1] > al[0]), f"{al[0]:.2f} at turn 1, {al[-1]:.2f} at turn 10; falls on the way: {falls}"


def _average_is(tables: Tables, method: str, stated: float) -> Parts:
    value = _average(tables, "table2", method)
    yield abs(value - stated) < 0.011, f"mean of the ten turns {value:.2f}"


def _ablation_drop(tables: Tables) -> Parts:
    users, ours = infer_users(tables.rows("table2")), _curve(tables, "table2")
    for method, note in (("RLPA w/ PR", ""), ("RLPA w/ RR", " (by how a user's turns correlate)")):
        other = _curve(tables, "table2", method)
        errors = [[average_error(al, users, corr) for al in (ours, other)] for corr in (0.0, 1.0)]
        low, high = (1.96 * math.hypot(*pair) for pair in errors)
        drop = float(ours.mean() - other.mean())
        yield drop > 0, f"{method} {drop:.2f} lower, chance allows {low:.2f} to {high:.2f}{note}"


def _ablation_first(tables: Tables) -> Parts:
    ours, ablated = (float(_curve(tables, "table2", method)[0]) for method in ("RLPA", "RLPA w/ RR"))
    gap = f"a gap of {(ours - ablated) * STATED_USERS / 100:.1f} users of 74"
    yield ablated == 58.92 and ablated < ours, f"{ablated:.2f} against {ours:.2f}: {gap}"


def _ablation_falls(tables: Tables) -> Parts:
    curves = [_curve(tables, "table2", method) for method in ("RLPA", "RLPA w/ RR")]
    ours, ablated = (int((np.diff(al) < 0).sum()) for al in curves)
    yield ablated > ours, f"falls between turns: RR {ablated}, RLPA {ours} of 9"


def _users_extended(tables: Tables) -> Parts:
    rows = tables.rows("table5")
    if rows.empty:
        raise MissingRow("turnwise.csv has no rows of table5")
    users, off = infer_users(rows), int((~on_grid(rows[list(TURNS)].to_numpy(float), STATED_USERS)).sum())
    cells = f"{off} of {10 * len(rows)} are no whole number of {STATED_USERS}"
    yield users == STATED_USERS, f"table 5's percentages fit {users} users; {cells}"


def _user_model(tables: Tables, column: str, stated: float) -> Parts:
    value, top = float(tables.row("table6", "DeepSeek-V3")[column]), tables.rows("table6")[column].max()
    yield value == stated == top, f"table 6 prints {value:.2f}; highest {top:.2f}"


def _judge_quality(tables: Tables) -> Parts:
    accuracy, kappa = tables.rows("table10").iloc[0][["accuracy", "cohens_kappa"]]
    yield bool(accuracy == 0.87 and kappa == 0.74), f"table 10: {accuracy:.3f}, {kappa:.3f}"


# place: key, our paraphrase, stated value or order, check and what it is told
TABLE_CLAIMS = {
    "abstract": (
        ("beats-backbone", "RLPA beats all prompting and offline methods", "RLPA first on its backbone",
         _first_on_backbone),
        ("beats-gpt4o", "RLPA surpasses GPT-4o", "RLPA > GPT-4o", _beats, "GPT-4o"),
        ("beats-claude", "RLPA surpasses Claude-3.5", "RLPA > Claude-3.5", _beats,
         "Claude-3.5-Sonnet", "Claude-3.5-Haiku"),
    ),
    "section 1": (
        ("beats-deepseek", "RLPA surpasses DeepSeek-V3", "RLPA > DeepSeek-V3", _beats, "DeepSeek-V3"),
        ("on-par-gpt4o", "RLPA is on par with GPT-4o", "difference within chance", _near_gpt4o),
    ),
    "section 4.2": (
        ("best-avg-both", "RLPA has the highest average in both settings", "rank 1, 1", _ranks_first),
        ("best-n-r2", "Vanilla: best N-R² of all models", "0.855", _best_printed, "n_r2"),
        ("best-n-ir", "Vanilla: best N-IR of all models", "0.090", _best_printed, "n_ir"),
        ("gain-sft", "Vanilla: RLPA is 29.06 above SFT", "29.06", _gain, "SFT", 29.06),
        ("gain-dpo", "Vanilla: RLPA is 28.11 above DPO", "28.11", _gain, "DPO", 28.11),
        ("gain-extended", "Extended: more than 28 points above SFT and DPO", "> 28", _gain_extended),
        ("gpt4o-r2", "Vanilla: N-R² of GPT-4o and GPT-4o-mini are 0.380 and 0.500", "0.380, 0.500", _gpt_r2),
        ("leads-extended", "Extended: RLPA leads in all three metrics", "rank 1, 1, 1", _leads_extended),
    ),
    "section 4.2, fig. 3": (
        ("peak-5", "Extended: SFT and DPO peak around turn 5 and fall later", "turn 5", _peaks),
        ("rising", "Extended: RLPA rises over the ten turns", "rising", _rises),
    ),
    "section 5.1": (
        ("ablation-pr", "Profile reward alone averages 45.54", "45.54", _average_is, "RLPA w/ PR", 45.54),
        ("ablation-rr", "Response reward alone averages 66.19", "66.19", _average_is, "RLPA w/ RR", 66.19),
        ("ablation-drop", "Removing either reward lowers the average substantially", "RLPA above both",
         _ablation_drop),
        ("ablation-first", "Response reward alone starts lower, 58.92", "58.92 < RLPA", _ablation_first),
        ("ablation-unstable", "Response reward alone is unstable in later turns", "more falls than RLPA",
         _ablation_falls),
    ),
    "appendix C.2": (("users-extended", "74 personas sampled for Extended", "74", _users_extended),),
    "appendix G": (
        ("user-model-score", "DeepSeek-V3 simulates users best, averaging 4.23", "4.23",
         _user_model, "all_avg", 4.23),
        ("user-model-kappa", "DeepSeek-V3 has the highest kappa, 0.81", "0.81", _user_model, "kappa", 0.81),
    ),
    "appendix H.2": (
        ("judge-quality", "Response judge: accuracy 87 %, kappa 0.74", "0.87, 0.74", _judge_quality),
    ),
}  # fmt: skip
