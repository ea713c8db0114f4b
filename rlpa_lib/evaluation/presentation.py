"""Tables 1, 4 and 5 as a reader sees them: in the paper's order, "not run" where a row was not run.

At the paper's scale the printed values stand under ours; a miniature's numbers never stand beside them.
"""

from __future__ import annotations

import pandas as pd

from rlpa_lib.evaluation.paper_tables import read_printed_row
from rlpa_lib.settings.config import Config
from rlpa_lib.settings.kinds import EVALUATORS, METHODS, USERS

NOT_RUN = "not run"
# Rows of other models: those of table 1, and of figure 5, which has no numbers.
CLOSED = tuple(
    (model, "Self-Critic")
    for model in ("GPT-4o-mini", "GPT-4o", "Claude-3.5-Sonnet", "Claude-3.5-Haiku", "DeepSeek-V3")
)
REASONING = tuple((model, "Base") for model in ("DeepSeek-R1", "GPT-o3-mini", "QwQ-32B"))
PAPER_MODEL = "Qwen2.5-3B-Instruct"
_DECIMALS = {"avg": 1, "n_ir": 3, "n_r2": 3}


def comparable(cfg: Config) -> bool:
    """Whether a run may stand beside the paper: its base model, and language models as user and evaluator."""
    scripted = USERS[cfg.user.kind].scripted or EVALUATORS[cfg.evaluator.kind].scripted
    return cfg.policy.model.endswith(PAPER_MODEL) and not scripted


def format_paper_table(table: pd.DataFrame, name: str, cfg: Config) -> pd.DataFrame:
    """table1, table4 or table5 as text, by model, method and source (ours; paper where `comparable`).

    Our cells are "estimate [low, high]". Every row of the paper is there, and every row that was run.
    """
    ours = {(row["model"], row["method"]): row for _, row in table.iterrows()}
    model = cfg.policy.model.rstrip("/").rpartition("/")[2]
    expected = [*CLOSED, *((model, method.label) for method in METHODS.values() if method.in_paper)]
    columns = [c for c in table if f"{c}_low" in table]
    lines: dict[tuple[str, str, str], list[str]] = {}
    for key in dict.fromkeys((*expected, *ours, *REASONING)):
        cells = [_format_cell(ours[key], c, 1) for c in columns] if key in ours else [""] * len(columns)
        lines[*key, "ours"] = [cell or NOT_RUN for cell in cells]
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
    ends = {f"{column}_{end}" for column in table for end in ("low", "high")}
    return [column for column in table if column not in ends]


def _format_cell(row: pd.Series, column: str, decimals: int) -> str:
    """A cell "estimate [low, high]", with the paper's decimals; "" without an estimate."""
    for score, printed in _DECIMALS.items():
        if column.removesuffix("_running").endswith(score):
            decimals = printed
    value, low, high = row[column], row[f"{column}_low"], row[f"{column}_high"]
    if pd.isna(value):
        return ""
    return f"{value:.{decimals}f}" + ("" if pd.isna(low) else f" [{low:.{decimals}f}, {high:.{decimals}f}]")
