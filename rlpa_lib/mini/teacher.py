"""Scripted assistants: the mixed crowd that the tiny model imitates, and the oracle (the ceiling)."""

from __future__ import annotations

import random
from dataclasses import dataclass

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import SLOTS, Profile, Reply
from rlpa_lib.mini import language
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.mini.judge import BRIEF_WORDS, Wishes, gather_evidence

STYLES = ("careful", "generic", "forgetful", "inventive", "flattering", "curious")
# How often each style occurs per mode: assistants that were not asked for care are mostly generic.
MIX = {
    "rlpa": (0.30, 0.34, 0.10, 0.08, 0.05, 0.13), "base": (0.06, 0.64, 0.12, 0.07, 0.06, 0.05),
    "reminder": (0.50, 0.24, 0.06, 0.06, 0.04, 0.10), "revision": (0.80, 0.06, 0.02, 0.03, 0.02, 0.07),
    "rag": (0.62, 0.18, 0.04, 0.05, 0.03, 0.08),
}


@dataclass(frozen=True)
class Scene:
    """What a scripted assistant knows: facts (slot -> phrase), the user's wishes, what it said before."""

    facts: dict[str, str]
    wishes: Wishes
    asked: frozenset[str]
    said: frozenset[tuple[str, tuple]]
    first: bool


def read_scene(dialogue: Dialogue, facts: dict[str, str] | None = None) -> Scene:
    """Read a dialogue with a pending utterance; `facts` replaces what it tells (for the oracle)."""
    evidence = gather_evidence(dialogue)
    parsed = [options[0] for text in evidence.earlier for options in language.parse(text) if options]
    asked = frozenset(s.template.slots[0] for s in parsed if s.template.act == "ask")
    said = frozenset((s.template.id, s.facts) for s in parsed)
    known = dialogue.facts() if facts is None else facts
    return Scene(known, evidence.wishes, asked | evidence.told, said, not dialogue.turns)


def compose(style: str, view: Scene, rng: random.Random) -> str:
    """One response in a style: 'careful' is the good one, the others have one typical fault each."""
    opening = [_line("greet", rng)] if view.first and rng.random() < 0.8 else []
    if style == "careful":
        return _compose_careful(view, opening, rng)
    if style == "flattering":
        return " ".join([_line("flatter", rng), *opening, _question(view, rng, fresh=True)])
    if style == "forgetful":
        told = sorted(view.facts) or list(SLOTS)
        slot = rng.choice([s for s in told if s in SLOTS] or list(SLOTS))
        return " ".join([*opening, _remark(rng), _line("ask", rng, slot)])
    if style == "inventive":
        slot = rng.choice([s for s in SLOTS if s not in ("Age", "Gender")])
        phrase = rng.choice(rng.choice(lex.load_lexicon().values(slot, "train")).forms)
        claim = _about(rng.choice(["ack", "suggest"]), slot, phrase, rng)
        return " ".join([*opening, claim, _question(view, rng, fresh=True)])
    if style == "curious":
        fact = _pick_fact(view, rng)
        return " ".join([*opening, _about("detail", *fact, rng) if fact else _line("open", rng)])
    parts = [_remark(rng)] if not opening or rng.random() < 0.3 else []
    tail = _question(view, rng, fresh=rng.random() < 0.5) if rng.random() < 0.7 else _line("invite", rng)
    return " ".join([*opening, *parts, tail])


def _compose_careful(view: Scene, opening: list[str], rng: random.Random) -> str:
    best = ""
    for _ in range(6):
        fact = _pick_fact(view, rng)
        act = "suggest" if view.wishes.advice else rng.choice(["ack", "suggest"])
        body = [_about(act, *fact, rng)] if fact else []
        tail = _question(view, rng, fresh=True) if rng.random() < 0.75 or not fact else _turn_back(view, rng)
        best = " ".join([*opening, *body, tail])
        seen = any((o[0].template.id, o[0].facts) in view.said for o in language.parse(best) if o)
        too_long = view.wishes.brief and len(best.split()) > BRIEF_WORDS
        if not seen and not too_long and not (view.wishes.calm and "!" in best):
            break
    return best


