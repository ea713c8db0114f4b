"""Long dialogues with a fixed profile (section 5.3): profile score and Theoretical Max at checkpoints, what fell out of the context, time and
memory a turn. Axes: E users, K turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.reveal import RevealJudge
from rlpa_lib.evaluation import intervals
from rlpa_lib.evaluation.agreement_metrics import kappa_interval
from rlpa_lib.runs.run import Run

NAME = "long_term"  # in file names, where a benchmark's name stands otherwise


def checkpoints(turns: int, every: int) -> list[int]:
    """The turns at which the profile is scored: 1, then every so many turns; the paper's are 1, 10, ..., 70."""
    return list(dict.fromkeys([1, *range(every, turns + 1, every)]))


def windowed(run: Run) -> Run:
    """The same run with `long_term.max_prompt_tokens` as context window, where it is given."""
    limit = run.cfg.long_term.max_prompt_tokens or run.cfg.rollout.max_prompt_tokens
    rollout = run.cfg.rollout.model_copy(update={"max_prompt_tokens": limit})
    return replace(run, cfg=run.cfg.model_copy(update={"rollout": rollout}))


def track_revealed(
    personas: Sequence[Persona], dialogues: Sequence[Dialogue], turns: Sequence[int], judge: RevealJudge, *, by_judge: bool
) -> pd.DataFrame:
    """How much each user has revealed at each checkpoint, by the user's own ledger and by a judge that reads its words.

    Columns user, turn, n_true, by_ledger, by_judge (counts of slots; NaN where the judge failed), agree (slots on which both agree), both
    (slots that both call told) and told, the count that the Theoretical Max takes: the judge's where `by_judge`, else the ledger's.
    """
    cases = [(p, k, Dialogue(d.id, d.persona_id, d.turns[:k])) for p, d in zip(personas, dialogues, strict=True) for k in turns]
    read = judge.find_revealed([(p, part) for p, _, part in cases])
    rows = []
    for (person, turn, part), found in zip(cases, read, strict=True):
        slots = set(person.profile.slots())
        ledger = set(part.ledger()) & slots
        by = None if found is None else found & slots
        told = len(ledger) if not by_judge else np.nan if by is None else len(by)
        same, both = (np.nan, np.nan) if by is None else (len(slots) - len(ledger ^ by), len(ledger & by))
        rows.append((person.id, turn, len(slots), len(ledger), np.nan if by is None else len(by), same, both, told))
    return pd.DataFrame(rows, columns=["user", "turn", "n_true", "by_ledger", "by_judge", "agree", "both", "told"])


def agreement(table: pd.DataFrame) -> dict[str, float]:
    """Ledger and judge over all slots, users and checkpoints of `revealed`: share of slots on which they agree, Cohen's kappa, and the mean
    Theoretical Max by each. Cases without an answer are left out and counted."""
    known = table.dropna(subset="by_judge")
    n, ledger, judge, both = (float(known[c].sum()) for c in ("n_true", "by_ledger", "by_judge", "both"))
    confusion = [[both, ledger - both], [judge - both, n - ledger - judge + both]]
    return {"slots": n, "agreement": float(known["agree"].sum() / n) if n else float("nan"),
            "kappa": kappa_interval(confusion).estimate if n else float("nan"), "max_by_ledger": float((known["by_ledger"] / known["n_true"]).mean()),
            "max_by_judge": float((known["by_judge"] / known["n_true"]).mean()), "unjudged": int(table["by_judge"].isna().sum())}  # fmt: skip


