"""Arithmetic of tables 6-10 (appendices G and H) and the ranges that every printed number must respect."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from rlpa_lib.audit.checks import on_grid
from rlpa_lib.evaluation.metrics import classification_metrics
from rlpa_lib.evaluation.paper_tables import SETTINGS, TURNS, Finding, Tables, label

RATED_CASES = 30  # appendix G: 3 annotators x 10 personas
JUDGED_CASES = 300  # appendices H.1 and H.2
LARGEST_ERROR = 10  # a profile has ten slots
_DIMENSIONS = ("coherence", "stability", "proactivity", "persona_fit")
_TIE = 1e-9
_RANGES = {
    "table1": {f"{s}_{c}": r for s in ("vanilla", "extended") for c, r in (("avg", (0, 100)), ("n_ir", (-1, 1)), ("n_r2", (0, 1)))},
    "turnwise": {**dict.fromkeys((*TURNS, "avg"), (0, 100)), "n_ir": (-1, 1), "n_r2": (0, 1)},
    "table6": {**dict.fromkeys((*_DIMENSIONS, "all_avg"), (1, 5)), "kappa": (-1, 1)},
    "table7": {**dict.fromkeys(("total", "same", "different", "uncertain"), (0, math.inf)), "accuracy_pct": (0, 100)},
    "table8": {"exact_acc": (0, 100), "fuzzy_acc": (0, 100), "mse": (0, LARGEST_ERROR**2), "rmse": (0, LARGEST_ERROR)},
    "table9": dict.fromkeys(("human_1", "human_0"), (0, math.inf)),
    "table10": {**dict.fromkeys(("accuracy", "precision", "recall", "f1", "specificity"), (0, 1)), "cohens_kappa": (-1, 1)},
}
_COUNTS = {("table7", c) for c in ("total", "same", "different", "uncertain")} | {("table9", c) for c in ("human_1", "human_0")}


def check_ranges(tables: Tables) -> Iterator[Finding]:
    """Numbers outside what they can be: percentages, kappas, ratings, and counts that are not whole."""
    for name, columns in _RANGES.items():
        for _, row in tables.numbers[name].iterrows():
            for column, (low, high) in columns.items():
                value = float(row[column])
                whole = (name, column) not in _COUNTS or value == round(value) if not math.isnan(value) else True
                if value < low or value > high or not whole:
                    table = row["table"] if name == "turnwise" else name
                    yield Finding(table, label(row), column, "range", value, None, True, f"must lie in {low}..{high}, counts must be whole")
    for _, row in tables.numbers["turnwise"].iterrows():
        if row["table"] not in SETTINGS:
            yield Finding("turnwise", label(row), "table", "label", row["table"], None, False, "must be table2, table4 or table5")


def check_table6(tables: Tables) -> Iterator[Finding]:
    """Ratings are averages of 30 whole marks, and All is their mean (appendix G)."""
    for index, row in tables.rows("table6").iterrows():
        ratings = row[list(_DIMENSIONS)].to_numpy(dtype=float)
        # A rating is a share of 30 marks, so the percentage test applies to it unchanged.
        fits = on_grid(ratings, RATED_CASES * 100)
        for column, value in zip(np.array(_DIMENSIONS)[~fits], ratings[~fits], strict=True):
            nearest = round(round(value * RATED_CASES) / RATED_CASES, 2)
            yield Finding("table6", label(row), str(column), "granularity", float(value), nearest, False, f"no mean of {RATED_CASES} whole ratings")
        exact = np.where(fits, np.round(ratings * RATED_CASES) / RATED_CASES, ratings)
        slack = _TIE if fits.all() else 0.005
        if abs(row["all_avg"] - exact.mean()) > 0.5 * 10.0 ** -tables.decimals("table6", index, "all_avg", 2) + slack:
            note = "mean of the four dimensions"
            yield Finding("table6", label(row), "all_avg", "average", row["all_avg"], round(float(exact.mean()), 3), True, note)


def check_table7(tables: Tables) -> Iterator[Finding]:
    """Row sums, accuracies of both labels and overall, and the total of 300 pairs (appendix H.1)."""
    rows = tables.rows("table7")
    right, total = 0.0, 0.0
    for index, row in rows.iterrows():
        name = row["system_label"]
        if name not in ("same", "different", "overall"):
            yield Finding("table7", label(row), "system_label", "label", name, None, False, "must be same, different or overall")
            continue
        if name == "overall":
            yield from _sum("table7", row, "total", row["total"], total, "sum of the two labels above")
            yield from _sum("table7", row, "total", row["total"], JUDGED_CASES, "appendix H.1 names this number of pairs")
            accuracy = 100 * right / total if total else math.nan
        else:
            counted = row["same"] + row["different"] + row["uncertain"]
            yield from _sum("table7", row, "total", row["total"], counted, "sum of the three judgements")
            right, total = right + row[name], total + row["total"]
            accuracy = 100 * row[name] / row["total"] if row["total"] else math.nan
        digits = tables.decimals("table7", index, "accuracy_pct", 1)
        if not abs(row["accuracy_pct"] - accuracy) <= 0.5 * 10.0**-digits + _TIE:
            note = "share of pairs on which the vote agrees with the system label"
            yield Finding("table7", label(row), "accuracy_pct", "ratio", row["accuracy_pct"], round(accuracy, 2), False, note)


def check_table8(tables: Tables) -> Iterator[Finding]:
    """RMSE against MSE; MSE against what exact and fuzzy accuracy leave room for (appendix H.1)."""
    rows = tables.rows("table8")
    cases = infer_cases(rows)
    for index, row in rows.iterrows():
        half = 0.5 * 10.0 ** -tables.decimals("table8", index, "mse", 2)
        # Squared errors add up to a whole number, so few values of the MSE can stand behind the printed one.
        sums = range(max(math.ceil((row["mse"] - half) * cases - _TIE), 0), math.floor((row["mse"] + half) * cases + _TIE) + 1)
        low, high = ((sums[0] / cases) ** 0.5, (sums[-1] / cases) ** 0.5) if sums else (max(row["mse"], 0.0) ** 0.5,) * 2
        slack = 0.5 * 10.0 ** -tables.decimals("table8", index, "rmse", 2) + _TIE
        if not low - slack <= row["rmse"] <= high + slack:
            note = "square root of the printed MSE"
            yield Finding("table8", label(row), "rmse", "ratio", row["rmse"], round(max(row["mse"], 0.0) ** 0.5, 3), False, note)
        for column in ("exact_acc", "fuzzy_acc"):
            if not on_grid(np.array(row[column]), cases, 1):
                note = f"no share of {cases} cases, which fit the other rows"
                yield Finding("table8", label(row), column, "granularity", row[column], None, False, note)
        low, high = mse_bounds(row["exact_acc"], row["fuzzy_acc"])
        if row["exact_acc"] > row["fuzzy_acc"] or not low - half - _TIE <= row["mse"] <= high + half:
            text = f"{low:.2f} to {high:.2f}"
            yield Finding("table8", label(row), "mse", "bounds", row["mse"], text, True, "bounds that exact and fuzzy accuracy put on the MSE")
        elif not can_give_mse(row["exact_acc"], row["fuzzy_acc"], row["mse"], cases, half):
            note = f"no set of whole errors over {cases} cases gives this MSE with these accuracies"
            yield Finding("table8", label(row), "mse", "granularity", row["mse"], None, False, note)


def check_tables9_10(tables: Tables) -> Iterator[Finding]:
    """300 cases in table 9, and every metric of table 10 from them (appendix H.2)."""
    counts = tables.rows("table9").set_index("model_label")[["human_1", "human_0"]]
    if sorted(counts.index) != ["0", "1"]:
        yield Finding("table9", "all rows", "model_label", "label", ", ".join(counts.index), "1, 0", False, "needs one row for each label")
        return
    if counts.to_numpy().min() < 0 or counts.to_numpy().sum() == 0:
        return  # reported as a range finding; no metric is defined
    total = float(counts.to_numpy().sum())
    if total != JUDGED_CASES:
        yield Finding("table9", "all rows", "human_1, human_0", "sum", JUDGED_CASES, total, False, "appendix H.2 names this number of cases")
    metrics = classification_metrics(*counts.loc["1"], *counts.loc["0"])
    for index, row in tables.rows("table10").iterrows():
        for column, value in metrics.items():
            digits = tables.decimals("table10", index, column, 2)
            if not abs(row[column] - value) <= 0.5 * 10.0**-digits + _TIE:
                yield Finding("table10", "only row", column, "ratio", row[column], round(value, 4), True, "from the confusion table, table 9")


def infer_cases(rows: pd.DataFrame) -> int:
    """Number of test cases behind table 8, which the paper does not print: the smallest that fits four fifths of the accuracies."""
    values = rows[["exact_acc", "fuzzy_acc"]].to_numpy(dtype=float)
    fits = {cases: float(on_grid(values, cases, 1).mean()) for cases in range(10, 401)}
    # Not the best fit: twice the cases would swallow a single slip.
    return next((cases for cases, share in fits.items() if share >= 0.8), max(fits, key=fits.__getitem__))


def mse_bounds(exact_acc: float, fuzzy_acc: float) -> tuple[float, float]:
    """Least and largest MSE that exact and fuzzy accuracy (percent) allow, when errors beyond fuzzy are 2 to 10."""
    one, more = (fuzzy_acc - exact_acc) / 100, 1 - fuzzy_acc / 100
    return one + 4 * more, one + LARGEST_ERROR**2 * more


def can_give_mse(exact_acc: float, fuzzy_acc: float, mse: float, cases: int, half: float) -> bool:
    """Whether some whole errors over `cases` cases give accuracies and MSE (within `half` of a unit) at once."""
    ones, more = round((fuzzy_acc - exact_acc) * cases / 100), round((100 - fuzzy_acc) * cases / 100)
    base, top = ones + 4 * more, math.floor((mse + half) * cases + _TIE)
    # Fewest errors beyond 2 that add each possible surplus over `base`: coin change with the surpluses d^2 - 4.
    fewest = [0] + [math.inf] * max(top - base, 0)
    for surplus in range(1, len(fewest)):
        coins = [d * d - 4 for d in range(3, LARGEST_ERROR + 1) if d * d - 4 <= surplus]
        fewest[surplus] = min((fewest[surplus - coin] + 1 for coin in coins), default=math.inf)
    wanted = range(max(math.ceil((mse - half) * cases - _TIE) - base, 0), top - base + 1)
    return any(fewest[surplus] <= more for surplus in wanted)


def _sum(table: str, row: pd.Series, column: str, printed: float, recomputed: float, note: str) -> Iterator[Finding]:
    if not abs(printed - recomputed) <= _TIE:
        yield Finding(table, label(row), column, "sum", float(printed), float(recomputed), False, note)
