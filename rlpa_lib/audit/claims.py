"""Claims of the abstract, sections 1-5 and appendices C-I against the paper's own tables: holds, does not hold, cannot be checked.

Claims are worded here in our own words. A verdict is about the printed numbers alone, never about what was done.
Average scores are recomputed from the ten printed turns, so that slips in printed averages do not decide a claim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from rlpa_lib.audit.checks import STATED_USERS, on_grid, infer_users
from rlpa_lib.audit.facts import CHARITABLE, FIGURE_CLAIMS, TEXT_CLAIMS
from rlpa_lib.audit.resolution import average_error
from rlpa_lib.evaluation.metrics import normalized_improvement
from rlpa_lib.evaluation.paper_tables import MissingRow, Tables, curve, strip_date

Verdict = Literal["holds", "does not hold", "cannot be checked"]
Check = Callable[[Tables], tuple[bool | None, str]]
QWEN = "Qwen2.5-3B-Instruct"


@dataclass(frozen=True)
class Claim:
    """One claim: short key, place in the paper, our paraphrase, the value or order it states, verdict, evidence, charitable reading."""

    key: str
    where: str
    text: str
    stated: str
    verdict: Verdict
    evidence: str
    charitable: str


def check_claims(tables: Tables) -> list[Claim]:
    """All claims with verdicts, in the paper's order of kind: against tables, about figures, inside the text."""
    judged = [_judge(tables, *entry) for entry in _table_claims()]
    fixed = [Claim(*entry) for entry in (*FIGURE_CLAIMS, *TEXT_CLAIMS)]
    return [*judged, *fixed]


def to_frame(found: list[Claim]) -> pd.DataFrame:
    """Claims as a table, one row each."""
    return pd.DataFrame([vars(claim) for claim in found])


def _judge(tables: Tables, key: str, where: str, text: str, stated: str, check: Check) -> Claim:
    try:
        holds, evidence = check(tables)
    except MissingRow as error:
        return Claim(key, where, text, stated, "cannot be checked", str(error), "")
    verdict: Verdict = "cannot be checked" if holds is None else "holds" if holds else "does not hold"
    return Claim(key, where, text, stated, verdict, evidence, CHARITABLE.get(key, "") if verdict != "holds" else "")


def _table_claims() -> Iterator[tuple[str, str, str, str, Check]]:
    yield from _headline_claims()
    yield from _section_4_claims()
    yield from _section_5_claims()
    yield from _appendix_claims()


def _headline_claims() -> Iterator[tuple[str, str, str, str, Check]]:
    yield "beats-backbone", "abstract", "RLPA beats all prompting and offline methods", "RLPA first on its backbone", _first_on_backbone
    yield "beats-gpt4o", "abstract", "RLPA surpasses GPT-4o", "RLPA > GPT-4o", lambda t: _beats(t, "GPT-4o")
    yield "beats-claude", "abstract", "RLPA surpasses Claude-3.5", "RLPA > Claude-3.5", lambda t: _beats(t, "Claude-3.5-Sonnet", "Claude-3.5-Haiku")
    yield "beats-deepseek", "section 1", "RLPA surpasses DeepSeek-V3", "RLPA > DeepSeek-V3", lambda t: _beats(t, "DeepSeek-V3")
    yield "on-par-gpt4o", "section 1", "RLPA is on par with GPT-4o", "difference within chance", lambda t: _near(t, "GPT-4o")


