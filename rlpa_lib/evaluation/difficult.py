"""Users who do not cooperate (beyond the paper): alignment with them and with the paper's willing ones."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.reveal import OPENING
from rlpa_lib.evaluation import intervals, tables


def ask_once(person: Persona, question: str) -> Dialogue:
    """A talk of one turn in which the assistant has asked something, to see how a user takes it."""
    heard = Dialogue("example", person.id).hear(Utterance(OPENING))
    return heard.answer(question, Reply(Profile(), question, True))


def alignment_table(scores: tables.Scores, model: str) -> pd.DataFrame:
    """AVG in percent of each row with each kind of user, and the difference from the same users when willing;
    `scores` by (row key, manner). From turn 2 on (turn 1 is "Hello" for all), with 95 % bootstrap intervals
    over users: columns model, method, manner, users, avg, difference, p, and bounds. p is a permutation
    p-value with Holm's correction over all differences of the table."""
    lines = []
    for name in tables.arrange_rows(dict.fromkeys(name for name, _ in scores)):
        for manner, table in ((m, table[:, 1:]) for (n, m), table in scores.items() if n == name):
            line = {**tables.label_cells(name, model), "manner": manner, "users": len(table)}
            line |= intervals.bootstrap_interval(table).columns("avg", 100)
            if manner != "willing" and (name, "willing") in scores:
                willing = scores[name, "willing"][:, 1:]
                line |= intervals.paired_difference(table, willing).percent_points()
            lines.append(line)
    frame = pd.DataFrame(lines)
    if "p" in frame:
        compared = frame["p"].notna()
        frame.loc[compared, "p"] = intervals.adjust_holm(frame.loc[compared, "p"])
    return frame


def told_table(rows: Mapping[tuple[str, str], Sequence[dict]]) -> pd.DataFrame:
    """Percent of the profile that is told by the last turn: one row a manner, one column a method."""
    lines = []
    for (name, manner), judged in rows.items():
        last = max(r["turn"] for r in judged)
        shares = [r["n_told"] / r["n_true"] for r in judged if r["turn"] == last]
        lines.append((manner, name, 100 * float(np.mean(shares))))
    frame = pd.DataFrame(lines, columns=["manner", "method", "told"])
    table = frame.pivot(index="manner", columns="method", values="told")
    return table.reindex(list(dict.fromkeys(frame["manner"]))).reset_index()
