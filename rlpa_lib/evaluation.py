"""A method meets the users of a benchmark for K turns: an (E, K) table of alignment scores with every judgement kept."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from rlpa_lib.dialogue import Dialogue
from rlpa_lib.judges import CRITERIA, EvaluationJudge, Judge, Verdict
from rlpa_lib.methods import Answer, Method
from rlpa_lib.personas import Persona
from rlpa_lib.policies import derive_seed
from rlpa_lib.profile import profile_f1
from rlpa_lib.runs import Run
from rlpa_lib.users import SimulatedUser


@dataclass(frozen=True)
class Judgement:
    """One turn of one user: the marks against the true persona, and how good the inferred profile is."""

    method: str
    benchmark: str
    user: str
    turn: int
    score: int | None
    marks: dict[str, bool] | None
    reasons: dict[str, str] | None
    format_ok: bool
    n_inferred: int
    n_matched: int
    n_true: int
    n_told: int
    n_guesses: int
    n_right_guesses: int
    n_tokens: int
    response: str

    @property
    def profile_f1(self) -> float:
        return profile_f1(self.n_inferred, self.n_true, self.n_matched)

    def to_json(self) -> dict[str, Any]:
        """All fields and the profile score, as one JSONL row."""
        return {**self.__dict__, "profile_f1": self.profile_f1}


def evaluate(
    method: Method, benchmark: str, personas: Sequence[Persona], user: SimulatedUser, evaluator: EvaluationJudge,
    judge: Judge, *, turns: int, seed: int,
) -> tuple[list[Dialogue], list[Judgement]]:
    """Play E dialogues of K turns in lockstep and judge every response (appendix C.3).

    A reply of broken format scores 0. The evaluator sees the true persona, the method only the transcript. The same
    seed, users and weights give the same judgements. A judge that could not answer leaves score None.
    """
    dialogues = [Dialogue(f"{benchmark}-{p.id}", p.id) for p in personas]
    judgements: list[Judgement] = []
    for turn in range(1, turns + 1):
        utterances = user.reply(personas, dialogues)
        dialogues = [d.heard(u) for d, u in zip(dialogues, utterances, strict=True)]
        answers = method.respond(personas, dialogues, derive_seed(seed, method.name, benchmark, turn))
        cases = [(p, d, a.reply.response) for p, d, a in zip(personas, dialogues, answers, strict=True)]
        verdicts = evaluator.evaluate(cases)
        pairs = judge.matches([(a.reply.profile, p.profile) for a, p in zip(answers, personas, strict=True)])
        rows = zip(personas, dialogues, answers, verdicts, pairs, strict=True)
        judgements += [_judgement(method.name, benchmark, turn, *row) for row in rows]
        dialogues = [d.answered(a.completion, a.reply) for d, a in zip(dialogues, answers, strict=True)]
    return dialogues, judgements


def _judgement(method: str, benchmark: str, turn: int, persona: Persona, dialogue: Dialogue, answer: Answer,
               verdict: Verdict | None, pairs: Sequence[tuple[int, int]]) -> Judgement:
    told, matched = dialogue.ledger(), dict(pairs)
    # A true slot that has not been told yet: whatever the profile says of it is a guess.
    slots = [s for s, _ in persona.profile.items]
    guesses = [i for i, (s, _) in enumerate(answer.reply.profile.items) if (slots[matched[i]] if i in matched else s) not in told]
    broken = not answer.reply.format_ok
    score = 0 if broken else None if verdict is None else verdict.score
    return Judgement(
        method, benchmark, persona.id, turn, score, verdict and verdict.marks, verdict and verdict.reasons,
        answer.reply.format_ok, len(answer.reply.profile), len(pairs), len(persona.profile), len(told), len(guesses),
        sum(i in matched for i in guesses), answer.n_tokens, answer.reply.response)


def evaluated(
    run: Run, method: Method, benchmark: str, personas: Sequence[Persona], user: SimulatedUser, evaluator: EvaluationJudge,
    judge: Judge, version: str = "",
) -> list[dict]:
    """The judgement rows of one table row; played when this run has not yet, for these inputs and this `version` of the
    weights, else read back. Leaves dialogues/<method>-<benchmark>.jsonl and judgements/<method>-<benchmark>.jsonl."""
    name = f"{method.name}-{benchmark}"
    fingerprint = run.fingerprint(name, version)
    if not run.done(f"evaluation/{name}", fingerprint):
        dialogues, judgements = evaluate(
            method, benchmark, personas, user, evaluator, judge, turns=run.cfg.evaluation.turns, seed=run.seed)
        unjudged = sum(j.score is None for j in judgements) / len(judgements)
        if unjudged > run.cfg.run.max_judge_failure_rate:
            raise RuntimeError(f"{name}: the judge failed on {unjudged:.1%} of the turns, more than run.max_judge_failure_rate")
        run.write_jsonl(f"dialogues/{name}.jsonl", [d.to_json() for d in dialogues])
        run.write_jsonl(f"judgements/{name}.jsonl", [j.to_json() for j in judgements])
        run.mark_done(f"evaluation/{name}", fingerprint)
    return run.read_jsonl(f"judgements/{name}.jsonl")


def played(run: Run, method: str, benchmark: str) -> list[Dialogue]:
    """The dialogues that `evaluated` left."""
    return [Dialogue.from_json(row) for row in run.read_jsonl(f"dialogues/{method}-{benchmark}.jsonl")]


def score_table(rows: Sequence[dict]) -> np.ndarray:
    """(E, K) scores of one method and benchmark from its judgement rows, users in order of appearance; NaN = not judged."""
    users = list(dict.fromkeys(r["user"] for r in rows))
    table = np.full((len(users), max(r["turn"] for r in rows)), np.nan)
    for row in rows:
        if row["score"] is not None:
            table[users.index(row["user"]), row["turn"] - 1] = row["score"]
    return table


def diagnostics(rows: Sequence[dict]) -> dict[str, float]:
    """What the score alone does not tell, of one method and benchmark: format, each criterion, profile, guesses, lengths."""
    guesses = sum(r["n_guesses"] for r in rows)
    judged = [r for r in rows if r["marks"]]
    return {
        "format_rate": fmean(r["format_ok"] for r in rows),
        **{c: fmean(r["marks"][c] for r in judged) for c in CRITERIA},
        "profile_f1": fmean(r["profile_f1"] for r in rows),
        "profile_recall_of_told": sum(r["n_matched"] - r["n_right_guesses"] for r in rows) / max(1, sum(r["n_told"] for r in rows)),
        "theoretical_max": fmean(r["n_told"] / r["n_true"] for r in rows),
        "guesses_per_turn": guesses / len(rows),
        "guess_precision": sum(r["n_right_guesses"] for r in rows) / guesses if guesses else float("nan"),
        "response_words": fmean(len(r["response"].split()) for r in rows),
        "distinct_responses": len({r["response"] for r in rows}) / len(rows),
        "tokens_per_turn": fmean(r["n_tokens"] for r in rows),
    }


def swap_test(rows: Sequence[dict], personas: Sequence[Persona], dialogues: Sequence[Dialogue], evaluator: EvaluationJudge) -> dict:
    """Every response judged again against another user's persona (the next one in the list): what is left of the
    score is style, what is lost is personal. Turn 1 is left out: only "Hello" has been said."""
    own = [r["score"] for r in rows if r["turn"] > 1 and r["score"] is not None]
    cases = []
    for i, dialogue in enumerate(dialogues):
        other = personas[(i + 1) % len(personas)]
        for k in range(1, len(dialogue.turns)):
            before = Dialogue(dialogue.id, dialogue.persona_id, dialogue.turns[:k], dialogue.turns[k].user)
            cases.append((other, before, dialogue.turns[k].reply.response))
    swapped = [v.score for v in evaluator.evaluate(cases) if v is not None]
    return {"own": fmean(own), "swapped": fmean(swapped), "personal_share": fmean(own) - fmean(swapped)}
