"""The only turn loop: the user speaks, the policy answers, a judge may judge (section 3.1)."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.protocols import SimulatedUser

# Both get E personas and E dialogues with the user's utterance pending, and return one item per dialogue.
Answer = Callable[[Sequence[Persona], Sequence[Dialogue]], Sequence[Any]]
Judging = Callable[[Sequence[Persona], Sequence[Dialogue], Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True)
class PlayedTurn:
    """One turn of E dialogues, before the answers (`heard`, the utterance pending) and after (`dialogues`);
    `seconds` that users, answers and judges took."""

    turn: int
    heard: list[Dialogue]
    answers: Sequence[Any]
    judgements: Sequence[Any]
    dialogues: list[Dialogue]
    seconds: dict[str, float]


def play_turn(
    personas: Sequence[Persona], dialogues: Sequence[Dialogue], user: SimulatedUser, answer: Answer,
    judge: Judging | None = None, *, judge_chooses: bool = False, fallback: str | None = None,
    persona_at: Callable[[Persona, int], Persona] | None = None,
) -> PlayedTurn:
    """One turn of E dialogues in lockstep, each with its persona.

    The dialogue continues with the answer, or with `judge_chooses` with what the judge picks among several
    samples: its `completion`, the text as sampled, and its `reply` as parsed from it. `fallback` replaces a
    reply with a broken format (`Dialogue.answer`). `persona_at` gives answers and judges the persona of a
    turn (from 1) if it changes in mid-dialogue.
    """
    turn, clock = len(dialogues[0].turns) + 1, [time.perf_counter()]
    heard = [d.hear(u) for d, u in zip(dialogues, user.reply(personas, dialogues), strict=True)]
    now = personas if persona_at is None else [persona_at(p, turn) for p in personas]
    clock.append(time.perf_counter())
    answers = answer(now, heard)
    clock.append(time.perf_counter())
    judgements = judge(now, heard, answers) if judge else ()
    clock.append(time.perf_counter())
    spoken = judgements if judge_chooses else answers
    after = [d.answer(s.completion, s.reply, fallback) for d, s in zip(heard, spoken, strict=True)]
    lasted = (end - begin for begin, end in pairwise(clock))
    seconds = dict(zip(("user_s", "method_s", "judges_s"), lasted, strict=True))
    return PlayedTurn(turn, heard, answers, judgements, after, seconds)


def play_turns(
    personas: Sequence[Persona], dialogues: Sequence[Dialogue], user: SimulatedUser, answer: Answer,
    judge: Judging | None = None, *, turns: int, **options: Any,
) -> Iterator[PlayedTurn]:
    """Play E dialogues from where they stand up to turn K (`turns`); `options` as in `play_turn`."""
    for _ in range(len(dialogues[0].turns) if dialogues else turns, turns):
        played = play_turn(personas, dialogues, user, answer, judge, **options)
        dialogues = played.dialogues
        yield played
