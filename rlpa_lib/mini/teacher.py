"""Scripted assistants of the miniature: the mixed crowd that the tiny model imitates, the oracle (a ceiling for every
figure) and the random control (a floor)."""
from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.profile import SLOTS, Profile
from rlpa_lib.mini import language
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.mini.judge import BRIEF_WORDS, Wishes, transcript_evidence

STYLES = ("careful", "generic", "forgetful", "inventive", "flattering", "curious")
# How often each style occurs per mode: assistants that were not asked for care are mostly generic.
MIX = {"base": (0.06, 0.64, 0.12, 0.07, 0.06, 0.05), "rlpa": (0.30, 0.34, 0.10, 0.08, 0.05, 0.13),
       "reminder": (0.50, 0.24, 0.06, 0.06, 0.04, 0.10), "revision": (0.80, 0.06, 0.02, 0.03, 0.02, 0.07),
       "rag": (0.62, 0.18, 0.04, 0.05, 0.03, 0.08)}


@dataclass(frozen=True)
class Scene:
    """What a scripted assistant works from: known facts (slot -> phrase), the user's wishes, and what it said before."""

    facts: dict[str, str]
    wishes: Wishes
    asked: frozenset[str]
    said: frozenset[tuple[str, tuple]]
    first: bool


def scene(dialogue: Dialogue, facts: dict[str, str] | None = None) -> Scene:
    """Read a dialogue with a pending utterance; `facts` replaces what the transcript tells (the oracle's knowledge)."""
    evidence = transcript_evidence(dialogue)
    parsed = [options[0] for text in evidence.earlier for options in language.parse(text) if options]
    asked = frozenset(s.template.slots[0] for s in parsed if s.template.act == "ask")
    said = frozenset((s.template.id, s.facts) for s in parsed)
    known = dialogue.facts() if facts is None else facts
    return Scene(known, evidence.wishes, asked | evidence.told, said, not dialogue.turns)


def compose(style: str, view: Scene, rng: random.Random) -> str:
    """One response in a style: 'careful' is the good one, the others have one typical fault each."""
    opening = [_line("greet", rng)] if view.first and rng.random() < 0.8 else []
    if style == "careful":
        return _careful(view, opening, rng)
    if style == "flattering":
        return " ".join([_line("flatter", rng), *opening, _question(view, rng, fresh=True)])
    if style == "forgetful":
        told = sorted(view.facts) or list(SLOTS)
        slot = rng.choice([s for s in told if s in SLOTS] or list(SLOTS))
        return " ".join([*opening, rng.choice([_line("plain", rng), _line("info", rng)]), _line("ask", rng, slot)])
    if style == "inventive":
        slot = rng.choice([s for s in SLOTS if s not in ("Age", "Gender")])
        phrase = rng.choice(rng.choice(lex.lexicon().values(slot, "train")).forms)
        return " ".join([*opening, _about(rng.choice(["ack", "suggest"]), slot, phrase, rng), _question(view, rng, True)])
    if style == "curious":
        fact = _pick_fact(view, rng)
        return " ".join([*opening, _about("detail", *fact, rng)]) if fact else " ".join([*opening, _line("open", rng)])
    parts = [rng.choice([_line("plain", rng), _line("info", rng)])] if not opening or rng.random() < 0.3 else []
    tail = _question(view, rng, fresh=rng.random() < 0.5) if rng.random() < 0.7 else _line("invite", rng)
    return " ".join([*opening, *parts, tail])


def _careful(view: Scene, opening: list[str], rng: random.Random) -> str:
    best = ""
    for _ in range(6):
        fact = _pick_fact(view, rng)
        act = "suggest" if view.wishes.advice else rng.choice(["ack", "suggest"])
        body = [_about(act, *fact, rng)] if fact else []
        tail = _question(view, rng, fresh=True) if rng.random() < 0.75 or not fact else _turn_back(view, rng)
        sentences = [*opening, *body, tail]
        best = " ".join(sentences)
        seen = any((o[0].template.id, o[0].facts) in view.said for o in language.parse(best) if o)
        too_long = view.wishes.brief and len(best.split()) > BRIEF_WORDS
        if not seen and not too_long and not (view.wishes.calm and "!" in best):
            break
    return best


