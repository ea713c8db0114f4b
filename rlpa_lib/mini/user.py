"""A user who reveals its profile by an agenda and reacts (section 3.1; Schatzmann & Young 2009)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from rlpa_lib.dialogue.dialogue import Dialogue, Utterance
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.protocols import News
from rlpa_lib.dialogue.reveal import OPENING, reveal_budget
from rlpa_lib.mini import language
from rlpa_lib.mini import lexicon as lex

PRIVATE_SLOTS = ("Age", "Gender", "Marital Status", "Family Background", "Educational Background")
VOLUNTEER = {"talkative": 0.75, "balanced": 0.5, "reserved": 0.25}
Told = tuple[str, str, str]  # the sentence that tells a slot, the slot, the phrase in it


@dataclass(frozen=True)
class Temperament:
    """How a persona talks: its pace, and what it wants (short answers, a calm tone, one topic left alone)."""

    pace: str
    brief: bool
    calm: bool
    private: str | None
    favorite: str


def read_temperament(persona: Persona) -> Temperament:
    """Fixed per persona: pace and tone from its traits if the lexicon lists them, the rest by chance."""
    rng = random.Random(f"temperament|{persona.id}|{persona.description}")
    trait = lex.find_value(persona.profile.get("Personality Traits") or "")
    attrs = trait.attrs if trait else {}
    pace = attrs.get("pace") or rng.choice(sorted(VOLUNTEER))
    calm = attrs.get("tone", "lively") == "calm" and rng.random() < 0.5
    touchy = [s for s in PRIVATE_SLOTS if s in persona.profile.slots()]
    private = rng.choice(touchy) if touchy and rng.random() < 0.25 else None
    topics = [s for s in persona.profile.slots() if s not in PRIVATE_SLOTS] or list(persona.profile.slots())
    return Temperament(pace, pace != "talkative" and rng.random() < 0.25, calm, private, rng.choice(topics))


@dataclass(frozen=True)
class Manner:
    """How far a user cooperates, by default fully, as in the paper. Chances are per turn, in [0, 1]."""

    volunteers: float = 1.0  # factor on the chance to tell something unasked
    answers: float = 1.0  # chance to answer a question that it could answer
    patience: int | None = None  # after so many empty responses it tells nothing until one has content
    contradicts: float = 0.0  # chance to contradict something it has told; it takes that back a turn later
    strays: float = 0.0  # chance to talk about something or somebody else, and tell nothing
    terse: bool = False  # bare values instead of sentences, no reactions


WILLING = Manner()
# Clearly difficult, yet ten turns still tell something; not fitted to real people.
MANNERS = {
    "willing": WILLING, "reluctant": Manner(volunteers=0.2, answers=0.5),
    "impatient": Manner(volunteers=0.5, patience=2), "contradictory": Manner(contradicts=0.35),
    "off_topic": Manner(strays=0.5), "terse": Manner(volunteers=0.5, terse=True),
}


@dataclass(frozen=True)
class AgendaUser:
    """Stateless: seed, persona and transcript fix what it says. `speech`: 'user_train' or 'user_test'."""

    seed: int = 0
    speech: str = "user_train"
    manner: Manner = WILLING

    def reply(
        self, personas: Sequence[Persona], dialogues: Sequence[Dialogue],
        news: Sequence[News | None] | None = None,
    ) -> list[Utterance]:  # fmt: skip
        """The next utterance of each user, the first one "Hello"; `news` is worked in if given."""
        cases = zip(personas, dialogues, news or [None] * len(dialogues), strict=True)
        return [_Speaker(self, p, d).speak(n) if d.turns else Utterance(OPENING) for p, d, n in cases]

    def agenda(self, persona: Persona) -> list[str]:
        """The order in which this persona would tell its slots unasked; the favourite topic comes early."""
        rng, mood = random.Random(f"agenda|{self.seed}|{persona.id}"), read_temperament(persona)
        order = [s for s in persona.profile.slots() if s not in (mood.private, mood.favorite)]
        rng.shuffle(order)
        order.insert(min(len(order), rng.randrange(2)), mood.favorite)
        return order

    def draw_slip(self, persona: Persona, dialogue: Dialogue, turn: int) -> tuple[str, str] | None:
        """(slot, wrong phrase) by which it contradicts itself at `turn`, or None; can be redrawn later."""
        rng = random.Random(f"slip|{self.seed}|{persona.id}|{turn}")
        told = [slot for slot, first in dialogue.ledger().items() if first < turn and slot != "Gender"]
        if rng.random() >= self.manner.contradicts or not told:
            return None
        slot = rng.choice(told)
        phrase = draw_other_value(slot, persona.profile.get(slot) or "", self.speech, rng)
        return None if phrase is None else (slot, phrase)


class _Speaker:
    """A user whose turn it is. Manners and news have random numbers of their own, so that they never change
    what a willing user says."""

    def __init__(self, user: AgendaUser, persona: Persona, dialogue: Dialogue):
        self.user, self.persona, self.dialogue, self.known = user, persona, dialogue, dialogue.ledger()
        self.turn, self.mood = len(dialogue.turns) + 1, read_temperament(persona)
        self.rng, self.write = self._make_rng("turn"), partial(language.speak, user.speech)

    def _make_rng(self, purpose: str) -> random.Random:
        return random.Random(f"{purpose}|{self.user.seed}|{self.persona.id}|{self.turn}")

    def _say(self, slot: str, rng: random.Random) -> Told:
        """(sentence, slot, phrase) that reveals one slot in one of its phrasings."""
        phrase = rng.choice(language.list_forms(slot, self.persona.profile.get(slot)))
        return language.tell(self.user.speech, slot, phrase, rng), slot, phrase

    def speak(self, news: News | None) -> Utterance:
        """What the user says: reactions, what it tells, wishes."""
        rng, told_now = self.rng, news.slot if news else None
        budget = reveal_budget(len(self.persona.profile), self.turn, len(self.known))
        asked, reactions = self._react()
        asked, instead, eagerness = self._cooperate([slot for slot in asked if slot != told_now])
        said = [self._tell_news(news)] if news else []
        for slot in asked:
            if budget > len(said):
                said.append(self._say(slot, rng))
            else:
                reactions.append(self.write("filler", rng))
        left = [s for s in self.user.agenda(self.persona) if s not in {*self.known, *asked, told_now}]
        chance = eagerness * VOLUNTEER[self.mood.pace] * (0.4 if said else 1.0)
        if left and budget > len(said) and rng.random() < chance:
            said.append(self._say(left[0], rng))
        wrong, corrected = self._contradict()
        said += corrected
        wishes = self._tell_wishes()
        parts = [*reactions[:2], *instead, *(text for text, _, _ in said), *wrong, *wishes]
        if not said and len(parts) < 2 and rng.random() < 0.15:
            parts.append(self.write("advice", rng))
        text = " ".join(parts) or self.write("filler", rng)
        if self.user.manner.terse and news is None:
            bare = " ".join([f"{phrase}." for _, _, phrase in said] + wishes)
            text = bare or self.write("terse", rng)
        return Utterance(text, tuple(s for _, s, _ in said), tuple(p for _, _, p in said))

    def _react(self) -> tuple[list[str], list[str]]:
        """(slots to answer now, reaction sentences) after what the assistant said last."""
        answers, lines = {}, []
        for options in language.parse(self.dialogue.turns[-1].reply.response):
            if not options:
                continue
            # A reading that is true of the persona: "What do you like most about ...?" fits many slots.
            sentence = next((option for option in options if not self._is_wrong(option)), options[0])
            act = self._choose_reaction(sentence)
            if act == "answer":
                answers[sentence.template.slots[0]] = True
            elif act:
                lines.append(self.write(act, self.rng))
        # Neutral at first: a user warms up only to what fits.
        if not lines and not answers and self.rng.random() < 0.4:
            lines.append(self.write("react_plain", self.rng))
        return list(answers), lines

    def _choose_reaction(self, sentence: language.Sentence) -> str:
        """The act that takes up what the assistant said; "answer" to a question that it will answer."""
        act, slots, wrong = sentence.template.act, sentence.template.slots, self._is_wrong(sentence)
        asked = slots[0] if act == "ask" else ""
        touched = act in ("suggest", "ack") and self.mood.favorite in slots and not wrong
        reactions = {
            "react_flatter": act == "flatter", "react_wrong": wrong,
            "react_good": touched and self.rng.random() < 0.6, "elaborate": act == "detail",
            "react_private": asked and asked == self.mood.private, "react_repeat": asked in self.known,
            "nothing": asked and self.persona.profile.get(asked) is None, "answer": asked,
        }
        return next((reaction for reaction, fits in reactions.items() if fits), "")

    def _is_wrong(self, sentence: language.Sentence) -> bool:
        """Does it claim something untrue? Values of other slots that fit a frame count as true in it."""
        for slot, phrase in sentence.facts:
            values = [v for s, v in self.persona.profile.items if slot in language.list_frame_slots(s)]
            if not any(lex.same_value(slot, phrase, value) for value in values):
                return True
        return False

    def _tell_wishes(self) -> list[str]:
        """Sentences that tell a wish, each once, at a turn from 2 to 5 that the persona fixes."""
        when = random.Random(f"wishes|{self.user.seed}|{self.persona.id}")
        turns = {kind: when.randrange(2, 6) for kind in ("brief", "calm", "private")}
        due = [kind for kind in turns if getattr(self.mood, kind) and turns[kind] == self.turn]
        return [self.write(kind, self.rng, self.mood.private if kind == "private" else "") for kind in due]

    def _cooperate(self, asked: list[str]) -> tuple[list[str], list[str], float]:
        """(slots that it answers, what it says instead, factor on the chance to volunteer something)."""
        manner, rng = self.user.manner, self._make_rng("manner")
        if manner.patience and count_empty_answers(self.dialogue) >= manner.patience:
            return [], [self.write("impatient", rng)], 0.0
        if rng.random() < manner.strays:
            return [], [self._stray(rng)], 0.0
        answered = [slot for slot in asked if rng.random() < manner.answers]
        instead = [] if answered == asked else [self.write("evade", rng)]
        return answered, instead, manner.volunteers

    def _stray(self, rng: random.Random) -> str:
        """A sentence about something or somebody else; its facts are not the user's."""
        if rng.random() < 0.5:
            frame = rng.choice(language.find_templates(self.user.speech, "aside"))
            [slot] = frame.slots
            phrase = draw_other_value(slot, self.persona.profile.get(slot) or "", self.user.speech, rng)
            if phrase is not None:
                return language.realise(frame, rng, {slot: phrase})
        return self.write("chatter", rng)

    def _contradict(self) -> tuple[list[str], list[Told]]:
        """(wrong sentences now, corrections of the turn before); only the latter reveal something."""
        draw, rng = partial(self.user.draw_slip, self.persona, self.dialogue), self._make_rng("corrects")
        now, before = draw(self.turn), draw(self.turn - 1)
        wrong = [language.tell(self.user.speech, *now, rng)] if now else []
        if before is None or (now and now[0] == before[0]):
            return wrong, []
        text, *fact = self._say(before[0], rng)
        return wrong, [(f"{self.write('take_back', rng)} {text}", *fact)]

    def _tell_news(self, news: News) -> Told:
        """(sentence, slot, phrase) that tells a slot now; a change is said in passing (section 5.2)."""
        rng, slot = self._make_rng("news"), news.slot
        if news.was is None:
            return self._say(slot, rng)
        phrase = rng.choice(language.list_forms(slot, self.persona.profile.get(slot)))
        if language.find_templates(self.user.speech, "changed", slot):
            return self.write("changed", rng, slot, phrase), slot, phrase
        return f"About {slot.lower()} something has changed, now there is this: {phrase}.", slot, phrase


def theoretical_max(persona: Persona, dialogue: Dialogue) -> float:
    """The share of the profile's slots that the user has revealed so far (section 5.3), in [0, 1]."""
    return len(dialogue.ledger()) / len(persona.profile)


def count_empty_answers(dialogue: Dialogue) -> int:
    """How many of the latest responses in a row had no content."""
    said = [language.recall([turn.reply.response]) for turn in reversed(dialogue.turns)]
    full = ({s.template.act for s in sentences} & language.CONTENT_ACTS for sentences in said)
    return next((n for n, acts in enumerate(full) if acts), len(said))


def draw_other_value(slot: str, value: str, speech: str, rng: random.Random) -> str | None:
    """Another value of the slot as users of this grammar may phrase it; None if there is none."""
    if slot == "Age":
        years = lex.parse_age(value)
        return None if years is None else str(years + rng.choice((-7, -4, 5, 9)))
    split = "train" if speech.endswith("train") else "test" if slot in lex.LISTED else "extended"
    others = [v for v in lex.list_values(slot, split) if not lex.same_value(slot, v.canonical, value)]
    return rng.choice(rng.choice(others).forms) if others else None
