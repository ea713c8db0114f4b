"""What printed percentages tell: the users behind them, the reading of eq. 8, intervals, differences.

Per-user scores are not published, so comparisons are unpaired, and how a user's turns correlate is unknown:
AVG gets two standard errors, for independent turns (correlation 0, the least) and for turns that all pass or
fail together (1, the most).
"""

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats

from rlpa_lib.evaluation.intervals import adjust_holm, binomial_interval
from rlpa_lib.evaluation.metrics import normalized_improvement
from rlpa_lib.evaluation.paper_tables import SETTINGS, TURNS, Tables, curve, strip_date

STATED_USERS = 74  # appendix C.2, both settings
READINGS = ("global", "running")
QWEN = "Qwen2.5-3B-Instruct"
OFF_FOR_ROW = 3  # so many cells off the table's grid concern the row, fewer are slips of single cells
TIE = 1e-9
_CANDIDATE_USERS = range(5, 151)


def on_grid(percent: np.ndarray, users: int, decimals: int = 2) -> np.ndarray:
    """GRIM test: which percentages, rounded to `decimals`, are a whole number of `users`; booleans."""
    exact = 100 * np.round(np.asarray(percent) * users / 100) / users
    return np.abs(percent - exact) <= 0.5 * 10.0**-decimals + TIE


def find_users(percent: np.ndarray, candidates: range = _CANDIDATE_USERS) -> list[int]:
    """All numbers of users for which every percentage of a row passes the GRIM test."""
    return [users for users in candidates if on_grid(percent, users).all()]


def infer_users(rows: pd.DataFrame) -> int:
    """The number of users that fits most cells of a table; the stated 74 wins ties, then the smallest."""
    values = rows[list(TURNS)].to_numpy(dtype=float)
    fits = {users: int(on_grid(values, users).sum()) for users in (STATED_USERS, *_CANDIDATE_USERS)}
    return max(fits, key=fits.__getitem__)


def infer_row_users(percent: np.ndarray, users: int) -> int:
    """`users` of the table, or for a row that does not fit them their smallest multiple (to 10) that fits."""
    if (~on_grid(percent, users)).sum() < OFF_FOR_ROW:
        return users
    multiples = [users * m for m in range(2, 11)]
    fits = [on_grid(percent, multiple).mean() for multiple in multiples]
    return multiples[int(np.argmax(fits))] if max(fits) >= 0.8 else users


def recover_curve(percent: np.ndarray, users: int) -> tuple[np.ndarray, bool]:
    """The row in unrounded percent if its cells are whole users, else as printed; and whether they are."""
    grid = infer_row_users(percent, users)
    if on_grid(percent, grid).all():
        return 100 * np.round(percent * grid / 100) / grid, True
    return percent, False


def match_improvement(row: pd.Series, users: int, norm: str) -> list[str]:
    """Which of a row's printed N-IR and N-R² follow from its turns under a reading of eq. 8."""
    # The paper's cells follow to the digit from the rounded turns; the users behind them count as well.
    sources = [normalized_improvement(al, norm) for al in (curve(row), recover_curve(curve(row), users)[0])]
    pairs = zip(("n_ir", "n_r2"), zip(*sources, strict=True), strict=True)
    return [name for name, values in pairs if any(abs(row[name] - value) <= 0.0005 + TIE for value in values)]


def infer_reading(rows: pd.DataFrame) -> str:
    """Which reading of eq. 8 reproduces more of a table's printed N-IR and N-R² cells."""
    users, lines = infer_users(rows), [row for _, row in rows.iterrows()]
    return max(READINGS, key=lambda norm: sum(len(match_improvement(row, users, norm)) for row in lines))


def name_rows(rows: pd.DataFrame) -> pd.Series:
    """Each row by its model, without the release date, and its method."""
    return rows["model"].map(strip_date) + " " + rows["method"]


def tabulate_users(tables: Tables) -> pd.DataFrame:
    """Row by row, the numbers of users that all ten percentages fit (to 150), and the one used here."""
    return pd.DataFrame([
        {**labels, "users that fit": ", ".join(map(str, find_users(al_K))) or "none",
         "used here": infer_row_users(al_K, users)}
        for labels, _, al_K, users in _list_rows(tables, *SETTINGS)
    ])  # fmt: skip


def tabulate_readings(tables: Tables) -> pd.DataFrame:
    """N-IR and N-R² of every row as printed and under both readings, and their ranks within the table."""
    used = {table: infer_reading(tables.rows(table)) for table in SETTINGS}
    records = []
    for labels, row, al_K, _ in _list_rows(tables, *SETTINGS):
        record = {**labels, "table's reading": used[labels["table"]]}
        record |= {"n_ir printed": row["n_ir"], "n_r2 printed": row["n_r2"]}
        for norm in READINGS:
            record[f"n_ir {norm}"], record[f"n_r2 {norm}"] = normalized_improvement(al_K, norm)
        records.append(record)
    frame = pd.DataFrame(records)
    for column in [f"{score} {name}" for name in ("printed", *READINGS) for score in ("n_ir", "n_r2")]:
        # Rounding first: rows that print alike share a rank.
        ranks = frame[column].round(3).groupby(frame["table"]).rank(ascending=False, method="min")
        frame[f"rank {column}"] = ranks.astype(int)
    return frame


