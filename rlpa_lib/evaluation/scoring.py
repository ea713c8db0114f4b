"""A method meets the users of a benchmark for K turns, and every response is judged (appendix C.3)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.judging import EvaluationJudge, Judge, Verdict
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.protocols import SimulatedUser
from rlpa_lib.dialogue.turns import PlayedTurn, play_turns
from rlpa_lib.methods.table import Answer, Method, respond_together
from rlpa_lib.rlpa.rewards import profile_f1
from rlpa_lib.runs.seeds import derive_seed

Valid = Callable[[Persona, int], Persona]  # the persona that holds at a turn (from 1)


@dataclass(frozen=True)
class Judgement:
    """One turn of one user: the marks against the true persona, and how good the inferred profile is.

    `score` is 0 for a broken format, which no judge is asked about, and None where the judge failed.
    `swapped_score` is the same response judged against another user's persona. `n_matched` is None where the
    profile judge failed. `hidden` are the method's steps before the answer, which nobody judged; `n_tokens`
    counts theirs, too. `dimensions` are the four of section 3.3 where the judge marks them. The prompt had no
    room for the `n_dropped` oldest turns; where these are all turns before this one, the latest profile block
    was lost with them."""

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


@dataclass(frozen=True)
class Part:
    """The users of one benchmark, who answers them, who speaks for them, and their dialogues so far (none:
    from the beginning)."""

    method: Method
    benchmark: str
    personas: Sequence[Persona]
    user: SimulatedUser
    dialogues: Sequence[Dialogue] = ()

    def start(self) -> list[Dialogue]:
        """Where its dialogues go on."""
        return list(self.dialogues) or [Dialogue(f"{self.benchmark}-{p.id}", p.id) for p in self.personas]


@dataclass(frozen=True)
class Crowd:
    """The users of several parts in one row, and each part's share of what belongs to the row."""

    parts: Sequence[Part]

    def reply(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue]) -> list[Utterance]:
        """The next utterance of every user, by the simulated user of its part."""
        return self.each(lambda part, *share: part.user.reply(*share), personas, dialogues)

    def answer(self, personas: Sequence[Persona], heard: Sequence[Dialogue], seed: int) -> list[Answer]:
        """The answers to all of them, each part's drawn with a seed of its own."""
        turn = len(heard[0].turns) + 1
        cases = [
            (part.method, *share, derive_seed(seed, part.method.name, part.benchmark, turn))
            for part, *share in zip(self.parts, self._cut(personas), self._cut(heard), strict=True)
        ]
        return [answer for answers in respond_together(cases) for answer in answers]

    def each(self, function: Callable[..., Sequence[Any]], *everything: Sequence[Any]) -> list[Any]:
        """`function(part, its share of each)` of every part, in a row."""
        shares = zip(self.parts, *map(self._cut, everything), strict=True)
        return [item for part, *share in shares for item in function(part, *share)]

    def split(self, played: PlayedTurn) -> list[PlayedTurn]:
        """The turn as each part has seen it."""
        names, turns = ("heard", "answers", "judgements", "dialogues"), []
        for *share, part in zip(*(self._cut(getattr(played, n)) for n in names), self.parts, strict=True):
            portion = len(part.personas) / len(played.heard)
            seconds = {who: lasted * portion for who, lasted in played.seconds.items()}
            turns.append(replace(played, **dict(zip(names, share, strict=True)), seconds=seconds))
        return turns

    def _cut(self, items: Sequence[Any]) -> Iterator[Sequence[Any]]:
        rest = iter(items)
        return (list(islice(rest, len(part.personas))) for part in self.parts)


def play(
    method: Method, benchmark: str, personas: Sequence[Persona], user: SimulatedUser,
    evaluator: EvaluationJudge, judge: Judge, *, dialogues: Sequence[Dialogue] | None = None, **options: Any,
) -> Iterator[PlayedTurn]:
    """`play_together` of one benchmark alone; its dialogues go on where `dialogues` stop."""
    part = Part(method, benchmark, personas, user, dialogues or ())
    for [played] in play_together([part], evaluator, judge, **options):
        yield played


