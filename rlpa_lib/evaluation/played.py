"""Table rows played with the users of benchmarks, turn by turn into the files of a run, and read back."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.judging import EvaluationJudge, Judge
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.protocols import Policy, SimulatedUser
from rlpa_lib.evaluation import scoring
from rlpa_lib.evaluation.scoring import Crowd, Part
from rlpa_lib.methods.table import Method
from rlpa_lib.runs import record
from rlpa_lib.runs.run import Run

Known = tuple[list[Dialogue], list[dict]]  # of a part, as far as it was played


def evaluate_row(
    run: Run, method: Method, benchmark: str, personas: Sequence[Persona], user: SimulatedUser,
    evaluator: EvaluationJudge, judge: Judge, version: str = "", **options: Any,
) -> list[dict]:
    """`evaluate_together` of one benchmark alone."""
    part = Part(method, benchmark, personas, user)
    return evaluate_together(run, [part], evaluator, judge, version, **options)[0]


def evaluate_together(
    run: Run, parts: Sequence[Part], evaluator: EvaluationJudge, judge: Judge, version: str = "", *,
    turns: int | None = None, swap: bool | None = None, valid: scoring.Valid | None = None,
    log: str = "evaluation", policy: Policy | None = None,
) -> list[list[dict]]:
    """The judgement rows of one table row with the users of each part, who are played in lockstep. What this
    run has played already, for these inputs and this `version` of the weights, is read back, and the rest is
    played. Every finished turn is on disk: a killed evaluation loses at most the turn that it was in.

    `turns` and `swap` are `evaluation.turns` and `evaluation.swap` unless given; `valid` as in
    `scoring.play_together`. `policy` is the method's own where it may remember prompts. Leaves
    dialogues/<method>-<benchmark>.jsonl, judgements/<method>-<benchmark>.jsonl, and seconds, tokens and
    memory a turn in metrics/<log>.jsonl. RuntimeError: the judge failed more often than
    run.max_judge_failure_rate."""
    turns = turns or run.cfg.evaluation.turns
    known = [_read_so_far(run, part, version, turns) for part in parts]
    stand = [len(talks[0].turns) if talks else 0 for talks, _ in known]
    # killed between the files of two parts: the last turn of some is played once more, in the same batch
    behind = [i for i, turn in enumerate(stand) if turn <= min(stand) + 1]
    if min(stand) < turns:
        options = {"turns": turns, "swap": run.cfg.evaluation.swap if swap is None else swap, "valid": valid}
        some = [parts[i] for i in behind], [_cut_back(known[i], min(stand)) for i in behind]
        _play(run, *some, evaluator, judge, version, log, policy, **options)
    ahead = [part for i, part in enumerate(parts) if i not in behind]
    if ahead:
        asked = {"turns": turns, "swap": swap, "valid": valid, "log": log, "policy": policy}
        evaluate_together(run, ahead, evaluator, judge, version, **asked)
    return [run.read_jsonl(f"judgements/{_name(part)}.jsonl") for part in parts]


def _name(part: Part) -> str:
    return f"{part.method.name}-{part.benchmark}"


def _read_so_far(run: Run, part: Part, version: str, turns: int) -> Known:
    """Dialogues and judgement rows up to the last turn that is finished."""
    for turn in range(turns, 0, -1):
        rows = read_finished(run, part.method.name, part.benchmark, version, turn)
        if rows is not None:
            return _cut_back((read_dialogues(run, part.method.name, part.benchmark), rows), turn)
    return [], []


def _cut_back(known: Known, turn: int) -> Known:
    talks, rows = known
    cut = [replace(d, turns=d.turns[:turn]) for d in talks] if turn else []
    return cut, [row for row in rows if row["turn"] <= turn]


def _play(
    run: Run, parts: Sequence[Part], known: Sequence[Known], evaluator: EvaluationJudge, judge: Judge,
    version: str, log: str, policy: Policy | None, *, turns: int, swap: bool, valid: scoring.Valid | None,
) -> None:
    """Play parts that stand at the same turn to the end."""
    parts = [replace(part, dialogues=talks) for part, (talks, _) in zip(parts, known, strict=True)]
    rows, cfg = [list(found) for _, found in known], run.cfg
    if hasattr(policy, "recall"):  # what another process has played (`LocalPolicy.recall`)
        _recall(policy, parts, rows, valid)
    options = {"turns": turns, "swap": swap, "valid": valid, "fallback": cfg.rollout.fallback}
    for turn in scoring.play_together(parts, evaluator, judge, seed=run.seed, **options):
        for part, own, played in zip(parts, rows, turn, strict=True):
            own += [j.to_json() for j in played.judgements]
            limit = cfg.run.max_judge_failure_rate
            _check_failures(_name(part), own, len(part.personas) * turns, limit)
            run.write_jsonl(f"dialogues/{_name(part)}.jsonl", [d.to_json() for d in played.dialogues])
            run.write_jsonl(f"judgements/{_name(part)}.jsonl", own)
            fingerprint = run.fingerprint(_name(part), version, str(played.turn))
            run.mark_done(f"evaluation/{_name(part)}", fingerprint)
            tokens = sum(j.n_tokens for j in played.judgements)
            facts = {"method": part.method.name, "benchmark": part.benchmark, "turn": played.turn}
            made = {**played.seconds, "tokens": tokens, "memory_mb": record.memory_mb()}
            run.log_metrics(log, facts | made)


def _recall(
    policy: Any, parts: Sequence[Part], rows: Sequence[Sequence[dict]], valid: scoring.Valid | None
) -> None:
    """Have the policy read again what it was asked in the turns that are known, drafts and all."""
    people = [person for part in parts for person in part.personas]
    talks = [dialogue for part in parts for dialogue in part.dialogues]
    for k in range(len(talks[0].turns) if talks else 0):
        hidden = [row["hidden"] for own in rows for row in own if row["turn"] == k + 1]
        kinds = getattr(parts[0].method, "drafts", ())
        texts = [[step["text"] for h in hidden for step in h if step["kind"] == kind] for kind in kinds]
        true = people if valid is None else [valid(person, k + 1) for person in people]
        heard = [dialogue.before(k) for dialogue in talks]
        policy.recall(lambda t=true, d=heard: Crowd(parts).answer(t, d, 0), texts)


def _check_failures(name: str, rows: Sequence[dict], planned: int, limit: float) -> None:
    """Stop as soon as the limit can no longer be kept, not when everything has been paid for."""
    failed = sum(row["score"] is None for row in rows)
    if failed > limit * planned:
        raise RuntimeError(
            f"{name}: the judge failed on {failed} of {planned} turns, "
            f"more than run.max_judge_failure_rate = {limit:g} allows"
        )


def read_finished(
    run: Run, method: str, benchmark: str, version: str = "", turns: int | None = None
) -> list[dict] | None:
    """The judgement rows of a table row when this run has finished turn K with these inputs, else None. Plays
    nothing."""
    name, turns = f"{method}-{benchmark}", turns or run.cfg.evaluation.turns
    if not run.done(f"evaluation/{name}", run.fingerprint(name, version, str(turns))):
        return None
    # A run that was killed between two files has one turn more in the first of them.
    return [row for row in run.read_jsonl(f"judgements/{name}.jsonl") if row["turn"] <= turns]


def read_dialogues(run: Run, method: str, benchmark: str) -> list[Dialogue]:
    """The dialogues that `evaluate_together` left."""
    return [Dialogue.from_json(row) for row in run.read_jsonl(f"dialogues/{method}-{benchmark}.jsonl")]


