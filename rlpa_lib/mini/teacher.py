"""Scripted assistants: the mixed crowd that the tiny model imitates, and the oracle (the ceiling)."""

import random
from dataclasses import replace
from functools import partial

from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import SLOTS, Profile, Reply
from rlpa_lib.mini import language
from rlpa_lib.mini.judge import BRIEF_WORDS, Evidence, gather_evidence
from rlpa_lib.mini.lexicon import LISTED

STYLES = ("careful", "generic", "forgetful", "inventive", "flattering", "curious")
# How often each style occurs per mode: assistants that were not asked for care are mostly generic.
MIX = {
    "rlpa": (0.30, 0.34, 0.10, 0.08, 0.05, 0.13), "base": (0.06, 0.64, 0.12, 0.07, 0.06, 0.05),
    "reminder": (0.50, 0.24, 0.06, 0.06, 0.04, 0.10), "revision": (0.80, 0.06, 0.02, 0.03, 0.02, 0.07),
    "rag": (0.62, 0.18, 0.04, 0.05, 0.03, 0.08),
}
_say = partial(language.speak, "assistant")


def compose(style: str, view: Evidence, rng: random.Random) -> str:
    """One response in a style: 'careful' is the good one, the others have one typical fault each."""

    def remark() -> str:
        return rng.choice([_say("plain", rng), _say("info", rng)])

    opening = [_say("greet", rng)] if not view.earlier and rng.random() < 0.8 else []
    if style == "careful":
        return _compose_careful(view, opening, rng)
    if style == "flattering":
        return " ".join([_say("flatter", rng), *opening, _ask(view, rng)])
    if style == "forgetful":
        slot = rng.choice([s for s in sorted(view.facts) if s in SLOTS] or SLOTS)
        parts = [remark(), _say("ask", rng, slot)]
    elif style == "inventive":
        slot = rng.choice(LISTED)
        phrase = language.draw_spoken_value(slot, rng)
        parts = [_say(rng.choice(["ack", "suggest"]), rng, slot, phrase), _ask(view, rng)]
    elif style == "curious":
        fact = _pick_fact(view, rng)
        parts = [_say("detail", rng, *fact) if fact else _say("open", rng)]
    else:
        parts = [remark()] if not opening or rng.random() < 0.3 else []
        asks = rng.random() < 0.7
        parts.append(_ask(view, rng, fresh=rng.random() < 0.5) if asks else _say("invite", rng))
    return " ".join([*opening, *parts])


def _compose_careful(view: Evidence, opening: list[str], rng: random.Random) -> str:
    """What nothing is wrong with, or the sixth try."""
    best, said = "", {sentence.key for sentence in language.recall(view.earlier)}
    for _ in range(6):
        fact = _pick_fact(view, rng)
        act = "suggest" if view.advice else rng.choice(["ack", "suggest"])
        body = [_say(act, rng, *fact)] if fact else []
        if rng.random() < 0.75 or not fact:
            tail = _ask(view, rng)
        else:
            fact = _pick_fact(view, rng)
            tail = _say("detail", rng, *fact) if fact and rng.random() < 0.6 else _say("invite", rng)
        best = " ".join([*opening, *body, tail])
        repeats = any(sentence.key in said for sentence in language.recall([best]))
        too_long = view.brief and len(best.split()) > BRIEF_WORDS
        if not (repeats or too_long or (view.calm and "!" in best)):
            break
    return best


def _ask(view: Evidence, rng: random.Random, fresh: bool = True) -> str:
    """A question; a `fresh` one avoids what is known, asked or private, and may be an open one."""
    asked = {s.template.slots[0] for s in language.recall(view.earlier) if s.template.act == "ask"}
    known = {*asked, *view.told, *view.facts, view.private} if fresh else set()
    slots = [s for s in SLOTS if s not in known]
    return _say("ask", rng, rng.choice(slots)) if slots else _say(rng.choice(["open", "invite"]), rng)


def _pick_fact(view: Evidence, rng: random.Random) -> tuple[str, str] | None:
    """A known fact that some frame fits; the latest ones are likelier."""
    usable = [(frames[0], p) for s, p in view.facts.items() if (frames := language.list_frame_slots(s))]
    return rng.choices(usable, weights=range(1, len(usable) + 1))[0] if usable else None


def write_profile(dialogue: Dialogue, previous: Profile, diligence: float, rng: random.Random) -> Profile:
    """A crowd member's profile: each fact told so far with probability `diligence`, kept once noted.

    Now and then it guesses: guesses pay under F1, so the crowd must show that they exist. Slots stand in
    their usual order: a small model that writes them as they came loses its place and repeats a slot.
    """
    kept = dict(previous.items)
    kept |= {s: p for s, p in dialogue.facts().items() if s in kept or rng.random() < diligence}
    if rng.random() < 0.04:
        slot = rng.choice(SLOTS)
        kept.setdefault(slot, language.draw_spoken_value(slot, rng))
    return Profile(sort_by_slot(kept))


def sort_by_slot(items: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Items in the order of SLOTS, other slots behind them."""
    return tuple(sorted(items.items(), key=lambda item: (*SLOTS, item[0]).index(item[0])))


def write_pair(dialogue: Dialogue, rng: random.Random) -> tuple[str, str]:
    """(preferred, rejected) responses: the careful assistant's and the generic one's."""
    view = gather_evidence(dialogue)
    preferred = compose("careful", view, rng)
    generic = (compose("generic", view, rng) for _ in range(8))
    return preferred, next((response for response in generic if response != preferred), preferred)


def write_oracle_reply(persona: Persona, dialogue: Dialogue, rng: random.Random) -> Reply:
    """The ceiling: notes the true profile and uses what was told or, before that, what is true."""
    told = dialogue.facts()
    facts = told or {s: rng.choice(language.list_forms(s, v)) for s, v in persona.profile.items}
    response = _compose_careful(replace(gather_evidence(dialogue), facts=facts), [], rng)
    return Reply(persona.profile, response, True)
