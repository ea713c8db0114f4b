"""A simulated user that works through an agenda (section 3.1; Schatzmann & Young 2009): it reveals its profile bit by
bit, answers what it is asked, and reacts to what it likes and dislikes."""
from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from rlpa_lib.dialogue import Dialogue, Utterance
from rlpa_lib.mini import language
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.personas import Persona

OPENING = "Hello"
SHARE_PER_TURN = 0.15
PRIVATE_SLOTS = ("Age", "Gender", "Marital Status", "Family Background", "Educational Background")
VOLUNTEER = {"talkative": 0.75, "balanced": 0.5, "reserved": 0.25}


@dataclass(frozen=True)
class Temperament:
    """How a persona talks: its pace, and what it wants from the other (short answers, a calm tone, one topic left alone)."""

    pace: str
    brief: bool
    calm: bool
    private: str | None
    favorite: str


def temperament(persona: Persona) -> Temperament:
    """Fixed per persona: pace and tone follow its Personality Traits where the lexicon knows them, the rest its id."""
    rng = random.Random(f"temperament|{persona.id}|{persona.description}")
    trait = lex.lexicon().find(persona.profile.get("Personality Traits") or "")
    attrs = trait.attrs if trait else {}
    pace = attrs.get("pace") or rng.choice(sorted(VOLUNTEER))
    calm = attrs.get("tone", "lively") == "calm" and rng.random() < 0.5
    touchy = [s for s in PRIVATE_SLOTS if s in persona.profile.slots()]
    private = rng.choice(touchy) if touchy and rng.random() < 0.25 else None
    topics = [s for s in persona.profile.slots() if s not in PRIVATE_SLOTS] or list(persona.profile.slots())
    return Temperament(pace, pace != "talkative" and rng.random() < 0.25, calm, private, rng.choice(topics))