def progress(rows_by_method: Mapping[str, Sequence[dict]], told: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Figure 4b's data, in percent with 95 % bootstrap intervals over users: columns method, measure, turn, value, low, high.

    Measures: profile score (F1 of eq. 3), recall (matched / true), Theoretical Max (told / true, the most that recall can be without a
    guess), best score (the F1 of a profile that holds what was told and nothing else). `told` is `revealed` by method.
    """
    lines = []
    for method, rows in rows_by_method.items():
        frame = pd.DataFrame(rows).merge(told[method][["user", "turn", "told"]], on=["user", "turn"])
        frame["profile score"] = frame["profile_f1"].astype(float)
        frame["recall"] = frame["n_matched"].astype(float) / frame["n_true"]
        frame["Theoretical Max"] = frame["told"] / frame["n_true"]
        frame["best score"] = 2 * frame["told"] / (frame["told"] + frame["n_true"])
        for measure in ("profile score", "recall", "Theoretical Max", "best score"):
            for turn, part in frame.groupby("turn"):
                interval = intervals.bootstrap_interval(part[[measure]].to_numpy())
                lines.append((method, measure, int(turn), 100 * interval.estimate, 100 * interval.low, 100 * interval.high))
    return pd.DataFrame(lines, columns=["method", "measure", "turn", "value", "low", "high"])


def averages(data: pd.DataFrame) -> pd.DataFrame:
    """The AVG line: mean over the checkpoints of each measure of `progress`, in percent: one row a method, one column a measure."""
    return data.groupby(["method", "measure"], sort=False)["value"].mean().unstack(sort=False).reset_index()


def cut(rows_by_method: Mapping[str, Sequence[dict]], block: int) -> pd.DataFrame:
    """What the context window cost, by method and block of `block` turns: mean and largest number of dropped turns a prompt, share of prompts that
    lost any, and `profiles_lost`, prompts that lost the latest profile block with all turns before (see `policies.window`)."""
    frame = pd.concat([pd.DataFrame(rows).assign(method=name) for name, rows in rows_by_method.items()])
    frame["turns"] = _blocks(frame["turn"], block)
    frame["cut"] = frame["n_dropped"] > 0
    frame["lost"] = (frame["turn"] > 1) & (frame["n_dropped"] == frame["turn"] - 1)
    parts = frame.groupby(["method", "turns"], sort=False)
    facts = {"dropped": ("n_dropped", "mean"), "most": ("n_dropped", "max"), "prompts_cut": ("cut", "mean"), "profiles_lost": ("lost", "sum")}
    return parts.agg(**facts).reset_index()


def cost(lines: Sequence[dict], users: int, block: int) -> pd.DataFrame:
    """Milliseconds a user and turn by party, and memory at the end, by method and block of turns; from metrics/long_term.jsonl."""
    frame = pd.DataFrame(lines).drop_duplicates(["method", "turn"], keep="last").sort_values(["method", "turn"], kind="stable")
    frame["turns"] = _blocks(frame["turn"], block)
    for party in ("method", "user", "judges"):
        frame[f"{party}_ms"] = 1000 * frame[f"{party}_s"] / users
    columns = {f"{party}_ms": (f"{party}_ms", "mean") for party in ("method", "user", "judges")}
    return frame.groupby(["method", "turns"], sort=False).agg(**columns, memory_mb=("memory_mb", "last")).reset_index()


def growth(lines: Sequence[dict]) -> pd.DataFrame:
    """How time and memory grow with the turn: one row a method and quantity.

    `times`: mean over the last third of the turns over that of the middle third; `linear`: the same ratio of the turn numbers, which is what
    linear growth gives. Quantities: seconds of method, user and judges a turn, and memory.
    """
    frame = pd.DataFrame(lines).drop_duplicates(["method", "turn"], keep="last")
    rows = []
    for method, part in frame.sort_values("turn").groupby("method", sort=False):
        third = len(part) // 3
        middle, last = part.iloc[third : 2 * third], part.iloc[2 * third :]
        linear = last["turn"].mean() / middle["turn"].mean() if third else float("nan")
        for name in ("method_s", "user_s", "judges_s", "memory_mb"):
            base = middle[name].astype(float).mean() if third else float("nan")
            rows.append({"method": method, "quantity": name, "times": float(last[name].astype(float).mean() / base), "linear": linear})
    return pd.DataFrame(rows)


def _blocks(turn: pd.Series, block: int) -> pd.Series:
    first = (turn - 1) // block * block + 1
    return first.astype(str) + "-" + (first + block - 1).astype(str)
