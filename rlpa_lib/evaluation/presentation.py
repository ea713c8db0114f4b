"""Tables 1, 4 and 5 as a reader sees them: the paper's rows in the paper's order, "not run" where a row was not run, and at the paper's
scale the printed values under ours. A miniature's numbers never stand beside the paper's.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from rlpa_lib.evaluation import paper_tables as printed
from rlpa_lib.evaluation.tables import LABELS
from rlpa_lib.settings.config import Config

NOT_RUN = "not run"
# Rows of other models: those of table 1, and of figure 5, which has no numbers.
CLOSED = tuple((model, "Self-Critic") for model in ("GPT-4o-mini", "GPT-4o", "Claude-3.5-Sonnet", "Claude-3.5-Haiku", "DeepSeek-V3"))
REASONING = tuple((model, "Base") for model in ("DeepSeek-R1", "GPT-o3-mini", "QwQ-32B"))
PAPER_MODEL = "Qwen2.5-3B-Instruct"
_DECIMALS = {"avg": 1, "n_ir": 3, "n_r2": 3}


def comparable(cfg: Config) -> bool:
    """Whether a run may be set beside the paper: its base model, and language models as user and evaluation judge."""
    return cfg.policy.model.endswith(PAPER_MODEL) and cfg.user.kind == "llm" and cfg.evaluator.kind == "llm"


def format_paper_table(table: pd.DataFrame, name: str, cfg: Config) -> pd.DataFrame:
    """table1, table4 or table5 as text, indexed by model, method and source (ours, or paper where `comparable`).

    Our cells are "estimate [low, high]". Every row of the paper is there, and every row that was run.
    """
    ours = {(row["model"], row["method"]): row for _, row in table.iterrows()}
    model = cfg.policy.model.rstrip("/").rpartition("/")[2]
    expected = [*CLOSED, *((model, text) for text in list(LABELS.values())[:8])]  # the thirteen rows of the paper
    keys = [*expected, *(key for key in ours if key not in expected), *(key for key in REASONING if key not in ours)]
    columns = [c for c in table if f"{c}_low" in table]
    lines: dict[tuple[str, str, str], list[str]] = {}
    for key in keys:
        lines[*key, "ours"] = [_cell(ours[key], c) for c in columns] if key in ours else [NOT_RUN] * len(columns)
        if comparable(cfg) and (values := dict(_printed(name, *key))):
            lines[*key, "paper"] = [values.get(c, "") for c in columns]
    frame = pd.DataFrame.from_dict(lines, orient="index", columns=columns)
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=["model", "method", "source"])
    return frame


def join_intervals(table: pd.DataFrame, decimals: int = 2) -> pd.DataFrame:
    """A table whose columns x, x_low, x_high have become one column x of text, "estimate [low, high]"; "-" where there is no estimate."""
    text = table[estimate_columns(table)].astype(object)
    for column in text:
        if f"{column}_low" in table:
            text[column] = [_text(row, column, _decimals(column, decimals)) or "-" for _, row in table.iterrows()]
    return text


def estimate_columns(table: pd.DataFrame) -> list[str]:
    """The columns of a table that are not ends of intervals."""
    return [c for c in table if str(c).rpartition("_")[2] not in ("low", "high") or str(c).rpartition("_")[0] not in table]


def _cell(row: pd.Series, column: str) -> str:
    return _text(row, column, _decimals(column, 1)) or NOT_RUN


def _decimals(column: str, otherwise: int) -> int:
    return next((d for end, d in _DECIMALS.items() if column.removesuffix("_running").endswith(end)), otherwise)


def _text(row: pd.Series, column: str, decimals: int) -> str:
    value, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    if pd.isna(value):
        return ""
    return f"{value:.{decimals}f}" + ("" if pd.isna(low) else f" [{low:.{decimals}f}, {high:.{decimals}f}]")


def _printed(name: str, model: str, method: str) -> Iterator[tuple[str, str]]:
    """(column, text as printed) of one row of the paper; nothing when the paper has no such row."""
    tables = printed.load(printed.PAPER_TABLES)
    text = tables.text["table1"] if name == "table1" else tables.text["turnwise"].query("table == @name")
    for _, row in text.iterrows():
        if (printed.strip_date(row["model"]), row["method"]) == (model, method):
            yield from row.items()


def printed_curve(benchmark: str, model: str, method: str) -> dict[int, float]:
    """Turn -> AL(k) in percent as table 4 or 5 prints it; empty when the paper has no such row."""
    name = next(table for table, setting in (("table4", "vanilla"), ("table5", "extended")) if setting == benchmark)
    return {int(column[1:]): float(value) for column, value in _printed(name, model, method) if column in printed.TURNS}