@dataclass(frozen=True)
class AgendaUser:
    """Stateless: the next utterance is a function of seed, persona and transcript. `speech` is 'user_train' or 'user_test'."""

    seed: int = 0
    speech: str = "user_train"

    def reply(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue]) -> list[Utterance]:
        """The next utterance of each user; "Hello" where nothing has been said yet."""
        return [self._next(p, d) for p, d in zip(personas, dialogues, strict=True)]

    def agenda(self, persona: Persona) -> list[str]:
        """The order in which this persona would reveal its slots by itself; the favourite topic comes early."""
        rng, mood = random.Random(f"agenda|{self.seed}|{persona.id}"), temperament(persona)
        order = [s for s in persona.profile.slots() if s not in (mood.private, mood.favorite)]
        rng.shuffle(order)
        order.insert(min(len(order), rng.randrange(2)), mood.favorite)
        return order

    def _next(self, persona: Persona, dialogue: Dialogue) -> Utterance:
        if not dialogue.turns:
            return Utterance(OPENING)
        turn, mood = len(dialogue.turns) + 1, temperament(persona)
        rng = random.Random(f"turn|{self.seed}|{persona.id}|{turn}")
        known = dialogue.ledger()
        budget = _budget(len(persona.profile), turn, len(known))
        response = language.parse(dialogue.turns[-1].reply.response)
        asked, reactions = self._react(persona, mood, dialogue, response, rng)
        said: list[tuple[str, str, str]] = []
        for slot in asked:
            if budget > len(said):
                said.append(self._say(persona, slot, rng))
            else:
                reactions.append(self._line("filler", rng))
        left = [s for s in self.agenda(persona) if s not in known and s not in asked]
        chance = VOLUNTEER[mood.pace] * (0.4 if said else 1.0)
        if left and budget > len(said) and rng.random() < chance:
            said.append(self._say(persona, left[0], rng))
        parts = reactions[:2] + [text for text, _, _ in said] + self._wishes(persona, mood, turn, rng)
        if not said and len(parts) < 2 and rng.random() < 0.15:
            parts.append(self._line("advice", rng))
        text = " ".join(parts) or self._line("filler", rng)
        return Utterance(text, tuple(s for _, s, _ in said), tuple(p for _, _, p in said))

    def _react(self, persona, mood, dialogue, response, rng) -> tuple[list[str], list[str]]:
        """(slots to answer now, reaction sentences) after what the assistant said last."""
        known, answers, lines = dialogue.ledger(), [], []
        sentences = [_reading(persona, options) for options in response if options]
        for sentence in sentences:
            act, slots = sentence.template.act, sentence.template.slots
            if act == "flatter":
                lines.append(self._line("react_flatter", rng))
            elif _wrong(persona, sentence):
                lines.append(self._line("react_wrong", rng))
            elif act == "ask":
                lines += self._asked(persona, mood, known, slots[0], answers, rng)
            elif act == "detail":
                lines.append(self._line("elaborate", rng))
            elif act in ("suggest", "ack") and mood.favorite in slots and rng.random() < 0.6:
                lines.append(self._line("react_good", rng))
        if not lines and not answers:
            # Neutral at first: a user warms up only to what fits.
            lines = [self._line("react_plain", rng)] if rng.random() < 0.4 else []
        return answers, lines

    def _asked(self, persona, mood, known, slot, answers, rng) -> list[str]:
        if slot == mood.private:
            return [self._line("react_private", rng)]
        if slot in known:
            return [self._line("react_repeat", rng)]
        if persona.profile.get(slot) is None:
            return [self._line("nothing", rng)]
        if slot not in answers:
            answers.append(slot)
        return []

    def _wishes(self, persona, mood, turn, rng) -> list[str]:
        """Sentences that tell a wish, each once, at turns 2 to 5 fixed by the persona."""
        when = random.Random(f"wishes|{self.seed}|{persona.id}")
        slots = {kind: when.randrange(2, 6) for kind in ("brief", "calm", "private")}
        lines = [self._line(k, rng) for k, on in (("brief", mood.brief), ("calm", mood.calm)) if on and slots[k] == turn]
        if mood.private and slots["private"] == turn:
            lines.append(self._line("private", rng, mood.private))
        return lines

    def _line(self, act: str, rng: random.Random, slot: str = "") -> str:
        return language.realise(rng.choice(language.templates(self.speech, act, slot)), rng)

    def _say(self, persona: Persona, slot: str, rng: random.Random) -> tuple[str, str, str]:
        """(sentence, slot, phrase) that reveals one slot in one of its phrasings."""
        phrase = rng.choice(language.spoken_forms(slot, persona.profile.get(slot)))
        return language.tell(self.speech, slot, phrase, rng), slot, phrase


def _budget(n_slots: int, turn: int, n_known: int) -> int:
    """How many slots may still be revealed now: at most two a turn, and never more than 15 % a turn on average."""
    return max(0, min(2, math.ceil(SHARE_PER_TURN * n_slots * (turn - 1)) - n_known))


def _reading(persona: Persona, options: tuple[language.Sentence, ...]) -> language.Sentence:
    """Of several readings one that is true of the persona: "What do you like most about {Location}?" also fits an interest."""
    return next((s for s in options if not _wrong(persona, s)), options[0])


def _wrong(persona: Persona, sentence: language.Sentence) -> bool:
    """Does the sentence claim something about the user that is not so?"""
    return any(not holds(persona, slot, phrase) for slot, phrase in sentence.facts)


def holds(persona: Persona, slot: str, phrase: str) -> bool:
    """Is a claim (slot, phrase) true of a persona? A frame of one slot may carry values of others that fit it."""
    return any(slot in language.frame_slots(s) and lex.same_value(slot, phrase, v) for s, v in persona.profile.items)


def theoretical_max(persona: Persona, dialogue: Dialogue) -> float:
    """The share of the profile's slots that the user has revealed so far (section 5.3), in [0, 1]."""
    return len(dialogue.ledger()) / len(persona.profile)