def _section_4_claims() -> Iterator[tuple[str, str, str, str, Check]]:
    where = "section 4.2"
    yield "best-avg-both", where, "RLPA has the highest average in both settings", "rank 1, 1", _ranks_first
    yield "best-n-r2", where, "Vanilla: best N-R² of all models", "0.855", lambda t: _best_printed(t, "table4", "n_r2")
    yield "best-n-ir", where, "Vanilla: best N-IR of all models", "0.090", lambda t: _best_printed(t, "table4", "n_ir")
    yield "gain-sft", where, "Vanilla: RLPA is 29.06 above SFT", "29.06", lambda t: _gain(t, "table4", "SFT", 29.06)
    yield "gain-dpo", where, "Vanilla: RLPA is 28.11 above DPO", "28.11", lambda t: _gain(t, "table4", "DPO", 28.11)
    yield "gain-extended", where, "Extended: more than 28 points above SFT and DPO", "> 28", _gain_extended
    yield "gpt4o-r2", where, "Vanilla: N-R² of GPT-4o and GPT-4o-mini are 0.380 and 0.500", "0.380, 0.500", _gpt_r2
    yield "leads-extended", where, "Extended: RLPA leads in all three metrics", "rank 1, 1, 1", _leads_extended
    yield "peak-5", "section 4.2, fig. 3", "Extended: SFT and DPO peak around turn 5 and fall later", "turn 5", _peaks
    yield "rising", "section 4.2, fig. 3", "Extended: RLPA rises over the ten turns", "rising", _rises


def _section_5_claims() -> Iterator[tuple[str, str, str, str, Check]]:
    where = "section 5.1"
    yield "ablation-pr", where, "Profile reward alone averages 45.54", "45.54", lambda t: _average_is(t, "RLPA w/ PR", 45.54)
    yield "ablation-rr", where, "Response reward alone averages 66.19", "66.19", lambda t: _average_is(t, "RLPA w/ RR", 66.19)
    yield "ablation-drop", where, "Removing either reward lowers the average substantially", "RLPA above both", _ablation_drop
    yield "ablation-first", where, "Response reward alone starts lower, 58.92", "58.92 < RLPA", _ablation_first
    yield "ablation-unstable", where, "Response reward alone is unstable in later turns", "more falls than RLPA", _ablation_falls


def _appendix_claims() -> Iterator[tuple[str, str, str, str, Check]]:
    yield "users-extended", "appendix C.2", "74 personas sampled for Extended", "74", _users_extended
    yield "user-model-score", "appendix G", "DeepSeek-V3 simulates users best, averaging 4.23", "4.23", lambda t: _user_model(t, "all_avg", 4.23)
    yield "user-model-kappa", "appendix G", "DeepSeek-V3 has the highest kappa, 0.81", "0.81", lambda t: _user_model(t, "kappa", 0.81)
    yield "judge-quality", "appendix H.2", "Response judge: accuracy 87 %, kappa 0.74", "0.87, 0.74", _judge_quality


def _average(tables: Tables, table: str, model: str, method: str) -> float:
    return float(curve(tables.row(table, model, method)).mean())


def _scores(tables: Tables, table: str) -> pd.Series:
    rows = tables.rows(table)
    names = [f"{strip_date(row['model'])} {row['method']}" for _, row in rows.iterrows()]
    return pd.Series([curve(row).mean() for _, row in rows.iterrows()], index=names)


def _first_on_backbone(tables: Tables) -> tuple[bool, str]:
    parts, holds = [], True
    for table in ("table4", "table5"):
        ours = _average(tables, table, QWEN, "RLPA")
        others = _scores(tables, table).filter(like=QWEN).drop(f"{QWEN} RLPA")
        if others.empty:
            raise MissingRow(f"{table} has no other {QWEN} row")
        holds &= bool(ours > others.max())
        parts.append(f"{table}: {ours:.2f} against {others.max():.2f} ({others.idxmax().removeprefix(QWEN).strip()})")
    return holds, "; ".join(parts) + "; on average, not at every turn"


def _beats(tables: Tables, *models: str) -> tuple[bool, str]:
    parts, holds = [], True
    for table in ("table4", "table5"):
        ours = _average(tables, table, QWEN, "RLPA")
        for model in models:
            theirs = _average(tables, table, model, "Self-Critic")
            holds &= ours > theirs
            parts.append(f"{table}: {ours:.2f} against {theirs:.2f} ({model})")
    return holds, "; ".join(parts)


