"""A method meets the users of a benchmark for K turns: an (E, K) table of alignment scores with every
judgement kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.judging import EvaluationJudge, Judge, Verdict
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.protocols import Policy, SimulatedUser
from rlpa_lib.dialogue.turns import PlayedTurn, play_turns
from rlpa_lib.methods.table import Answer, Method
from rlpa_lib.rlpa.rewards import profile_f1
from rlpa_lib.runs import record
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed

if TYPE_CHECKING:
    from rlpa_lib.agents.local_policy import LocalPolicy

Valid = Callable[[Persona, int], Persona]  # the persona that holds at a turn (from 1)


@dataclass(frozen=True)
class Judgement:
    """One turn of one user: the marks against the true persona, and how good the inferred profile is.

    `score` is 0 for a broken format, which no judge is asked about, and None where the judge failed.
    `swapped_score` is the same response judged against another user's persona. `n_matched` is None where the
    profile judge failed. `hidden` are the method's steps before the answer, which nobody judged; `n_tokens`
    counts theirs, too. `dimensions` are the four of section 3.3 where the judge marks them. The prompt had no
    room for the `n_dropped` oldest turns; where these are all turns before this one, the latest profile block
    was lost with them.
    """

    method: str
    benchmark: str
    user: str
    turn: int
    score: int | None
    marks: dict[str, bool] | None
    reasons: dict[str, str] | None
    format_ok: bool
    n_inferred: int
    n_matched: int | None
    n_true: int
    n_told: int
    n_guesses: int
    n_right_guesses: int
    n_tokens: int
    response: str
    swapped_user: str | None = None
    swapped_score: int | None = None
    hidden: tuple[dict[str, Any], ...] = ()
    dimensions: dict[str, bool] = field(default_factory=dict)
    n_dropped: int = 0

    @property
    def profile_f1(self) -> float | None:
        """Eq. 3 against the true profile."""
        return None if self.n_matched is None else profile_f1(self.n_inferred, self.n_true, self.n_matched)

    def to_json(self) -> dict[str, Any]:
        """All fields and the profile score, as one JSONL row."""
        return {**self.__dict__, "profile_f1": self.profile_f1}


def play(
    method: Method, benchmark: str, personas: Sequence[Persona], user: SimulatedUser,
    evaluator: EvaluationJudge, judge: Judge, *, turns: int, seed: int, swap: bool = True,
    dialogues: Sequence[Dialogue] | None = None, valid: Valid | None = None, fallback: str | None = None,
) -> Iterator[PlayedTurn]:
    """Play E dialogues in lockstep up to turn K and judge every response (appendix C.3); goes on where
    `dialogues` stop.

    The evaluator sees the true persona, the method only the transcript. A turn depends on seed, users,
    weights and the dialogues so far, so going on gives what playing through would have given. With `swap`
    each response is judged a second time, against the next user's persona. `valid` gives the persona that
    holds at a turn, where it changes in mid-dialogue: judges and controls see that one. `fallback`: see
    `Dialogue.answer`. The judgements of a turn are one `Judgement` a user.
    """
    start = (
        [Dialogue(f"{benchmark}-{p.id}", p.id) for p in personas] if dialogues is None else list(dialogues)
    )

    def answer(true: Sequence[Persona], heard: Sequence[Dialogue]) -> list[Answer]:
        return method.respond(true, heard, derive_seed(seed, method.name, benchmark, len(heard[0].turns) + 1))

    def score(
        true: Sequence[Persona], heard: Sequence[Dialogue], answers: Sequence[Answer]
    ) -> list[Judgement]:
        return _judge(method.name, benchmark, true, heard, answers, evaluator, judge, swap)

    return play_turns(personas, start, user, answer, score, turns=turns, fallback=fallback, persona_at=valid)


def evaluate(
    method: Method, benchmark: str, personas: Sequence[Persona], user: SimulatedUser,
    evaluator: EvaluationJudge, judge: Judge, *, turns: int, seed: int, swap: bool = True,
    valid: Valid | None = None,
) -> tuple[list[Dialogue], list[Judgement]]:
    """All K turns of `play`: the finished dialogues and E x K judgements."""
    options = {"turns": turns, "seed": seed, "swap": swap, "valid": valid}
    played = list(play(method, benchmark, personas, user, evaluator, judge, **options))
    return played[-1].dialogues, [j for part in played for j in part.judgements]


def _judge(
    method: str, benchmark: str, personas: Sequence[Persona], dialogues: Sequence[Dialogue],
    answers: Sequence[Answer], evaluator: EvaluationJudge, judge: Judge, swap: bool,
) -> list[Judgement]:
    """Both judgements of every response go to the evaluator in one batch."""
    asked = [i for i, a in enumerate(answers) if a.reply.format_ok]
    cases = [(personas[i], dialogues[i], answers[i].reply.response) for i in asked]
    swap = swap and len(personas) > 1
    others = [personas[(i + 1) % len(personas)] for i in range(len(personas))]
    swapped_cases = [(others[i], dialogues[i], answers[i].reply.response) for i in asked] if swap else []
    verdicts = evaluator.evaluate([*cases, *swapped_cases])
    own = dict(zip(asked, verdicts, strict=False))
    swapped = dict(zip(asked, verdicts[len(cases) :], strict=False))
    pairs = judge.matches([(a.reply.profile, p.profile) for a, p in zip(answers, personas, strict=True)])
    rows = []
    for i, (persona, dialogue, answer) in enumerate(zip(personas, dialogues, answers, strict=True)):
        row = _judgement(method, benchmark, persona, dialogue, answer, own.get(i), pairs[i])
        if swap:
            row = replace(row, swapped_user=others[i].id, swapped_score=_score(answer, swapped.get(i)))
        rows.append(row)
    return rows


def _score(answer: Answer, verdict: Verdict | None) -> int | None:
    if not answer.reply.format_ok:
        return 0
    return None if verdict is None else verdict.score


def _judgement(
    method: str, benchmark: str, persona: Persona, dialogue: Dialogue, answer: Answer,
    verdict: Verdict | None, pairs: Sequence[tuple[int, int]] | None,
) -> Judgement:
    told, matched, inferred = dialogue.ledger(), dict(pairs or ()), answer.reply.profile
    # A true slot that has not been told yet: whatever the profile says of it is a guess.
    slots = persona.profile.slots()
    guesses = [
        i for i, s in enumerate(inferred.slots()) if (slots[matched[i]] if i in matched else s) not in told
    ]
    return Judgement(
        method=method, benchmark=benchmark, user=persona.id, turn=len(dialogue.turns) + 1,
        score=_score(answer, verdict), marks=verdict and verdict.marks, reasons=verdict and verdict.reasons,
        format_ok=answer.reply.format_ok, n_inferred=len(inferred),
        n_matched=None if pairs is None else len(pairs), n_true=len(persona.profile), n_told=len(told),
        n_guesses=len(guesses), n_right_guesses=sum(i in matched for i in guesses), n_tokens=answer.n_tokens,
        response=answer.reply.response, hidden=tuple({**vars(step)} for step in answer.hidden),
        dimensions=dict(verdict.dimensions) if verdict else {}, n_dropped=answer.n_dropped,
    )


def evaluate_row(
    run: Run, method: Method, benchmark: str, personas: Sequence[Persona], user: SimulatedUser,
    evaluator: EvaluationJudge, judge: Judge, version: str = "", *, turns: int | None = None,
    swap: bool | None = None, valid: Valid | None = None, log: str = "evaluation",
    policy: Policy | None = None,
) -> list[dict]:
    """The judgement rows of one table row. What this run has played already, for these inputs and this
    `version` of the weights, is read back, and the rest is played. Every finished turn is on disk: a killed
    evaluation loses at most the turn that it was in.

    `turns` and `swap` are `evaluation.turns` and `evaluation.swap` unless given; `valid` as in `play`.
    `policy` is the method's own where it may remember prompts. Leaves dialogues/<method>-<benchmark>.jsonl,
    judgements/<method>-<benchmark>.jsonl, and seconds, tokens and memory a turn in metrics/<log>.jsonl.
    RuntimeError: the judge failed more often than run.max_judge_failure_rate.
    """
    name, cfg = f"{method.name}-{benchmark}", run.cfg
    turns, swap = turns or cfg.evaluation.turns, cfg.evaluation.swap if swap is None else swap
    dialogues, rows = _so_far(run, name, version, turns)
    if dialogues and hasattr(policy, "recall"):
        recall_turns(policy, method, personas, dialogues, valid)
    parties = (method, benchmark, personas, user, evaluator, judge)
    options = {
        "turns": turns, "seed": run.seed, "swap": swap, "valid": valid, "fallback": cfg.rollout.fallback,
    }
    for part in play(*parties, dialogues=dialogues, **options):
        rows += [j.to_json() for j in part.judgements]
        _check_failures(name, rows, len(personas) * turns, cfg.run.max_judge_failure_rate)
        run.write_jsonl(f"dialogues/{name}.jsonl", [d.to_json() for d in part.dialogues])
        run.write_jsonl(f"judgements/{name}.jsonl", rows)
        run.mark_done(f"evaluation/{name}", run.fingerprint(name, version, str(part.turn)))
        tokens = sum(j.n_tokens for j in part.judgements)
        facts = {
            "method": method.name, "benchmark": benchmark, "turn": part.turn, **part.seconds,
            "tokens": tokens,
        }
        run.log_metrics(log, {**facts, "memory_mb": record.memory_mb()})
    return run.read_jsonl(f"judgements/{name}.jsonl")


def recall_turns(
    policy: LocalPolicy, method: Method, personas: Sequence[Persona], dialogues: Sequence[Dialogue],
    valid: Valid | None = None,
) -> None:
    """Let a policy that remembers prompts read those of the turns that another process has played
    (`LocalPolicy.recall`)."""
    for k in range(len(dialogues[0].turns)):
        true = personas if valid is None else [valid(p, k + 1) for p in personas]
        policy.recall(lambda true=true, k=k: method.respond(true, [d.before(k) for d in dialogues], seed=0))


def _so_far(run: Run, name: str, version: str, turns: int) -> tuple[list[Dialogue] | None, list[dict]]:
    """Dialogues and judgement rows of the turns that this run has finished with these inputs; (None, []) for
    none."""
    for turn in range(turns, 0, -1):
        if run.done(f"evaluation/{name}", run.fingerprint(name, version, str(turn))):
            # A run that was killed between two files has one turn more in the first of them.
            dialogues = [Dialogue.from_json(row) for row in run.read_jsonl(f"dialogues/{name}.jsonl")]
            rows = [row for row in run.read_jsonl(f"judgements/{name}.jsonl") if row["turn"] <= turn]
            return [replace(d, turns=d.turns[:turn]) for d in dialogues], rows
    return None, []


def read_finished(
    run: Run, method: str, benchmark: str, version: str = "", turns: int | None = None
) -> list[dict] | None:
    """The judgement rows of a table row when all its turns are played with these inputs, else None. Plays
    nothing."""
    turns = turns or run.cfg.evaluation.turns
    dialogues, rows = _so_far(run, f"{method}-{benchmark}", version, turns)
    return rows if dialogues and len(dialogues[0].turns) == turns else None


def _check_failures(name: str, rows: Sequence[dict], planned: int, limit: float) -> None:
    """Stop as soon as the limit can no longer be kept, not when everything has been paid for."""
    failed = sum(row["score"] is None for row in rows)
    if failed > limit * planned:
        raise RuntimeError(
            f"{name}: the judge failed on {failed} of {planned} turns, "
            f"more than run.max_judge_failure_rate = {limit:g} allows"
        )


def read_dialogues(run: Run, method: str, benchmark: str) -> list[Dialogue]:
    """The dialogues that `evaluate_row` left."""
    return [Dialogue.from_json(row) for row in run.read_jsonl(f"dialogues/{method}-{benchmark}.jsonl")]


def score_table(rows: Sequence[dict], field: str = "score") -> np.ndarray:
    """(E, K) scores of one method and benchmark from its judgement rows, users in order of appearance; NaN =
    not judged."""
    users = {user: place for place, user in enumerate(dict.fromkeys(r["user"] for r in rows))}
    table = np.full((len(users), max(r["turn"] for r in rows)), np.nan)
    for row in rows:
        if row[field] is not None:
            table[users[row["user"]], row["turn"] - 1] = row[field]
    return table
