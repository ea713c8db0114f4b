"""Arithmetic of tables 6-10 (appendices G and H) and the ranges that every printed number must respect."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from rlpa_lib.audit.resolution import TIE, on_grid
from rlpa_lib.evaluation.agreement_metrics import classification_metrics
from rlpa_lib.evaluation.paper_tables import SETTINGS, TURNS, Finding, Tables, label

RATED_CASES = 30  # appendix G: 3 annotators x 10 personas
JUDGED_CASES = 300  # appendices H.1 and H.2
LARGEST_ERROR = 10  # a profile has ten slots
_DIMENSIONS = ("coherence", "stability", "proactivity", "persona_fit")
_COUNTS = ("total", "same", "different", "uncertain", "human_1", "human_0")
_RANGES = {  # by column, which means the same in every table
    **dict.fromkeys((*TURNS, "avg", "accuracy_pct", "exact_acc", "fuzzy_acc"), (0, 100)),
    **dict.fromkeys((*_DIMENSIONS, "all_avg"), (1, 5)),
    **dict.fromkeys(("n_ir", "kappa", "cohens_kappa"), (-1, 1)),
    **dict.fromkeys(("n_r2", "accuracy", "precision", "recall", "f1", "specificity"), (0, 1)),
    **dict.fromkeys(_COUNTS, (0, math.inf)),
    "mse": (0, LARGEST_ERROR**2),
    "rmse": (0, LARGEST_ERROR),
}


def check_ranges(tables: Tables) -> Iterator[Finding]:
    """Numbers outside what they can be: percentages, kappas, ratings, and counts that are not whole."""
    for name, frame in tables.numbers.items():
        for (_, row), column in ((line, column) for line in frame.iterrows() for column in frame):
            quantity = column.removeprefix("vanilla_").removeprefix("extended_")
            if quantity not in _RANGES or math.isnan(value := float(row[column])):
                continue
            low, high = _RANGES[quantity]
            if not low <= value <= high or (quantity in _COUNTS and value != round(value)):
                table, note = row.get("table", name), f"must lie in {low}..{high}, counts must be whole"
                yield Finding(
                    table, label(row), column, "range", printed=value, changes_claim=True, note=note
                )
    for _, row in tables.numbers["turnwise"].iterrows():
        if row["table"] not in SETTINGS:
            note = "must be table2, table4 or table5"
            yield Finding("turnwise", label(row), "table", "label", printed=row["table"], note=note)


def differs(tables: Tables, source: str, index: int, column: str, value: float, slack: float = TIE) -> bool:
    """Whether a cell of file `source` is not `value` rounded as printed (the CSVs drop trailing zeros)."""
    at_least = 1 if column == "accuracy_pct" else 2
    half = 0.5 * 10.0 ** -tables.decimals(source, index, column, at_least)
    return not abs(tables.numbers[source].at[index, column] - value) <= half + slack


def check_table6(tables: Tables) -> Iterator[Finding]:
    """Ratings are averages of 30 whole marks, and All is their mean (appendix G)."""
    for index, row in tables.rows("table6").iterrows():
        ratings = row[list(_DIMENSIONS)].to_numpy(dtype=float)
        # A rating is a share of 30 marks, so the percentage test applies to it unchanged.
        fits = on_grid(ratings, RATED_CASES * 100)
        for column, value in zip(np.array(_DIMENSIONS)[~fits], ratings[~fits], strict=True):
            nearest = round(round(value * RATED_CASES) / RATED_CASES, 2)
            column, value, note = str(column), float(value), f"no mean of {RATED_CASES} whole ratings"
            yield Finding(
                "table6", label(row), column, "granularity", printed=value, recomputed=nearest, note=note
            )
        mean = np.where(fits, np.round(ratings * RATED_CASES) / RATED_CASES, ratings).mean()
        if differs(tables, "table6", index, "all_avg", mean, TIE if fits.all() else 0.005):
            note, mean = "mean of the four dimensions", round(float(mean), 3)
            yield Finding(
                "table6", label(row), "all_avg", "average", printed=row["all_avg"], recomputed=mean,
                changes_claim=True, note=note,
            )


def check_table7(tables: Tables) -> Iterator[Finding]:
    """Row sums, accuracies of both labels and overall, and the total of 300 pairs (appendix H.1)."""
    right, total = 0.0, 0.0
    for index, row in tables.rows("table7").iterrows():
        name = row["system_label"]
        if name not in ("same", "different", "overall"):
            note = "must be same, different or overall"
            yield Finding("table7", label(row), "system_label", "label", printed=name, note=note)
            continue
        if name == "overall":
            sums = {"sum of the two labels above": total}
            sums["appendix H.1 names this number of pairs"] = JUDGED_CASES
            accuracy = 100 * right / total if total else math.nan
        else:
            sums = {"sum of the three judgements": row["same"] + row["different"] + row["uncertain"]}
            right, total = right + row[name], total + row["total"]
            accuracy = 100 * row[name] / row["total"] if row["total"] else math.nan
        for note, recomputed in sums.items():
            if not abs(row["total"] - recomputed) <= TIE:
                printed = float(row["total"])
                yield Finding(
                    "table7", label(row), "total", "sum", printed=printed, recomputed=float(recomputed),
                    note=note,
                )
        if differs(tables, "table7", index, "accuracy_pct", accuracy):
            printed, accuracy = row["accuracy_pct"], round(accuracy, 2)
            note = "share of pairs on which the vote agrees with the system label"
            yield Finding(
                "table7", label(row), "accuracy_pct", "ratio", printed=printed, recomputed=accuracy, note=note
            )


def check_table8(tables: Tables) -> Iterator[Finding]:
    """RMSE against MSE; MSE against what exact and fuzzy accuracy leave room for (appendix H.1)."""
    cases = infer_cases(tables.rows("table8"))
    for index, row in tables.rows("table8").iterrows():
        exact, fuzzy, mse = row["exact_acc"], row["fuzzy_acc"], row["mse"]
        half = 0.5 * 10.0 ** -tables.decimals("table8", index, "mse", 2)
        # Squared errors add up to a whole number, so few values of the MSE can stand behind the printed one.
        first = max(math.ceil((mse - half) * cases - TIE), 0)
        roots = [(n / cases) ** 0.5 for n in range(first, math.floor((mse + half) * cases + TIE) + 1)]
        root = max(mse, 0.0) ** 0.5
        slack = 0.5 * 10.0 ** -tables.decimals("table8", index, "rmse", 2) + TIE
        if not min(roots, default=root) - slack <= row["rmse"] <= max(roots, default=root) + slack:
            note = "square root of the printed MSE"
            yield Finding(
                "table8", label(row), "rmse", "ratio", printed=row["rmse"], recomputed=round(root, 3),
                note=note,
            )
        for column in ("exact_acc", "fuzzy_acc"):
            if not on_grid(np.array(row[column]), cases, 1):
                note = f"no share of {cases} cases, which fit the other rows"
                yield Finding("table8", label(row), column, "granularity", printed=row[column], note=note)
        low, high = mse_bounds(exact, fuzzy)
        if exact > fuzzy or not low - half - TIE <= mse <= high + half:
            bounds, note = f"{low:.2f} to {high:.2f}", "bounds that exact and fuzzy accuracy put on the MSE"
            yield Finding(
                "table8", label(row), "mse", "bounds", printed=mse, recomputed=bounds, changes_claim=True,
                note=note,
            )
        elif not can_give_mse(exact, fuzzy, mse, cases, half):
            note = f"no set of whole errors over {cases} cases gives this MSE with these accuracies"
            yield Finding("table8", label(row), "mse", "granularity", printed=mse, note=note)


def check_tables9_10(tables: Tables) -> Iterator[Finding]:
    """300 cases in table 9, and every metric of table 10 from them (appendix H.2)."""
    counts = tables.rows("table9").set_index("model_label")[["human_1", "human_0"]]
    labels, total = ", ".join(counts.index), float(counts.to_numpy().sum())
    if sorted(counts.index) != ["0", "1"]:
        note = "needs one row for each label"
        yield Finding(
            "table9", "all rows", "model_label", "label", printed=labels, recomputed="1, 0", note=note
        )
        return
    if counts.to_numpy().min() < 0 or total == 0:
        return  # reported as a range finding; no metric is defined
    if total != JUDGED_CASES:
        note = "appendix H.2 names this number of cases"
        yield Finding(
            "table9", "all rows", "human_1, human_0", "sum", printed=JUDGED_CASES, recomputed=total, note=note
        )
    metrics = classification_metrics(*counts.loc["1"], *counts.loc["0"])
    for index, row in tables.rows("table10").iterrows():
        for column, value in metrics.items():
            if differs(tables, "table10", index, column, value):
                printed, note = row[column], "from the confusion table, table 9"
                yield Finding(
                    "table10", "only row", column, "ratio", printed=printed, recomputed=round(value, 4),
                    changes_claim=True, note=note,
                )


def infer_cases(rows: pd.DataFrame) -> int:
    """Cases behind table 8, unprinted: the least number that fits four fifths of the accuracies."""
    values = rows[["exact_acc", "fuzzy_acc"]].to_numpy(dtype=float)
    fits = {cases: float(on_grid(values, cases, 1).mean()) for cases in range(10, 401)}
    # Not the best fit: twice the cases would swallow a single slip.
    return next((cases for cases, share in fits.items() if share >= 0.8), max(fits, key=fits.__getitem__))


def mse_bounds(exact_acc: float, fuzzy_acc: float) -> tuple[float, float]:
    """Least and largest MSE that exact and fuzzy accuracy (percent) allow; errors beyond fuzzy: 2 to 10."""
    one, more = (fuzzy_acc - exact_acc) / 100, 1 - fuzzy_acc / 100
    return one + 4 * more, one + LARGEST_ERROR**2 * more


def can_give_mse(exact_acc: float, fuzzy_acc: float, mse: float, cases: int, half: float) -> bool:
    """Whether some whole errors over `cases` cases give accuracies and MSE (within `half` a unit) at once."""
    ones, more = round((fuzzy_acc - exact_acc) * cases / 100), round((100 - fuzzy_acc) * cases / 100)
    base, top = ones + 4 * more, math.floor((mse + half) * cases + TIE)
    # Fewest errors beyond 2 that add each surplus over `base`: coin change with the surpluses d^2 - 4.
    fewest = [0] + [math.inf] * max(top - base, 0)
    for surplus in range(1, len(fewest)):
        coins = [d * d - 4 for d in range(3, LARGEST_ERROR + 1) if d * d - 4 <= surplus]
        fewest[surplus] = min((fewest[surplus - coin] + 1 for coin in coins), default=math.inf)
    wanted = range(max(math.ceil((mse - half) * cases - TIE) - base, 0), top - base + 1)
    return any(fewest[surplus] <= more for surplus in wanted)
