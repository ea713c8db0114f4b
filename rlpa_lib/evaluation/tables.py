"""The paper's tables 1 (summary), 4 and 5 (turn by turn), and paired comparisons, all with intervals.

A row's key is its method, or "method@model" for a model of evaluation.comparators (`rows.Row.name`). At the
paper's scale the printed values stand under ours; a miniature's numbers never stand beside them."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from rlpa_lib.evaluation import intervals
from rlpa_lib.evaluation.curve_intervals import improvement_interval
from rlpa_lib.evaluation.paper_tables import read_printed_row
from rlpa_lib.settings.config import Config
from rlpa_lib.settings.kinds import EVALUATORS, METHODS, USERS

# (row key, benchmark) -> scores (E, K) in 0..1.
Scores = Mapping[tuple[str, str], np.ndarray]
TABLE_OF = {"vanilla": "table4", "extended": "table5"}
# Rows of other models: those of table 1, and of figure 5, which has no numbers.
CLOSED = tuple(
    (model, "Self-Critic")
    for model in ("GPT-4o-mini", "GPT-4o", "Claude-3.5-Sonnet", "Claude-3.5-Haiku", "DeepSeek-V3")
)
REASONING = tuple((model, "Base") for model in ("DeepSeek-R1", "GPT-o3-mini", "QwQ-32B"))
PAPER_MODEL = "Qwen2.5-3B-Instruct"
_DECIMALS = {"avg": 1, "n_ir": 3, "n_r2": 3}


def score_table(rows: Sequence[dict], field: str = "score") -> np.ndarray:
    """(E, K) scores of one method and benchmark from its judgement rows, users in order of appearance; NaN =
    not judged."""
    users = {user: place for place, user in enumerate(dict.fromkeys(r["user"] for r in rows))}
    table = np.full((len(users), max(r["turn"] for r in rows)), np.nan)
    for row in rows:
        if row[field] is not None:
            table[users[row["user"]], row["turn"] - 1] = row[field]
    return table


def arrange_rows(names: Iterable[str]) -> list[str]:
    """Row keys as the tables list them: other models first, as in the paper, then the order of METHODS."""
    order = list(METHODS)
    return sorted(names, key=lambda name: -1 if "@" in name else order.index(name))


def label_row(name: str, model: str) -> tuple[str, str]:
    """(model, method) as the tables print them; a hub name loses its owner."""
    method, _, other = name.partition("@")
    return other or model.rstrip("/").rpartition("/")[2], METHODS[method].label


def label_cells(name: str, model: str) -> dict[str, str]:
    """`label_row` as the cells model and method."""
    return dict(zip(("model", "method"), label_row(name, model), strict=True))


def name_row(name: str) -> str:
    """A row of any model in one text: its method, after the name of its model where that is another one."""
    return ", ".join(filter(None, label_row(name, "")))


def main_table(scores: Scores, model: str) -> pd.DataFrame:
    """Table 1: one row a method, benchmarks side by side; a benchmark that was not run leaves no column."""
    rows = []
    for name in arrange_rows(dict.fromkeys(name for name, _ in scores)):
        row = label_cells(name, model)
        for benchmark in (b for b in TABLE_OF if (name, b) in scores):
            found = summary(scores[name, benchmark])
            row |= {f"{benchmark}_{key}": value for key, value in found.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def turnwise_table(scores: Scores, benchmark: str, model: str) -> pd.DataFrame:
    """Table 4 or 5: `turnwise_row` of each method."""
    names = arrange_rows(name for name, bench in scores if bench == benchmark)
    return pd.DataFrame([label_cells(name, model) | turnwise_row(scores[name, benchmark]) for name in names])


def turnwise_row(scores_EK: np.ndarray) -> dict[str, float]:
    """k1 ... kK (AL(k) in percent) with exact 95 % intervals, then `summary`."""
    row = {}
    for turn, level in enumerate(intervals.alignment_interval(scores_EK), start=1):
        row |= level.columns(f"k{turn}", 100)
    return row | summary(scores_EK)


def summary(scores_EK: np.ndarray) -> dict[str, float]:
    """avg (percent), N-IR and N-R² in both normalisations (n_ir, n_ir_running, ...), with intervals over
    users."""
    return intervals.bootstrap_interval(scores_EK).columns("avg", 100) | _improvement(scores_EK)


def _improvement(scores: np.ndarray) -> dict[str, float]:
    """N-IR and N-R² of (E, K) or (S, E, K); table 1 and the turn-by-turn tables ask for the same rows."""
    return _improvement_of(np.ascontiguousarray(scores, dtype=float).tobytes(), scores.shape)


@lru_cache(maxsize=512)
def _improvement_of(data: bytes, shape: tuple[int, ...]) -> dict[str, float]:
    scores, row = np.frombuffer(data).reshape(shape), {}
    for norm, suffix in (("global", ""), ("running", "_running")):
        for name in ("n_ir", "n_r2"):
            row |= improvement_interval(scores, name, norm).columns(name + suffix)
    return row


def paired_table(scores: Scores) -> pd.DataFrame:
    """RLPA against each other row on the same users: percent points with interval, p, and p by Holm. The
    correction is over all comparisons of the table, both benchmarks and the controls included."""
    rows = []
    for benchmark in (b for b in TABLE_OF if ("rlpa", b) in scores):
        for name in arrange_rows(name for name, bench in scores if bench == benchmark and name != "rlpa"):
            found = intervals.paired_difference(scores["rlpa", benchmark], scores[name, benchmark])
            rows.append({"benchmark": benchmark, "method": name_row(name), **found.percent_points()})
    frame = pd.DataFrame(rows)
    return frame.assign(p_holm=intervals.adjust_holm(frame["p"])) if rows else frame


def without_first_turn(scores: Scores) -> pd.DataFrame:
    """The paired table again without k = 1, where the user has said nothing but "Hello"."""
    return paired_table({key: table[:, 1:] for key, table in scores.items() if table.shape[1] > 1})


def seeds_table(by_seed: Sequence[Scores], model: str) -> pd.DataFrame:
    """Over S seeds and their users: avg, N-IR and N-R² of each row that all have, and RLPA's avg minus it.
    With 95 % intervals. ValueError: fewer than three seeds."""
    rows, scores = [], stack_seeds(by_seed)
    for benchmark in TABLE_OF:
        for name in arrange_rows(name for name, bench in scores if bench == benchmark):
            own, rlpa = scores[name, benchmark], scores.get(("rlpa", benchmark)) if name != "rlpa" else None
            cells = label_cells(name, model) | compare_over_seeds(own, rlpa) | _improvement(own)
            rows.append({"benchmark": benchmark, **cells})
    return pd.DataFrame(rows)


def stack_seeds(by_seed: Sequence[Scores]) -> dict[tuple[str, str], np.ndarray]:
    """Scores (S, E, K) of the rows that all seeds have."""
    common = set.intersection(*map(set, by_seed))
    return {key: np.stack([scores[key] for scores in by_seed]) for key in by_seed[0] if key in common}


def compare_over_seeds(own_SEK: np.ndarray, rlpa_SEK: np.ndarray | None) -> dict[str, float]:
    """Number of seeds and users, avg, and RLPA's minus it (rlpa_minus)."""
    row = {"seeds": own_SEK.shape[0], "users": own_SEK.shape[1], **average_over_seeds("avg", own_SEK)}
    return row if rlpa_SEK is None else row | average_over_seeds("rlpa_minus", rlpa_SEK - own_SEK)