def play_together(
    parts: Sequence[Part], evaluator: EvaluationJudge, judge: Judge, *, turns: int, seed: int,
    swap: bool = True, valid: Valid | None = None, fallback: str | None = None,
) -> Iterator[list[PlayedTurn]]:
    """Play the dialogues of all parts in lockstep up to turn K, a `PlayedTurn` a part; all parts stand at the
    same turn. A turn's judgements are one `Judgement` a user, its seconds those of all by numbers of users.

    Methods that share a policy ask it in one batch; each part is seeded, judged and swapped by itself, so
    that it gets what it would get alone, up to the rounding of another batch. The evaluator sees the true
    persona, the method only the transcript. A turn depends on seed, users, weights and the dialogues so far,
    so going on gives what playing through would have given. With `swap` each response is judged a second
    time, against the next user's persona. `valid` gives the persona that holds at a turn, where it changes in
    mid-dialogue: judges and controls see that one. `fallback`: see `Dialogue.answer`."""
    crowd = Crowd(parts)
    people, start = crowd.each(lambda part: part.personas), crowd.each(Part.start)

    def answer(true: Sequence[Persona], heard: Sequence[Dialogue]) -> list[Answer]:
        return crowd.answer(true, heard, seed)

    def score(*everything: Sequence[Any]) -> list[Judgement]:
        return crowd.each(partial(_judge, evaluator, judge, swap), *everything)

    options = {"turns": turns, "fallback": fallback, "persona_at": valid}
    for played in play_turns(people, start, crowd, answer, score, **options):
        yield crowd.split(played)


def evaluate(
    method: Method, benchmark: str, personas: Sequence[Persona], user: SimulatedUser,
    evaluator: EvaluationJudge, judge: Judge, **options: Any,
) -> tuple[list[Dialogue], list[Judgement]]:
    """All K turns of `play`, with its options: the finished dialogues and E x K judgements."""
    played = list(play(method, benchmark, personas, user, evaluator, judge, **options))
    return played[-1].dialogues, [j for part in played for j in part.judgements]


def _judge(
    evaluator: EvaluationJudge, judge: Judge, swap: bool, part: Part,
    personas: Sequence[Persona], dialogues: Sequence[Dialogue], answers: Sequence[Answer],
) -> list[Judgement]:
    """Both judgements of every response go to the evaluator in one batch."""
    asked = [i for i, a in enumerate(answers) if a.reply.format_ok]
    others = [*personas[1:], personas[0]] if swap and len(personas) > 1 else []
    everybody = [personas, others] if others else [personas]
    verdicts = evaluator.evaluate(
        [(people[i], dialogues[i], answers[i].reply.response) for people in everybody for i in asked]
    )
    own = dict(zip(asked, verdicts, strict=False))
    swapped = dict(zip(asked, verdicts[len(asked) :], strict=False))
    pairs = judge.matches([(a.reply.profile, p.profile) for a, p in zip(answers, personas, strict=True)])
    rows = []
    for i, (persona, dialogue, answer) in enumerate(zip(personas, dialogues, answers, strict=True)):
        told, inferred, verdict = dialogue.ledger(), answer.reply.profile, own.get(i)
        slots, matched = persona.profile.slots(), dict(pairs[i] or ())
        # A true slot that has not been told yet: whatever the profile says of it is a guess.
        guesses = [
            j for j, slot in enumerate(inferred.slots())
            if (slots[matched[j]] if j in matched else slot) not in told
        ]  # fmt: skip
        rows.append(Judgement(
            method=part.method.name, benchmark=part.benchmark, user=persona.id, turn=len(dialogue.turns) + 1,
            score=_score(answer, verdict), marks=verdict and verdict.marks,
            reasons=verdict and verdict.reasons, format_ok=answer.reply.format_ok, n_inferred=len(inferred),
            n_matched=None if pairs[i] is None else len(pairs[i]), n_true=len(persona.profile),
            n_told=len(told), n_guesses=len(guesses), n_right_guesses=sum(j in matched for j in guesses),
            n_tokens=answer.n_tokens, response=answer.reply.response,
            swapped_user=others[i].id if others else None,
            swapped_score=_score(answer, swapped.get(i)) if others else None,
            hidden=tuple({**vars(step)} for step in answer.hidden),
            dimensions=dict(verdict.dimensions) if verdict else {}, n_dropped=answer.n_dropped,
        ))  # fmt: skip
    return rows


def _score(answer: Answer, verdict: Verdict | None) -> int | None:
    if not answer.reply.format_ok:
        return 0
    return None if verdict is None else verdict.score
