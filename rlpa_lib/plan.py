"""What a run will ask of the policy, the simulated users and the judges, counted before it is paid for."""

from __future__ import annotations

from dataclasses import dataclass

from rlpa_lib.config import Config

# Model calls behind one answer that the user sees: self-critic drafts, criticises and rewrites (appendix D.2).
_CALLS = {"self_critic": 3, "oracle": 0, "random": 0}
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
    return [_ppo(cfg), _evaluation(cfg)]


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


def _evaluation(cfg: Config) -> Load:
    evaluation = cfg.evaluation
    turns = evaluation.users * evaluation.turns * len(evaluation.benchmarks)
    answers = turns * len(evaluation.methods)
    completions = turns * sum(_CALLS.get(method, 1) for method in evaluation.methods)
    return Load("30_evaluation", completions, completions * cfg.rollout.max_new_tokens, answers, answers)