def _turn_back(view: Scene, rng: random.Random) -> str:
    fact = _pick_fact(view, rng)
    return _about("detail", *fact, rng) if fact and rng.random() < 0.6 else _line("invite", rng)


def _question(view: Scene, rng: random.Random, fresh: bool) -> str:
    """A question about a slot; `fresh` avoids what is known, asked or private, and falls back to an open one."""
    slots = [s for s in SLOTS if not fresh or (s not in view.asked and s not in view.facts and s != view.wishes.private)]
    return _line("ask", rng, rng.choice(slots)) if slots else _line(rng.choice(["open", "invite"]), rng)


def _pick_fact(view: Scene, rng: random.Random) -> tuple[str, str] | None:
    """A known fact that some frame fits; the latest ones are likelier."""
    usable = [(s, p) for s, p in view.facts.items() if language.frame_slots(s)]
    if not usable:
        return None
    slot, phrase = rng.choices(usable, weights=range(1, len(usable) + 1))[0]
    return language.frame_slots(slot)[0], phrase


def _about(act: str, slot: str, phrase: str, rng: random.Random) -> str:
    return language.realise(rng.choice(language.templates("assistant", act, slot)), rng, {slot: phrase})


def _line(act: str, rng: random.Random, slot: str = "") -> str:
    return language.realise(rng.choice(language.templates("assistant", act, slot)), rng)


def write_profile(dialogue: Dialogue, previous: Profile | None, diligence: float, rng: random.Random) -> Profile:
    """The profile that a crowd member notes: each fact told so far with probability `diligence`, kept once noted;
    now and then a guess. Guesses pay under F1, so the crowd must show that they exist. Slots stand in their usual order: a
    small model that writes them as they came loses its place and names a slot twice."""
    facts = dialogue.facts()
    kept = dict(previous.items) if previous else {}
    for slot, phrase in facts.items():
        if slot in kept or rng.random() < diligence:
            kept[slot] = phrase
    if rng.random() < 0.04:
        slot = rng.choice(SLOTS)
        kept.setdefault(slot, spoken_value(slot, rng))
    return Profile(in_slot_order(kept))


def spoken_value(slot: str, rng: random.Random) -> str:
    """Any training value of one of the ten slots, as a user might say it."""
    if slot == "Age":
        return rng.choice(language.spoken_forms("Age", str(rng.randint(18, 82))))
    if slot == "Gender":
        return rng.choice(language.spoken_forms("Gender", rng.choice(sorted(lex.GENDERS))))
    return rng.choice(rng.choice(lex.lexicon().values(slot, "train")).forms)


def in_slot_order(items: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Items in the order of SLOTS, other slots behind them."""
    return tuple(sorted(items.items(), key=lambda item: SLOTS.index(item[0]) if item[0] in SLOTS else len(SLOTS)))


def oracle_reply(persona, dialogue: Dialogue, rng: random.Random) -> tuple[Profile, str]:
    """The ceiling: notes the true profile and answers with care, using what has been told or, before that, what is true."""
    told = dialogue.facts()
    facts = told or {s: rng.choice(language.spoken_forms(s, v)) for s, v in persona.profile.items}
    return persona.profile, _careful(scene(dialogue, facts), [], rng)


@cache
def response_pool(users: int = 60) -> tuple[str, ...]:
    """Responses that the crowd gave to training users, for the random control."""
    from rlpa_lib.mini.corpus import dialogues
    from rlpa_lib.mini.personas import builtin_personas

    return tuple(response for _, _, response, _ in dialogues(builtin_personas("train", users, 1), 1, "rlpa"))