def _near(tables: Tables, model: str) -> tuple[bool, str]:
    parts, holds = [], True
    for table in ("table4", "table5"):
        users = infer_users(tables.rows(table))
        pair = [curve(tables.row(table, *names)) for names in ((QWEN, "RLPA"), (model, "Self-Critic"))]
        gap = float(pair[0].mean() - pair[1].mean())
        # Independent turns give the narrowest error, so a gap inside it is inside chance whatever the correlation.
        half = 1.96 * math.hypot(*(average_error(levels, users, 0.0) for levels in pair))
        holds &= abs(gap) <= half
        parts.append(f"{table}: {gap:+.2f}, chance allows at least {half:.2f}")
    return holds, "; ".join(parts)


def _rank(values: pd.Series, name: str) -> tuple[int, str]:
    if name not in values:
        raise MissingRow(f"no row {name}")
    rank = int((values > values[name]).sum()) + 1
    return rank, f"rank {rank} ({values[name]:.3g}; highest {values.max():.3g}, {values.idxmax()})"


def _ranks_first(tables: Tables) -> tuple[bool, str]:
    ranks = []
    for table in ("table4", "table5"):
        tables.row(table, QWEN, "RLPA")
        scores = _scores(tables, table)
        above = scores[scores > scores[f"{QWEN} RLPA"]].sort_values(ascending=False)
        ahead = ", ".join(f"{name} {value:.2f}" for name, value in above.items())
        ranks.append((len(above) + 1, f"{table}: rank {len(above) + 1}" + (f" behind {ahead}" if ahead else "")))
    return all(rank == 1 for rank, _ in ranks), "; ".join(text for _, text in ranks)


def _best_printed(tables: Tables, table: str, column: str) -> tuple[bool, str]:
    tables.row(table, QWEN, "RLPA")
    rows = tables.rows(table)
    rank, text = _rank(pd.Series(rows[column].to_numpy(), index=[f"{strip_date(r['model'])} {r['method']}" for _, r in rows.iterrows()]), f"{QWEN} RLPA")
    return rank == 1, text


def _gain(tables: Tables, table: str, method: str, stated: float) -> tuple[bool, str]:
    ours, theirs = tables.row(table, QWEN, "RLPA"), tables.row(table, QWEN, method)
    gain, printed = float(curve(ours).mean() - curve(theirs).mean()), float(ours["avg"] - theirs["avg"])
    return abs(gain - stated) < 0.02, f"from the turns {gain:.2f}, from the printed averages {printed:.2f}"


def _gain_extended(tables: Tables) -> tuple[bool, str]:
    gains = {m: _average(tables, "table5", QWEN, "RLPA") - _average(tables, "table5", QWEN, m) for m in ("SFT", "DPO")}
    return min(gains.values()) > 28, ", ".join(f"{gain:.2f} over {method}" for method, gain in gains.items())


def _gpt_r2(tables: Tables) -> tuple[bool, str]:
    values = [float(tables.row("table4", model, "Self-Critic")["n_r2"]) for model in ("GPT-4o", "GPT-4o-mini")]
    text = "; a curve that is already at 92 % by turn 4 has a low N-R² by its shape, so this says little about coherence"
    return values == [0.38, 0.5], f"table 4 prints {values[0]:.3f}, {values[1]:.3f}{text}"


def _leads_extended(tables: Tables) -> tuple[bool, str]:
    checks = {"average": _ranks_first_in(tables, "table5"), **{c: _best_printed(tables, "table5", c) for c in ("n_ir", "n_r2")}}
    text = "; ".join(f"{name}: {text}" for name, (_, text) in checks.items())
    return all(ok for ok, _ in checks.values()), f"{text}; by table 4's reading {_global_ranks(tables, 'table5')}"


def _global_ranks(tables: Tables, table: str) -> str:
    names = list(_scores(tables, table).index)
    pairs = [normalized_improvement(curve(row), "global") for _, row in tables.rows(table).iterrows()]
    ranks = [_rank(pd.Series([pair[i] for pair in pairs], index=names), f"{QWEN} RLPA")[0] for i in (0, 1)]
    return f"N-IR rank {ranks[0]}, N-R² rank {ranks[1]}"


