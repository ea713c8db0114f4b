"""What a run will ask of the policy, the simulated users and the judges, counted before it is paid for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from rlpa_lib.config import Config
from rlpa_lib.schema import WITH_PROFILE, Prompting

_COLUMNS = ("notebook", "completions", "tokens", "utterances", "judgements")


@dataclass(frozen=True)
class Load:
    """Counts for one notebook: policy completions, upper bound of generated tokens, user utterances, judgements."""

    notebook: str
    completions: int
    tokens: int
    utterances: int
    judgements: int


def plan(cfg: Config) -> list[Load]:
    """One row per notebook that generates; a judgement is one profile match or one response verdict."""
    own = [m for m in cfg.evaluation.methods if m in get_args(Prompting)]
    others = [m for m in cfg.evaluation.methods if m not in own]
    comparators = [c.method for c in cfg.evaluation.comparators.values()]
    # 30_evaluation reads back the rows that 10_prompting_baselines has played.
    rows = [_evaluation(cfg, "10_prompting_baselines", own), _ppo(cfg), _evaluation(cfg, "30_evaluation", [*others, *comparators])]
    return [row for row in rows if row.utterances]


def table(cfg: Config) -> str:
    """The plan as text with a total."""
    rows = plan(cfg)
    total = Load("total", *(sum(getattr(row, name) for row in rows) for name in _COLUMNS[1:]))
    lines = [("notebook", "completions", "tokens at most", "user utterances", "judgements")]
    lines += [(row.notebook, *(f"{getattr(row, name):,}" for name in _COLUMNS[1:])) for row in (*rows, total)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)])
        for line in lines
    )


def _ppo(cfg: Config) -> Load:
    rollout = cfg.rollout
    turns = cfg.ppo.iterations * rollout.users * rollout.turns
    completions = turns * rollout.samples
    # independent samples are dialogues of their own, each with its own user
    utterances = completions if rollout.continuation == "independent" else turns
    # profile and response are both judged, also when only one of them is rewarded
    return Load("20_ppo", completions, completions * rollout.max_new_tokens, utterances, 2 * completions)


def _evaluation(cfg: Config, notebook: str, methods: Sequence[str]) -> Load:
    evaluation = cfg.evaluation
    sizes = {"vanilla": evaluation.users, "extended": evaluation.extended_users or evaluation.users}
    turns = sum(sizes[benchmark] for benchmark in evaluation.benchmarks) * evaluation.turns
    completions = turns * sum(_calls(cfg, method) for method in methods)
    # Evaluation, the swap test, and for those that write one the match of the profile with the true one.
    judged = sum(1 + evaluation.swap + (method in WITH_PROFILE) for method in methods)
    return Load(notebook, completions, completions * cfg.rollout.max_new_tokens, turns * len(methods), turns * judged)


def _calls(cfg: Config, method: str) -> int:
    """Model calls behind one answer that the user sees: self-critic drafts, criticises and rewrites (appendix D.2)."""
    if method in ("random", "oracle"):
        return int(cfg.evaluator.kind != "rule")  # the miniature's controls are scripts
    return 3 if method == "self_critic" else 1