def average_over_seeds(name: str, scores_SEK: np.ndarray) -> dict[str, float]:
    """`name` and its 95 % interval over seeds and users, in percent; differences are named ..._minus."""
    limits = (-1.0 if name.endswith("_minus") else 0.0, 1.0)
    return intervals.seed_interval(scores_SEK, limits=limits).columns(name, 100)


def comparable(cfg: Config) -> bool:
    """Whether a run may stand beside the paper: its base model, and language models as user and evaluator."""
    scripted = USERS[cfg.user.kind].scripted or EVALUATORS[cfg.evaluator.kind].scripted
    return cfg.policy.model.endswith(PAPER_MODEL) and not scripted


def format_paper_table(table: pd.DataFrame, name: str, cfg: Config) -> pd.DataFrame:
    """table1, table4 or table5 as text, by model, method and source (ours; paper where `comparable`). Our
    cells are "estimate [low, high]". Every row of the paper is there ("not run" where it was not), in the
    paper's order, and every row that was run."""
    ours = {(row["model"], row["method"]): row for _, row in table.iterrows()}
    model = cfg.policy.model.rstrip("/").rpartition("/")[2]
    expected = [*CLOSED, *((model, method.label) for method in METHODS.values() if method.in_paper)]
    columns = [c for c in table if f"{c}_low" in table]
    lines: dict[tuple[str, str, str], list[str]] = {}
    for key in dict.fromkeys((*expected, *ours, *REASONING)):
        cells = [_format_cell(ours[key], c, 1) for c in columns] if key in ours else [""] * len(columns)
        lines[*key, "ours"] = [cell or "not run" for cell in cells]
        if comparable(cfg) and (printed := read_printed_row(name, *key)):
            lines[*key, "paper"] = [printed.get(c, "") for c in columns]
    frame = pd.DataFrame.from_dict(lines, orient="index", columns=columns)
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=["model", "method", "source"])
    return frame


def join_intervals(table: pd.DataFrame, decimals: int = 2) -> pd.DataFrame:
    """A table with x, x_low, x_high as one column x of text, "estimate [low, high]", or "-"."""
    text = table[estimate_columns(table)].astype(object)
    for column in text:
        if f"{column}_low" in table:
            text[column] = [_format_cell(row, column, decimals) or "-" for _, row in table.iterrows()]
    return text


def estimate_columns(table: pd.DataFrame) -> list[str]:
    """The columns of a table that are not ends of intervals."""
    return [c for c in table if not (c.endswith(("_low", "_high")) and c.rpartition("_")[0] in table)]


def _format_cell(row: pd.Series, column: str, decimals: int) -> str:
    """A cell "estimate [low, high]", with the paper's decimals; "" without an estimate."""
    for score, printed in _DECIMALS.items():
        if column.removesuffix("_running").endswith(score):
            decimals = printed
    value, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    if pd.isna(value):
        return ""
    return f"{value:.{decimals}f}" + ("" if pd.isna(low) else f" [{low:.{decimals}f}, {high:.{decimals}f}]")
