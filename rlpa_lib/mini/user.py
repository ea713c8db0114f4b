"""A user who reveals its profile by an agenda and reacts (section 3.1; Schatzmann & Young 2009)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

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
    trait = lex.load_lexicon().find(persona.profile.get("Personality Traits") or "")
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
        told = news or [None] * len(dialogues)
        return [self._next(p, d, n) for p, d, n in zip(personas, dialogues, told, strict=True)]

    def agenda(self, persona: Persona) -> list[str]:
        """The order in which this persona would tell its slots unasked; the favourite topic comes early."""
        rng, mood = random.Random(f"agenda|{self.seed}|{persona.id}"), read_temperament(persona)
        order = [s for s in persona.profile.slots() if s not in (mood.private, mood.favorite)]
        rng.shuffle(order)
        order.insert(min(len(order), rng.randrange(2)), mood.favorite)
        return order

    def _next(self, persona: Persona, dialogue: Dialogue, news: News | None = None) -> Utterance:
        if not dialogue.turns:
            return Utterance(OPENING)
        turn, mood = len(dialogue.turns) + 1, read_temperament(persona)
        rng = random.Random(f"turn|{self.seed}|{persona.id}|{turn}")
        known = dialogue.ledger()
        budget = reveal_budget(len(persona.profile), turn, len(known))
        response = language.parse(dialogue.turns[-1].reply.response)
        asked, reactions = self._react(persona, mood, dialogue, response, rng)
        told_now = news.slot if news else None
        asked, instead, eagerness = self._cooperate(persona, dialogue, [s for s in asked if s != told_now])
        said = [self._tell_news(persona, dialogue, news)] if news else []
        for slot in asked:
            if budget > len(said):
                said.append(self._say(persona, slot, rng))
            else:
                reactions.append(self._line("filler", rng))
        left = [s for s in self.agenda(persona) if s not in known and s not in asked and s != told_now]
        chance = eagerness * VOLUNTEER[mood.pace] * (0.4 if said else 1.0)
        if left and budget > len(said) and rng.random() < chance:
            said.append(self._say(persona, left[0], rng))
        wrong, corrected = self._contradict(persona, dialogue)
        said += corrected
        wishes = self._tell_wishes(persona, mood, turn, rng)
        parts = reactions[:2] + instead + [text for text, _, _ in said] + wrong + wishes
        if not said and len(parts) < 2 and rng.random() < 0.15:
            parts.append(self._line("advice", rng))
        text = " ".join(parts) or self._line("filler", rng)
        if self.manner.terse and news is None:
            text = " ".join([f"{phrase}." for _, _, phrase in said] + wishes) or self._line("terse", rng)
        return Utterance(text, tuple(s for _, s, _ in said), tuple(p for _, _, p in said))

    def _react(self, persona, mood, dialogue, response, rng) -> tuple[list[str], list[str]]:
        """(slots to answer now, reaction sentences) after what the assistant said last."""
        known, answers, lines = dialogue.ledger(), [], []
        for sentence in (_read(persona, options) for options in response if options):
            act, slots = sentence.template.act, sentence.template.slots
            if act == "flatter":
                lines.append(self._line("react_flatter", rng))
            elif _is_wrong(persona, sentence):
                lines.append(self._line("react_wrong", rng))
            elif act == "ask":
                lines += self._take_question(persona, mood, known, slots[0], answers, rng)
            elif act == "detail":
                lines.append(self._line("elaborate", rng))
            elif act in ("suggest", "ack") and mood.favorite in slots and rng.random() < 0.6:
                lines.append(self._line("react_good", rng))
        # Neutral at first: a user warms up only to what fits.
        if not lines and not answers and rng.random() < 0.4:
            lines.append(self._line("react_plain", rng))
        return answers, lines

    def _take_question(self, persona, mood, known, slot, answers, rng) -> list[str]:
        """Its reaction to a question about a slot; a slot that it will answer joins `answers` instead."""
        if slot == mood.private:
            return [self._line("react_private", rng)]
        if slot in known:
            return [self._line("react_repeat", rng)]
        if persona.profile.get(slot) is None:
            return [self._line("nothing", rng)]
        if slot not in answers:
            answers.append(slot)
        return []

    def _tell_wishes(self, persona, mood, turn, rng) -> list[str]:
        """Sentences that tell a wish, each once, at a turn from 2 to 5 that the persona fixes."""
        when = random.Random(f"wishes|{self.seed}|{persona.id}")
        turns = {kind: when.randrange(2, 6) for kind in ("brief", "calm", "private")}
        wishes = [kind for kind in turns if getattr(mood, kind) and turns[kind] == turn]
        return [self._line(kind, rng, mood.private if kind == "private" else "") for kind in wishes]

    def _cooperate(self, persona: Persona, dialogue: Dialogue, asked: list[str]) -> tuple[list, list, float]:
        """(slots that it answers, what it says instead, factor on the chance to volunteer something)."""
        # Random numbers of its own, so that manners never change what a willing user says.
        manner, rng = self.manner, random.Random(f"manner|{self.seed}|{persona.id}|{len(dialogue.turns) + 1}")
        if manner.patience and count_empty_answers(dialogue) >= manner.patience:
            return [], [self._line("impatient", rng)], 0.0
        if rng.random() < manner.strays:
            return [], [write_stray(persona, self.speech, rng)], 0.0
        answered = [slot for slot in asked if rng.random() < manner.answers]
        return answered, [] if answered == asked else [self._line("evade", rng)], manner.volunteers

    def _contradict(self, persona: Persona, dialogue: Dialogue) -> tuple[list[str], list[Told]]:
        """(wrong sentences now, corrections of the turn before); only the latter reveal something."""
        turn = len(dialogue.turns) + 1
        given = persona, dialogue, self.manner, self.seed, self.speech
        now, before = draw_slip(*given, turn), draw_slip(*given, turn - 1)
        rng = random.Random(f"corrects|{self.seed}|{persona.id}|{turn}")
        wrong = [language.tell(self.speech, *now, rng)] if now else []
        if before is None or (now and now[0] == before[0]):
            return wrong, []
        text, slot, phrase = self._say(persona, before[0], rng)
        return wrong, [(f"{self._line('take_back', rng)} {text}", slot, phrase)]

    def _tell_news(self, persona: Persona, dialogue: Dialogue, news: News) -> Told:
        """(sentence, slot, phrase) that tells a slot now; a change is said in passing (section 5.2)."""
        rng = random.Random(f"news|{self.seed}|{persona.id}|{len(dialogue.turns) + 1}")
        if news.was is None:
            return self._say(persona, news.slot, rng)
        phrase = rng.choice(language.list_forms(news.slot, persona.profile.get(news.slot)))
        frames = language.find_templates(self.speech.replace("user", "changes"), "changed", news.slot)
        text = f"About {news.slot.lower()} something has changed, now there is this: {phrase}."
        if frames:
            text = language.realise(rng.choice(frames), rng, {news.slot: phrase})
        return text, news.slot, phrase

    def _line(self, act: str, rng: random.Random, slot: str = "") -> str:
        speeches = (self.speech, find_manners(self.speech))
        lines = next(filter(None, (language.find_templates(speech, act, slot) for speech in speeches)))
        return language.realise(rng.choice(lines), rng)

    def _say(self, persona: Persona, slot: str, rng: random.Random) -> Told:
        """(sentence, slot, phrase) that reveals one slot in one of its phrasings."""
        phrase = rng.choice(language.list_forms(slot, persona.profile.get(slot)))
        return language.tell(self.speech, slot, phrase, rng), slot, phrase


def _read(persona: Persona, options: tuple[language.Sentence, ...]) -> language.Sentence:
    """A reading that is true of the persona: "What do you like most about ...?" fits places and interests."""
    return next((sentence for sentence in options if not _is_wrong(persona, sentence)), options[0])


def _is_wrong(persona: Persona, sentence: language.Sentence) -> bool:
    """Does it claim something untrue? Values of other slots that fit a frame count as true in it."""
    for slot, phrase in sentence.facts:
        values = [value for own, value in persona.profile.items if slot in language.list_frame_slots(own)]
        if not any(lex.same_value(slot, phrase, value) for value in values):
            return True
    return False


def theoretical_max(persona: Persona, dialogue: Dialogue) -> float:
    """The share of the profile's slots that the user has revealed so far (section 5.3), in [0, 1]."""
    return len(dialogue.ledger()) / len(persona.profile)