def turn_intervals(tables: Tables, table: str) -> pd.DataFrame:
    """Exact binomial 95 % interval of each printed AL(k), percent, long form, without rows off the grid."""
    records = []
    for labels, _, al_K, users in _list_rows(tables, table):
        if infer_row_users(al_K, users) == users:
            low_K, high_K = binomial_interval(np.round(al_K * users / 100), users)
            for k, (al, low, high) in enumerate(zip(al_K, 100 * low_K, 100 * high_K, strict=True), start=1):
                records.append({**labels, "k": k, "al": al, "low": low, "high": high})
    return pd.DataFrame(records)


def average_error(percent_K: np.ndarray, users: int, correlation: float) -> float:
    """Standard error of AVG in points from AL(k) (K,) in percent; all turns of a user correlate alike."""
    # A cell beyond 0..100 is a finding of its own and has no binomial spread.
    percent_K = np.clip(percent_K, 0.0, 100.0)
    spread_K = np.sqrt(percent_K * (100 - percent_K))
    between = spread_K.sum() ** 2 - (spread_K**2).sum()
    return float(np.sqrt(((spread_K**2).sum() + correlation * between) / users) / len(spread_K))


def tabulate_averages(tables: Tables, table: str, first_turn: int = 1) -> pd.DataFrame:
    """AVG (percent) over turns first_turn..K per row; 95 % intervals for correlation 0 (narrow), 1 (wide)."""
    records = []
    for labels, _, al_K, users in _list_rows(tables, table):
        levels = recover_curve(al_K, users)[0][first_turn - 1 :]
        record = {**labels, "avg": levels.mean()}
        for name, correlation in (("narrow", 0.0), ("wide", 1.0)):
            half = stats.norm.ppf(0.975) * average_error(levels, users, correlation)
            record[f"{name} low"] = max(levels.mean() - half, 0.0)
            record[f"{name} high"] = min(levels.mean() + half, 100.0)
        records.append(record)
    frame = pd.DataFrame(records)
    return frame.assign(rank=frame["avg"].rank(ascending=False, method="min").astype(int))


def compare_pairs(tables: Tables, table: str) -> pd.DataFrame:
    """Every pair of rows: difference of AVG, Holm-adjusted p under both correlations, verdict, users needed.

    "beyond chance": significant (two-sided, 5 %) even with correlation 1; "within chance": not even with 0;
    else "depends on correlation". Users needed: per row, unpaired, without correction, for a power of 80 %.
    Variation between training seeds is not in the tables.
    """
    names, users = name_rows(tables.rows(table)), infer_users(tables.rows(table))
    curves = [recover_curve(al_K, users)[0] for _, _, al_K, _ in _list_rows(tables, table)]
    quantiles = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    records = []
    for (name_a, a), (name_b, b) in itertools.combinations(zip(names, curves, strict=True), 2):
        gap = a.mean() - b.mean()
        record = {"table": table, "a": name_a, "b": name_b, "difference": gap}
        for correlation in (0, 1):
            error = float(np.hypot(*(average_error(one, users, correlation) for one in (a, b))))
            p = 2 * stats.norm.sf(abs(gap) / error) if error else float(gap == 0)
            needed = np.ceil(users * (quantiles * error / gap) ** 2) if gap else np.inf
            record |= {f"p corr {correlation}": p, f"users needed corr {correlation}": needed}
        records.append(record)
    frame = pd.DataFrame(records)
    for name in ("p corr 0", "p corr 1"):
        frame[name] = adjust_holm(frame[name])
    verdicts = {"beyond chance": frame["p corr 1"] < 0.05, "within chance": frame["p corr 0"] >= 0.05}
    return frame.assign(verdict=np.select([*verdicts.values()], [*verdicts], "depends on correlation"))


def compare_turns(tables: Tables, table: str) -> pd.DataFrame:
    """RLPA against each other row, turn by turn: Fisher's exact test, Holm over turns, signs where p < .05.

    "+": RLPA is higher, "-": lower, ".": within chance. MissingRow: there is no RLPA.
    """
    printed_K, records = curve(tables.row(table, QWEN, "RLPA")), []
    for labels, row, al_K, users in _list_rows(tables, table):
        if (row["model"], row["method"]) == (QWEN, "RLPA") or infer_row_users(al_K, users) != users:
            continue
        ours, theirs = (np.round(one * users / 100).astype(int) for one in (printed_K, al_K))
        counts_K = [[[x, users - x], [y, users - y]] for x, y in zip(ours, theirs, strict=True)]
        p_K = adjust_holm([stats.fisher_exact(counts).pvalue for counts in counts_K])
        signs = np.where(p_K >= 0.05, ".", np.where(ours > theirs, "+", "-"))
        records.append({**labels, **dict(zip(TURNS, signs, strict=True))})
    return pd.DataFrame(records)


def guess_gain(n_found: int, n_listed: int, n_true: int, chance: float) -> float:
    """Expected change of F1 (eq. 3) when one more slot is guessed, right with probability `chance`.

    F1 = 2 * found / (listed + true): a guess pays exactly when its chance exceeds half the present F1.
    """
    return 2 * (n_found + chance) / (n_listed + 1 + n_true) - 2 * n_found / (n_listed + n_true)


def _list_rows(tables: Tables, *names: str) -> Iterator[tuple[dict[str, str], pd.Series, np.ndarray, int]]:
    """Of each row of these tables: its labels, the row, its AL(k) in percent, and the users of the table."""
    for table in names:
        users = infer_users(tables.rows(table))
        for _, row in tables.rows(table).iterrows():
            labels = {"table": table, "model": strip_date(row["model"]), "method": row["method"]}
            yield labels, row, curve(row), users