def _turn_back(view: Scene, rng: random.Random) -> str:
    fact = _pick_fact(view, rng)
    return _about("detail", *fact, rng) if fact and rng.random() < 0.6 else _line("invite", rng)


def _question(view: Scene, rng: random.Random, fresh: bool) -> str:
    """A question; a `fresh` one avoids what is known, asked or private, and may be an open one."""
    known = {*view.asked, *view.facts, view.wishes.private}
    slots = [s for s in SLOTS if not fresh or s not in known]
    return _line("ask", rng, rng.choice(slots)) if slots else _line(rng.choice(["open", "invite"]), rng)


def _pick_fact(view: Scene, rng: random.Random) -> tuple[str, str] | None:
    """A known fact that some frame fits; the latest ones are likelier."""
    usable = [(s, p) for s, p in view.facts.items() if language.list_frame_slots(s)]
    if not usable:
        return None
    slot, phrase = rng.choices(usable, weights=range(1, len(usable) + 1))[0]
    return language.list_frame_slots(slot)[0], phrase


def _about(act: str, slot: str, phrase: str, rng: random.Random) -> str:
    return language.realise(rng.choice(language.find_templates("assistant", act, slot)), rng, {slot: phrase})


def _remark(rng: random.Random) -> str:
    return rng.choice([_line("plain", rng), _line("info", rng)])


def _line(act: str, rng: random.Random, slot: str = "") -> str:
    return language.realise(rng.choice(language.find_templates("assistant", act, slot)), rng)


def write_profile(
    dialogue: Dialogue, previous: Profile | None, diligence: float, rng: random.Random
) -> Profile:
    """A crowd member's profile: each fact told so far with probability `diligence`, kept once noted.

    Now and then it guesses: guesses pay under F1, so the crowd must show that they exist. Slots stand in
    their usual order: a small model that writes them as they came loses its place and repeats a slot.
    """
    kept = dict(previous.items) if previous else {}
    for slot, phrase in dialogue.facts().items():
        if slot in kept or rng.random() < diligence:
            kept[slot] = phrase
    if rng.random() < 0.04:
        slot = rng.choice(SLOTS)
        kept.setdefault(slot, draw_spoken_value(slot, rng))
    return Profile(sort_by_slot(kept))


def draw_spoken_value(slot: str, rng: random.Random) -> str:
    """Any training value of one of the ten slots, as a user might say it."""
    if slot == "Age":
        return rng.choice(language.list_forms("Age", str(rng.randint(18, 82))))
    if slot == "Gender":
        return rng.choice(language.list_forms("Gender", rng.choice(sorted(lex.GENDERS))))
    return rng.choice(rng.choice(lex.load_lexicon().values(slot, "train")).forms)


def sort_by_slot(items: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Items in the order of SLOTS, other slots behind them."""
    order = [*(slot for slot in SLOTS if slot in items), *(slot for slot in items if slot not in SLOTS)]
    return tuple((slot, items[slot]) for slot in order)


def reply_with_care(dialogue: Dialogue, rng: random.Random) -> Reply:
    """The careful assistant's reply; its profile is what has been told, in the user's words."""
    told = Profile(tuple(dialogue.facts().items()))
    return Reply(told, compose("careful", read_scene(dialogue), rng), True)


def write_pair(dialogue: Dialogue, rng: random.Random) -> tuple[str, str]:
    """(preferred, rejected) responses: the careful assistant's and the generic one's."""
    view = read_scene(dialogue)
    preferred = compose("careful", view, rng)
    generic = (compose("generic", view, rng) for _ in range(8))
    return preferred, next((response for response in generic if response != preferred), preferred)


def write_oracle_reply(persona: Persona, dialogue: Dialogue, rng: random.Random) -> Reply:
    """The ceiling: notes the true profile and uses what was told or, before that, what is true."""
    told = dialogue.facts()
    facts = told or {s: rng.choice(language.list_forms(s, v)) for s, v in persona.profile.items}
    return Reply(persona.profile, _compose_careful(read_scene(dialogue, facts), [], rng), True)
