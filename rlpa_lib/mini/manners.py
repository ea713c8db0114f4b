"""How far users of the miniature cooperate, and what the difficult ones say (beyond the paper)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.mini import language
from rlpa_lib.mini import lexicon as lex


@dataclass(frozen=True)
class Manner:
    """How far a user cooperates; by default it is the paper's willing user. Chances are in [0, 1] a turn."""

    volunteers: float = 1.0  # factor on the chance to tell something unasked
    answers: float = 1.0  # chance to answer a question that it could answer
    patience: int | None = None  # so many responses without content, and it tells nothing until one has some
    contradicts: float = 0.0  # chance to say another value of what it has told, taken back a turn later
    strays: float = 0.0  # chance to talk about something or somebody else, and to tell nothing
    terse: bool = False  # bare values in place of sentences, no reactions


WILLING = Manner()
# Chosen so that a user is clearly difficult, and that ten turns still tell something; not fitted to people.
MANNERS = {
    "willing": WILLING,
    "reluctant": Manner(volunteers=0.2, answers=0.5),
    "impatient": Manner(volunteers=0.5, patience=2),
    "contradictory": Manner(contradicts=0.35),
    "off_topic": Manner(strays=0.5),
    "terse": Manner(volunteers=0.5, terse=True),
}


def count_empty_answers(dialogue: Dialogue) -> int:
    """How many responses in a row, up to the last one, said nothing of content."""
    count = 0
    for turn in reversed(dialogue.turns):
        acts = {s.template.act for options in language.parse(turn.reply.response) for s in options[:1]}
        if acts & set(language.CONTENT_ACTS):
            break
        count += 1
    return count


def draw_other_value(slot: str, value: str, speech: str, rng: random.Random) -> str | None:
    """A phrase for another value of the slot that users of this grammar may say; None where there is none."""
    if slot == "Age":
        years = lex.parse_age(value)
        return None if years is None else str(years + rng.choice((-7, -4, 5, 9)))
    split = "train" if speech.endswith("train") else "test" if slot in lex.FILES else "extended"
    others = [v for v in lex.lexicon().values(slot, split) if not lex.same_value(slot, v.canonical, value)]
    return rng.choice(rng.choice(others).forms) if others else None


def draw_slip(
    persona: Persona, dialogue: Dialogue, manner: Manner, seed: int, speech: str, turn: int
) -> tuple[str, str] | None:
    """(slot, wrong phrase) that a contradictory user says at a turn about what it told before, or None.

    A function of its arguments alone, so that a later turn knows what was said in this one.
    """
    rng = random.Random(f"slip|{seed}|{persona.id}|{turn}")
    if rng.random() >= manner.contradicts:
        return None
    told = [slot for slot, first in dialogue.ledger().items() if first < turn and slot != "Gender"]
    if not told:
        return None
    slot = rng.choice(told)
    phrase = draw_other_value(slot, persona.profile.get(slot) or "", speech, rng)
    return None if phrase is None else (slot, phrase)


def write_stray(persona: Persona, speech: str, rng: random.Random) -> str:
    """A sentence about something else, or about somebody else, whose facts are none of the user's."""
    if rng.random() < 0.5:
        frame = rng.choice(language.templates(find_manners(speech), "aside"))
        slot = frame.slots[0]
        phrase = draw_other_value(slot, persona.profile.get(slot) or "", speech, rng)
        if phrase is not None:
            return language.realise(frame, rng, {slot: phrase})
    return language.realise(rng.choice(language.templates(find_manners(speech), "chatter")), rng)


def find_manners(speech: str) -> str:
    """The grammar of what users of this speech say who do not cooperate."""
    return speech.replace("user", "manners")
