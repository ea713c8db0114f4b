"""Long dialogues with a fixed profile (section 5.3): profile score and Theoretical Max at checkpoints, what
fell out of the context, time and memory a turn. Axes: E users, K turns."""

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


def list_checkpoints(turns: int, every: int) -> list[int]:
    """The turns at which the profile is scored; the paper's are 1, 10, ..., 70."""
    return list(dict.fromkeys([1, *range(every, turns + 1, every)]))


def widen_window(run: Run) -> Run:
    """The same run with `long_term.max_prompt_tokens` as context window, where it is given."""
    limit = run.cfg.long_term.max_prompt_tokens or run.cfg.rollout.max_prompt_tokens
    rollout = run.cfg.rollout.model_copy(update={"max_prompt_tokens": limit})
    return replace(run, cfg=run.cfg.model_copy(update={"rollout": rollout}))


def track_revealed(
    personas: Sequence[Persona], dialogues: Sequence[Dialogue], turns: Sequence[int], judge: RevealJudge, *,
    by_judge: bool,
) -> pd.DataFrame:
    """How much each user has revealed at each checkpoint, by its ledger and by a judge that reads its words.
    Columns user, turn, n_true, by_ledger, by_judge (counts of slots; NaN where the judge failed), agree
    (slots on which both agree), both (slots that both call told) and told, the count that the Theoretical Max
    takes: the judge's where `by_judge`, else the ledger's."""
    people = zip(personas, dialogues, strict=True)
    moments = [(p, turn, Dialogue(d.id, d.persona_id, d.turns[:turn])) for p, d in people for turn in turns]
    read_by_judge = judge.find_revealed([(person, part) for person, _, part in moments])
    rows = []
    for (person, turn, part), found in zip(moments, read_by_judge, strict=True):
        slots = set(person.profile.slots())
        ledger, n, read, agree, both = set(part.ledger()) & slots, len(slots), np.nan, np.nan, np.nan
        if found is not None:
            found = found & slots
            read, agree, both = len(found), n - len(ledger ^ found), len(ledger & found)
        told = read if by_judge else len(ledger)
        rows.append((person.id, turn, n, len(ledger), read, agree, both, told))
    columns = ["user", "turn", "n_true", "by_ledger", "by_judge", "agree", "both", "told"]
    return pd.DataFrame(rows, columns=columns)


def compare_ledgers(table: pd.DataFrame) -> dict[str, float]:
    """Ledger and judge over all slots, users and checkpoints of `track_revealed`. Share of slots on which
    they agree, Cohen's kappa, and the mean Theoretical Max by each. Cases without an answer are counted
    apart."""
    known = table.dropna(subset="by_judge")
    n, ledger, judge, both = (float(known[c].sum()) for c in ("n_true", "by_ledger", "by_judge", "both"))
    confusion = [[both, ledger - both], [judge - both, n - ledger - judge + both]]
    return {
        "slots": n,
        "agreement": float(known["agree"].sum() / n) if n else float("nan"),
        "kappa": kappa_interval(confusion).estimate if n else float("nan"),
        **{f"max_{who}": float((known[who] / known["n_true"]).mean()) for who in ("by_ledger", "by_judge")},
        "unjudged": int(table["by_judge"].isna().sum()),
    }


def progress_table(judged: Mapping[str, Sequence[dict]], told: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Figure 4b in percent with 95 % bootstrap intervals: columns method, measure, turn, value, low, high.
    Measures: profile score (F1 of eq. 3), recall (matched / true), Theoretical Max (told / true, the most
    that recall can be without a guess), best score (the F1 of a profile that holds what was told and nothing
    else). `told` is `track_revealed` by method."""
    lines = []
    for method, rows in judged.items():
        frame = pd.DataFrame(rows).merge(told[method][["user", "turn", "told"]], on=["user", "turn"])
        measures = {
            "profile score": frame["profile_f1"].astype(float),
            "recall": frame["n_matched"].astype(float) / frame["n_true"],
            "Theoretical Max": frame["told"] / frame["n_true"],
            "best score": 2 * frame["told"] / (frame["told"] + frame["n_true"]),
        }
        for measure, values in measures.items():
            for turn, part in values.groupby(frame["turn"]):
                found = intervals.bootstrap_interval(part.to_numpy()[:, None])
                lines.append((method, measure, int(turn), *found.scale(100)))
    return pd.DataFrame(lines, columns=["method", "measure", "turn", "value", "low", "high"])


def average_table(data: pd.DataFrame) -> pd.DataFrame:
    """The AVG line: mean over the checkpoints in percent, one row a method, one column a measure."""
    return data.groupby(["method", "measure"], sort=False)["value"].mean().unstack(sort=False).reset_index()


def window_table(judged: Mapping[str, Sequence[dict]], block: int) -> pd.DataFrame:
    """What the context window cost, by method and block of `block` turns. Mean and largest number of dropped
    turns a prompt, share of prompts that lost any, and `profiles_lost`, prompts that lost the latest profile
    block with all turns before (see `prompt_tokens.window`)."""
    frame = pd.concat([pd.DataFrame(rows).assign(method=name) for name, rows in judged.items()])
    frame["cut"] = frame["n_dropped"] > 0
    frame["lost"] = (frame["turn"] > 1) & (frame["n_dropped"] == frame["turn"] - 1)
    parts = frame.groupby(["method", _name_blocks(frame["turn"], block)], sort=False)
    dropped = {"dropped": ("n_dropped", "mean"), "most": ("n_dropped", "max")}
    return parts.agg(**dropped, prompts_cut=("cut", "mean"), profiles_lost=("lost", "sum")).reset_index()


def cost_table(lines: Sequence[dict], users: int, block: int) -> pd.DataFrame:
    """Milliseconds a user and turn by party, and memory at the end, by method and block of turns. `lines` are
    those of metrics/long_term.jsonl."""
    frame = pd.DataFrame(lines).drop_duplicates(["method", "turn"], keep="last")
    frame = frame.sort_values(["method", "turn"], kind="stable")
    parties = ("method", "user", "judges")
    frame = frame.assign(**{f"{party}_ms": 1000 * frame[f"{party}_s"] / users for party in parties})
    parts = frame.groupby(["method", _name_blocks(frame["turn"], block)], sort=False)
    means = {f"{party}_ms": (f"{party}_ms", "mean") for party in parties}
    return parts.agg(**means, memory_mb=("memory_mb", "last")).reset_index()


def growth_table(lines: Sequence[dict]) -> pd.DataFrame:
    """How time and memory grow with the turn: one row a method and quantity. `times`: mean over the last
    third of the turns over that of the middle third; `linear`: the same ratio of the turn numbers, which is
    what linear growth gives. Quantities: seconds by party, and memory."""
    frame = pd.DataFrame(lines).drop_duplicates(["method", "turn"], keep="last")
    rows = []
    for method, part in frame.sort_values("turn").groupby("method", sort=False):
        third = len(part) // 3  # NaN where it is 0
        middle, last = part.iloc[third : 2 * third], part.iloc[2 * third :]
        names = ["turn", "method_s", "user_s", "judges_s", "memory_mb"]
        linear, *times = (float(last[n].astype(float).mean() / middle[n].astype(float).mean()) for n in names)
        rows += [
            {"method": method, "quantity": name, "times": value, "linear": linear}
            for name, value in zip(names[1:], times, strict=True)
        ]
    return pd.DataFrame(rows)


def _name_blocks(turn: pd.Series, block: int) -> pd.Series:
    first = (turn - 1) // block * block + 1
    return (first.astype(str) + "-" + (first + block - 1).astype(str)).rename("turns")
