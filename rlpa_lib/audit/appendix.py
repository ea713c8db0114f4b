"""Arithmetic of tables 6-10 (appendices G and H) and the ranges that every printed number must respect."""

import itertools
import math
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
import yaml

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


@cache
def _load_kinds() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((resources.files("rlpa_lib.audit") / "findings.yaml").read_text(encoding="utf-8"))


def report(
    entry: str, table: str, row: pd.Series | str, column: str, printed: Any, recomputed: Any = None, **told
) -> Finding:
    """A finding as its entry of findings.yaml describes it; its note is filled with the values and `told`."""
    kind = _load_kinds()[entry]
    note = kind["note"].format(printed=printed, recomputed=recomputed, **told)
    where, changes_claim = row if isinstance(row, str) else label(row), kind.get("changes_claim", False)
    return Finding(table, where, column, kind["kind"], printed, recomputed, changes_claim, note)


def check_ranges(tables: Tables) -> Iterator[Finding]:
    """Numbers outside what they can be: percentages, kappas, ratings, and counts that are not whole."""
    for name, frame in tables.numbers.items():
        for (_, row), column in itertools.product(frame.iterrows(), frame):
            quantity = column.removeprefix("vanilla_").removeprefix("extended_")
            if quantity not in _RANGES or math.isnan(value := float(row[column])):
                continue
            low, high = _RANGES[quantity]
            if not low <= value <= high or (quantity in _COUNTS and value != round(value)):
                table = row.get("table", name)
                yield report("outside the range", table, row, column, value, low=low, high=high)
    turnwise = tables.numbers["turnwise"]
    for _, row in turnwise[~turnwise["table"].isin(SETTINGS)].iterrows():
        yield report("unknown table", "turnwise", row, "table", row["table"])


def differs(
    tables: Tables, source: str, row: pd.Series, column: str, value: float, slack: float = TIE
) -> bool:
    """Whether a cell of file `source` is not `value` rounded as printed (the CSVs drop trailing zeros)."""
    half = 0.5 * 10.0 ** -tables.decimals(source, row.name, column, 1 if column == "accuracy_pct" else 2)
    return not abs(row[column] - value) <= half + slack


def check_table6(tables: Tables) -> Iterator[Finding]:
    """Ratings are averages of 30 whole marks, and All is their mean (appendix G)."""
    for _, row in tables.rows("table6").iterrows():
        ratings = row[list(_DIMENSIONS)].to_numpy(dtype=float)
        # A rating is a share of 30 marks, so the percentage test applies to it unchanged.
        fits = on_grid(ratings, RATED_CASES * 100)
        for column in itertools.compress(_DIMENSIONS, ~fits):
            nearest = round(round(row[column] * RATED_CASES) / RATED_CASES, 2)
            yield report("rating", "table6", row, column, row[column], nearest)
        mean = float(np.where(fits, np.round(ratings * RATED_CASES) / RATED_CASES, ratings).mean())
        if differs(tables, "table6", row, "all_avg", mean, TIE if fits.all() else 0.005):
            yield report("average of ratings", "table6", row, "all_avg", row["all_avg"], round(mean, 3))


def check_table7(tables: Tables) -> Iterator[Finding]:
    """Row sums, accuracies of both labels and overall, and the total of 300 pairs (appendix H.1)."""
    all_right, all_pairs = 0.0, 0.0
    for _, row in tables.rows("table7").iterrows():
        name = row["system_label"]
        if name == "overall":
            sums, right, pairs = {"labels": all_pairs, "pairs": float(JUDGED_CASES)}, all_right, all_pairs
        elif name in ("same", "different"):
            sums = {"judgements": row["same"] + row["different"] + row["uncertain"]}
            right, pairs = row[name], row["total"]
            all_right, all_pairs = all_right + right, all_pairs + pairs
        else:
            yield report("unknown label", "table7", row, "system_label", name)
            continue
        for entry, recomputed in sums.items():
            if not abs(row["total"] - recomputed) <= TIE:
                yield report(entry, "table7", row, "total", row["total"], recomputed)
        accuracy = 100 * right / pairs if pairs else math.nan
        if differs(tables, "table7", row, "accuracy_pct", accuracy):
            printed, accuracy = row["accuracy_pct"], round(accuracy, 2)
            yield report("agreeing share", "table7", row, "accuracy_pct", printed, accuracy)


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
            yield report("root", "table8", row, "rmse", row["rmse"], round(root, 3))
        for column in ("exact_acc", "fuzzy_acc"):
            if not on_grid(np.array(row[column]), cases, 1):
                yield report("share of cases", "table8", row, column, row[column], cases=cases)
        low, high = mse_bounds(exact, fuzzy)
        if exact > fuzzy or not low - half - TIE <= mse <= high + half:
            yield report("bounds of the MSE", "table8", row, "mse", mse, f"{low:.2f} to {high:.2f}")
        elif not can_give_mse(exact, fuzzy, mse, cases, half):
            yield report("whole errors", "table8", row, "mse", mse, cases=cases)


def check_tables9_10(tables: Tables) -> Iterator[Finding]:
    """300 cases in table 9, and every metric of table 10 from them (appendix H.2)."""
    counts = tables.rows("table9").set_index("model_label")[["human_1", "human_0"]]
    total = float(counts.to_numpy().sum())
    if sorted(counts.index) != ["0", "1"]:
        yield report("other labels", "table9", "all rows", "model_label", ", ".join(counts.index), "1, 0")
        return
    if counts.to_numpy().min() < 0 or total == 0:
        return  # reported as a range finding; no metric is defined
    if total != JUDGED_CASES:
        yield report("cases", "table9", "all rows", "human_1, human_0", JUDGED_CASES, total)
    metrics = classification_metrics(*counts.loc["1"], *counts.loc["0"])
    for (_, row), (column, value) in itertools.product(tables.rows("table10").iterrows(), metrics.items()):
        if differs(tables, "table10", row, column, value):
            yield report("metric", "table10", "only row", column, row[column], round(value, 4))


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