def count_empty_answers(dialogue: Dialogue) -> int:
    """How many of the latest responses in a row had no content."""
    count = 0
    for turn in reversed(dialogue.turns):
        acts = {s.template.act for options in language.parse(turn.reply.response) for s in options[:1]}
        if acts & set(language.CONTENT_ACTS):
            break
        count += 1
    return count


def draw_other_value(slot: str, value: str, speech: str, rng: random.Random) -> str | None:
    """Another value of the slot as users of this grammar may phrase it; None if there is none."""
    if slot == "Age":
        years = lex.parse_age(value)
        return None if years is None else str(years + rng.choice((-7, -4, 5, 9)))
    split = "train" if speech.endswith("train") else "test" if slot in lex.FILES else "extended"
    values = lex.load_lexicon().values(slot, split)
    others = [other for other in values if not lex.same_value(slot, other.canonical, value)]
    return rng.choice(rng.choice(others).forms) if others else None


def draw_slip(
    persona: Persona, dialogue: Dialogue, manner: Manner, seed: int, speech: str, turn: int
) -> tuple[str, str] | None:
    """(slot, wrong phrase) by which a user contradicts itself at `turn`, or None; can be redrawn later."""
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
    """A sentence about something or somebody else; its facts are not the user's."""
    if rng.random() < 0.5:
        frame = rng.choice(language.find_templates(find_manners(speech), "aside"))
        slot = frame.slots[0]
        phrase = draw_other_value(slot, persona.profile.get(slot) or "", speech, rng)
        if phrase is not None:
            return language.realise(frame, rng, {slot: phrase})
    return language.realise(rng.choice(language.find_templates(find_manners(speech), "chatter")), rng)


def find_manners(speech: str) -> str:
    """The name of the grammar for uncooperative users of this speech."""
    return speech.replace("user", "manners")