def _ranks_first_in(tables: Tables, table: str) -> tuple[bool, str]:
    rank, text = _rank(_scores(tables, table), f"{QWEN} RLPA")
    return rank == 1, text


def _peaks(tables: Tables) -> tuple[bool, str]:
    curves = {method: curve(tables.row("table5", QWEN, method)) for method in ("SFT", "DPO")}
    holds = all(3 <= int(al.argmax()) <= 5 and al[-1] < al.max() for al in curves.values())
    return holds, "; ".join(f"{m} peaks at turn {al.argmax() + 1} ({al.max():.2f}) and ends at {al[-1]:.2f}" for m, al in curves.items())


def _rises(tables: Tables) -> tuple[bool, str]:
    al = curve(tables.row("table5", QWEN, "RLPA"))
    falls = [f"{a:.2f} to {b:.2f}" for a, b in zip(al, al[1:], strict=False) if b < a]
    return bool(al[-1] > al[0]), f"{al[0]:.2f} at turn 1, {al[-1]:.2f} at turn 10; falls on the way: {', '.join(falls) or 'none'}"


def _average_is(tables: Tables, method: str, stated: float) -> tuple[bool, str]:
    value = _average(tables, "table2", QWEN, method)
    return abs(value - stated) < 0.011, f"mean of the ten turns {value:.2f}"


def _ablation_drop(tables: Tables) -> tuple[bool, str]:
    users, ours = infer_users(tables.rows("table2")), curve(tables.row("table2", QWEN, "RLPA"))
    drops = []
    for method in ("RLPA w/ PR", "RLPA w/ RR"):
        other = curve(tables.row("table2", QWEN, method))
        halves = [1.96 * math.hypot(*(average_error(al, users, corr) for al in (ours, other))) for corr in (0.0, 1.0)]
        drop = float(ours.mean() - other.mean())
        drops.append((drop, f"{method} {drop:.2f} lower, chance allows {halves[0]:.2f} to {halves[1]:.2f}"))
    return all(drop > 0 for drop, _ in drops), "; ".join(text for _, text in drops) + " (by how a user's turns correlate)"


def _ablation_first(tables: Tables) -> tuple[bool, str]:
    ours, ablated = (float(tables.row("table2", QWEN, m)["k1"]) for m in ("RLPA", "RLPA w/ RR"))
    return ablated == 58.92 and ablated < ours, f"{ablated:.2f} against {ours:.2f}: a gap of {(ours - ablated) * STATED_USERS / 100:.1f} users of 74"


def _ablation_falls(tables: Tables) -> tuple[bool, str]:
    falls = {m: int((pd.Series(curve(tables.row("table2", QWEN, m))).diff() < 0).sum()) for m in ("RLPA", "RLPA w/ RR")}
    return falls["RLPA w/ RR"] > falls["RLPA"], f"falls between turns: RR {falls['RLPA w/ RR']}, RLPA {falls['RLPA']} of 9"


def _users_extended(tables: Tables) -> tuple[bool, str]:
    rows = tables.rows("table5")
    if rows.empty:
        raise MissingRow("turnwise.csv has no rows of table5")
    users = infer_users(rows)
    off = int((~on_grid(rows[[f"k{k}" for k in range(1, 11)]].to_numpy(float), STATED_USERS)).sum())
    return users == STATED_USERS, f"table 5's percentages fit {users} users; {off} of {10 * len(rows)} are no whole number of {STATED_USERS}"


def _user_model(tables: Tables, column: str, stated: float) -> tuple[bool, str]:
    value, top = float(tables.row("table6", "DeepSeek-V3")[column]), tables.rows("table6")[column].max()
    return value == stated == top, f"table 6 prints {value:.2f}; highest {top:.2f}"


def _judge_quality(tables: Tables) -> tuple[bool, str]:
    row = tables.rows("table10").iloc[0]
    return bool(row["accuracy"] == 0.87 and row["cohens_kappa"] == 0.74), f"table 10: {row['accuracy']:.3f}, {row['cohens_kappa']:.3f}"
