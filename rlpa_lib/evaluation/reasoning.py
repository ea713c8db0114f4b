"""Reasoning as tokens before the answer (section 5.4, figure 5): the profile block of RLPA, the thought of CoT, drafts and critiques, and the
hidden thinking of reasoning models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from rlpa_lib.agents import parties
from rlpa_lib.dialogue import quoting
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.profile import Profile, render_reply
from rlpa_lib.evaluation import intervals, tables
from rlpa_lib.settings.config import Config
from rlpa_lib.settings.kinds import WITH_PROFILE

METHODS = ("rlpa", "rlpa_prompting", "cot", "self_critic", "base")  # rows of the figure beside the models of evaluation.comparators


def reasoning_tokens(rows: Sequence[dict], dialogues: Sequence[Dialogue], count: Callable[[str], int]) -> np.ndarray:
    """(E, K) tokens that a method spent before what the user reads, from judgement rows and the dialogues that go with them.

    Hidden steps count what was generated for them, or `count` of their text where nobody counted. A method that writes profiles spends what
    its completion holds before the response; where the format is broken, the whole block that can be told from the text.
    """
    users = {d.persona_id: i for i, d in enumerate(dialogues)}
    table = np.full((len(dialogues), max(r["turn"] for r in rows)), np.nan)
    for row in rows:
        spent = sum(step["n_tokens"] or (count(step["text"]) if step["kind"] in ("thought", "reasoning") else 0) for step in row["hidden"])
        turn = dialogues[users[row["user"]]].turns[row["turn"] - 1]
        if row["method"].partition("@")[0] in WITH_PROFILE:
            spent += count(profile_part(turn.completion))
        table[users[row["user"]], row["turn"] - 1] = spent
    return table


def counter(cfg: Config) -> Callable[[str], int]:
    """Counts the tokens of a text with the policy's own tokenizer; behind an endpoint there is none, and tokens are estimated."""
    if cfg.policy.kind == "endpoint":
        return lambda text: quoting.estimated_tokens(text) if text else 0
    tokenizer = parties.load_tokenizer(cfg)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def profile_part(completion: str) -> str:
    """The part of a completion that notes the profile: all before the response block; "" where there is no profile tag."""
    before = completion.partition("<response>")[0]
    return before if "<profile>" in before else ""


def empty_block(count: Callable[[str], int]) -> int:
    """Tokens of a profile block that holds nothing: what the format alone costs."""
    return count(profile_part(render_reply(Profile(), "-")))


def figure_table(scores: Mapping[str, np.ndarray], tokens: Mapping[str, np.ndarray], model: str) -> pd.DataFrame:
    """Figure 5's data, one row a method or model: AVG in percent and reasoning tokens a turn, with 95 % bootstrap intervals over users, and
    `per_point`, tokens spent for one percent point."""
    lines = []
    for name in tables.arrange_rows(scores):
        who, method = tables.label_row(name, model)
        line: dict[str, object] = {"model": who, "method": method}
        for key, table, factor in (("avg", scores[name], 100), ("tokens", tokens[name], 1)):
            # Tokens have no scale: where no two users differ, the range that was seen stands for it.
            limits = (0.0, 1.0) if key == "avg" else (float(np.nanmin(table)), float(np.nanmax(table)))
            interval = intervals.bootstrap_interval(table, limits=limits)
            line |= {key: factor * interval.estimate, f"{key}_low": factor * interval.low, f"{key}_high": factor * interval.high}
        lines.append({**line, "per_point": line["tokens"] / line["avg"] if line["avg"] else float("nan")})
    return pd.DataFrame(lines)
