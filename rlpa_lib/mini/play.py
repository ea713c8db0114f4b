"""Whole dialogues with the scripted careful assistant, and the moments of which a dialogue consists: the yardstick for user and judges."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pandas as pd

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.protocols import SimulatedUser
from rlpa_lib.mini.teacher import compose, scene
from rlpa_lib.mini.user import temperament, theoretical_max


def careful_reply(dialogue: Dialogue, rng: random.Random) -> Reply:
    """What the careful assistant says to the pending utterance: the profile is what has been told, in the user's words."""
    return Reply(Profile(tuple(dialogue.facts().items())), compose("careful", scene(dialogue), rng), True)


def play_careful(personas: Sequence[Persona], user: SimulatedUser, turns: int, seed: int) -> list[Dialogue]:
    """E dialogues of K finished turns in lockstep; it sees the transcript alone. The same arguments give the same dialogues."""
    dialogues = [Dialogue(p.id, p.id) for p in personas]
    for turn in range(1, turns + 1):
        dialogues = [d.hear(u) for d, u in zip(dialogues, user.reply(personas, dialogues), strict=True)]
        replies = [careful_reply(d, random.Random(f"careful|{seed}|{d.id}|{turn}")) for d in dialogues]
        dialogues = [d.answer(r.response, r) for d, r in zip(dialogues, replies, strict=True)]
    return dialogues


def moments(dialogue: Dialogue) -> list[tuple[Dialogue, Reply]]:
    """(dialogue with the pending utterance, the reply that it got) for each of its K turns."""
    return [
        (Dialogue(dialogue.id, dialogue.persona_id, dialogue.turns[:k], turn.user), turn.reply) for k, turn in enumerate(dialogue.turns)
    ]


def reveal_table(personas: Sequence[Persona], dialogues: Sequence[Dialogue]) -> pd.DataFrame:
    """The share of the profile revealed up to each turn, in [0, 1] (section 5.3): columns user, pace, turn, new_slots, share."""
    rows = []
    for persona, dialogue in zip(personas, dialogues, strict=True):
        for before, _ in moments(dialogue):
            turn, new = len(before.turns) + 1, len(before.pending.stated)
            rows.append((persona.id, temperament(persona).pace, turn, new, theoretical_max(persona, before)))
    return pd.DataFrame(rows, columns=["user", "pace", "turn", "new_slots", "share"])
