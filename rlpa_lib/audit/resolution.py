"""What the printed numbers can carry: one common reading of eq. 8, intervals, resolvable differences, turn 1, what F1 pays for guesses.

Per-user scores are not published, so comparisons here are unpaired, and the correlation of a user's turns is unknown: AVG gets two
standard errors, for independent turns (correlation 0, least) and for turns that all pass or fail together (1, most).
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from scipy import stats

from rlpa_lib.audit.checks import READINGS, find_users, recover_curve, infer_reading, infer_row_users, infer_users
from rlpa_lib.evaluation.intervals import adjust_holm, binomial_interval
from rlpa_lib.evaluation.metrics import normalized_improvement
from rlpa_lib.evaluation.paper_tables import SETTINGS, TURNS, MissingRow, Tables, curve, strip_date


def tabulate_users(tables: Tables) -> pd.DataFrame:
    """Row by row, the numbers of users up to 150 for which all ten percentages are whole users, and the number used further on."""
    records = []
    for table in SETTINGS:
        users = infer_users(tables.rows(table))
        for _, row in tables.rows(table).iterrows():
            fitting = ", ".join(map(str, find_users(curve(row)))) or "none"
            records.append({**_names(table, row), "users that fit": fitting, "used here": infer_row_users(curve(row), users)})
    return pd.DataFrame(records)


def tabulate_readings(tables: Tables) -> pd.DataFrame:
    """N-IR and N-R² of every row as printed and recomputed under both readings, the reading its table used, and ranks within table and reading."""
    records = []
    for table in SETTINGS:
        rows = tables.rows(table)
        used = infer_reading(rows)
        for _, row in rows.iterrows():
            record = {**_names(table, row), "table's reading": used, "n_ir printed": row["n_ir"], "n_r2 printed": row["n_r2"]}
            for norm in READINGS:
                record[f"n_ir {norm}"], record[f"n_r2 {norm}"] = normalized_improvement(curve(row), norm)
            records.append(record)
    frame = pd.DataFrame(records)
    for column in [f"{score} {norm}" for norm in ("printed", *READINGS) for score in ("n_ir", "n_r2")]:
        # Rounding first: rows that print alike share a rank.
        frame[f"rank {column}"] = frame[column].round(3).groupby(frame["table"]).rank(ascending=False, method="min").astype(int)
    return frame


def turn_intervals(tables: Tables, table: str, level: float = 0.95) -> pd.DataFrame:
    """Exact binomial interval of each printed AL(k), in percent, long form; rows whose marks are no whole users are left out."""
    users = infer_users(tables.rows(table))
    records = []
    for _, row in tables.rows(table).iterrows():
        if infer_row_users(curve(row), users) != users:
            continue
        counts = np.round(curve(row) * users / 100)
        low, high = binomial_interval(counts, users, level)
        for k, values in enumerate(zip(curve(row), 100 * low, 100 * high, strict=True), start=1):
            records.append({**_names(table, row), "k": k, **dict(zip(("al", "low", "high"), values, strict=True))})
    return pd.DataFrame(records)


def average_error(percent_K: np.ndarray, users: int, correlation: float) -> float:
    """Standard error of AVG in points, from AL(k) (K,) in percent, for 0/1 scores whose turns correlate alike within a user."""
    # A cell beyond 0..100 is a finding of its own and has no binomial spread.
    percent_K = np.clip(percent_K, 0.0, 100.0)
    spread_K = np.sqrt(percent_K * (100 - percent_K))
    between = spread_K.sum() ** 2 - (spread_K**2).sum()
    return float(np.sqrt(((spread_K**2).sum() + correlation * between) / users) / len(spread_K))


def tabulate_averages(tables: Tables, table: str, first_turn: int = 1, level: float = 0.95) -> pd.DataFrame:
    """AVG over turns first_turn..K per row with its narrowest and widest interval (within-user correlation 0 and 1), in percent."""
    users, z = infer_users(tables.rows(table)), stats.norm.ppf((1 + level) / 2)
    records = []
    for _, row in tables.rows(table).iterrows():
        levels = recover_curve(curve(row), users)[0][first_turn - 1 :]
        record = {**_names(table, row), "avg": levels.mean()}
        for name, correlation in (("narrow", 0.0), ("wide", 1.0)):
            half = z * average_error(levels, users, correlation)
            record[f"{name} low"], record[f"{name} high"] = max(levels.mean() - half, 0.0), min(levels.mean() + half, 100.0)
        records.append(record)
    frame = pd.DataFrame(records)
    frame["rank"] = frame["avg"].rank(ascending=False, method="min").astype(int)
    return frame


def compare_pairs(tables: Tables, table: str, first_turn: int = 1, alpha: float = 0.05, power: float = 0.8) -> pd.DataFrame:
    """Every pair of rows: difference of AVG, Holm-adjusted p under both correlations, a verdict, and the users each would need (unpaired).

    Verdict: "beyond chance" if significant even with correlation 1, "within chance" if not even with 0, else "depends on correlation".
    Users needed are per row, two-sided `alpha` without correction, at `power`. Variation between training seeds is not in the tables.
    """
    rows, users = tables.rows(table), infer_users(tables.rows(table))
    curves = [(f"{strip_date(r['model'])} {r['method']}", recover_curve(curve(r), users)[0][first_turn - 1 :]) for _, r in rows.iterrows()]
    quantiles = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)
    records = []
    for (name_a, a), (name_b, b) in itertools.combinations(curves, 2):
        gap = a.mean() - b.mean()
        record = {"table": table, "a": name_a, "b": name_b, "difference": gap}
        for name, correlation in (("corr 0", 0.0), ("corr 1", 1.0)):
            error = float(np.hypot(average_error(a, users, correlation), average_error(b, users, correlation)))
            record[f"p {name}"] = 2 * stats.norm.sf(abs(gap) / error) if error else float(gap == 0)
            record[f"users needed {name}"] = np.ceil(users * (quantiles * error / gap) ** 2) if gap else np.inf
        records.append(record)
    frame = pd.DataFrame(records)
    for name in ("corr 0", "corr 1"):
        frame[f"p {name}"] = adjust_holm(frame[f"p {name}"])
    resolved = [frame["p corr 1"] < alpha, frame["p corr 0"] >= alpha]
    frame["verdict"] = np.select(resolved, ["beyond chance", "within chance"], "depends on correlation")
    return frame


def compare_turns(tables: Tables, table: str, method: str = "RLPA", model: str = "Qwen2.5-3B-Instruct") -> pd.DataFrame:
    """One row of a table against each other one, turn by turn: Fisher's exact test, Holm over the ten turns; signs where p < .05.

    "+" the named row is higher, "-" lower, "." within chance. MissingRow if the named row is absent.
    """
    users = infer_users(tables.rows(table))
    ours = np.round(curve(tables.row(table, model, method)) * users / 100).astype(int)
    records = []
    for _, row in tables.rows(table).iterrows():
        theirs = np.round(curve(row) * users / 100).astype(int)
        if (row["model"], row["method"]) == (model, method) or infer_row_users(curve(row), users) != users:
            continue
        p = adjust_holm([stats.fisher_exact([[x, users - x], [y, users - y]]).pvalue for x, y in zip(ours, theirs, strict=True)])
        signs = np.where(p >= 0.05, ".", np.where(ours > theirs, "+", "-"))
        records.append({**_names(table, row), **dict(zip(TURNS, signs, strict=True))})
    return pd.DataFrame(records)


def guess_gain(n_found: int, n_listed: int, n_true: int, chance: float) -> float:
    """Expected change of F1 (eq. 3) when one more slot is guessed, right with probability `chance`.

    F1 = 2 * found / (listed + true), so a guess pays exactly when its chance exceeds half of the present F1.
    """
    return 2 * (n_found + chance) / (n_listed + 1 + n_true) - 2 * n_found / (n_listed + n_true)


def compare_first_turn(tables: Tables, table: str) -> tuple[float, float]:
    """AL(1) of RLPA and the highest AL(1) of any other row, in percent: nothing about the user has been said yet. MissingRow without RLPA."""
    ours = tables.row(table, "Qwen2.5-3B-Instruct", "RLPA")
    others = tables.rows(table).query("method != 'RLPA'")
    if others.empty:
        raise MissingRow(f"{table} has no row beside RLPA")
    return float(ours["k1"]), float(others["k1"].max())


def _names(table: str, row: pd.Series) -> dict[str, str]:
    return {"table": table, "model": strip_date(row["model"]), "method": row["method"]}
