"""Reasoning as tokens before the answer (section 5.4, figure 5): RLPA's profile block, CoT's thought, drafts
and critiques, and the hidden thinking of reasoning models."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from rlpa_lib.agents import models
from rlpa_lib.dialogue import quoting
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.profile import Profile, render_reply
from rlpa_lib.evaluation import intervals, tables
from rlpa_lib.settings.config import Config
from rlpa_lib.settings.kinds import POLICIES, WITH_PROFILE

# Rows of the figure, beside the models of evaluation.comparators.
METHODS = ("rlpa", "rlpa_prompting", "cot", "self_critic", "base")
COUNTED = ("thought", "reasoning")  # steps whose text is counted where no server counted it


def count_reasoning(
    rows: Sequence[dict], dialogues: Sequence[Dialogue], count: Callable[[str], int]
) -> np.ndarray:
    """(E, K) tokens that a method spent before what the user reads, from judgement rows and their dialogues.
    Hidden steps count what was generated for them, or `count` of their text where nobody counted. A method
    that writes profiles spends what its completion holds before the response."""
    places = {dialogue.persona_id: place for place, dialogue in enumerate(dialogues)}
    table = np.full((len(dialogues), max(row["turn"] for row in rows)), np.nan)
    for row in rows:
        place, turn = places[row["user"]], row["turn"] - 1
        steps = [step for step in row["hidden"] if step["n_tokens"] or step["kind"] in COUNTED]
        table[place, turn] = sum(step["n_tokens"] or count(step["text"]) for step in steps)
        if row["method"].partition("@")[0] in WITH_PROFILE:
            table[place, turn] += count(cut_profile(dialogues[place].turns[turn].completion))
    return table


def make_counter(cfg: Config) -> Callable[[str], int]:
    """Counts the tokens of a text with the policy's own tokenizer, or estimates them behind an endpoint."""
    if not POLICIES[cfg.policy.kind].trainable:
        return lambda text: quoting.estimated_tokens(text) if text else 0
    tokenizer = models.load_tokenizer(cfg)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def cut_profile(completion: str) -> str:
    """What a completion notes of the profile: all before the response; "" where there is no profile tag."""
    before = completion.partition("<response>")[0]
    return before if "<profile>" in before else ""


def count_empty_block(count: Callable[[str], int]) -> int:
    """Tokens of a profile block that holds nothing: what the format alone costs."""
    return count(cut_profile(render_reply(Profile(), "-")))


def figure_table(
    scores: Mapping[str, np.ndarray], tokens: Mapping[str, np.ndarray], model: str
) -> pd.DataFrame:
    """Figure 5's data, one row a method or model: AVG in percent and reasoning tokens a turn, with 95 %
    intervals over users, and `per_point`, what was spent for one percent point."""
    lines = []
    for name in tables.arrange_rows(scores):
        spent = tokens[name]
        # Tokens have no scale: where no two users differ, the range that was seen stands for it.
        seen = float(np.nanmin(spent)), float(np.nanmax(spent))
        line = tables.label_cells(name, model)
        line |= intervals.bootstrap_interval(scores[name]).columns("avg", 100)
        line |= intervals.bootstrap_interval(spent, limits=seen).columns("tokens")
        lines.append({**line, "per_point": line["tokens"] / line["avg"] if line["avg"] else float("nan")})
    return pd.DataFrame(lines)
