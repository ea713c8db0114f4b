"""Dialogues of agenda users with the careful assistant (a yardstick) and the mixed crowd (to learn from)."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pandas as pd

from rlpa_lib.dialogue.dialogue import Dialogue, Turn, Utterance
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import SLOTS, Profile, Reply, render_reply
from rlpa_lib.dialogue.protocols import SimulatedUser
from rlpa_lib.dialogue.turns import play_turns
from rlpa_lib.mini import language, teacher
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.mini.judge import gather_evidence
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.mini.user import AgendaUser, read_temperament, theoretical_max

TURNS = 10
SYLLABLES = (
    "ba be bo da de do fa fi ga go ha ka ki la le lo ma mi mo na ne no pa ra re ri ro sa se so ta ti to va "
    "ve wa zu"
).split()
Moment = tuple[Dialogue, Profile, str]  # an utterance pending, and the profile and response that answer it


def play_careful(personas: Sequence[Persona], user: SimulatedUser, turns: int, seed: int) -> list[Dialogue]:
    """E dialogues of K turns with the careful assistant, who sees only the transcript and notes what it was
    told, in the user's words."""

    def answer(_: Sequence[Persona], heard: Sequence[Dialogue]) -> list[Turn]:
        said = []
        for dialogue in heard:
            rng = random.Random(f"careful|{seed}|{dialogue.id}|{len(dialogue.turns) + 1}")
            response = teacher.compose("careful", gather_evidence(dialogue), rng)
            reply = Reply(Profile(tuple(dialogue.facts().items())), response, True)
            said.append(Turn(dialogue.pending, response, reply))
        return said

    dialogues = [Dialogue(p.id, p.id) for p in personas]
    for played in play_turns(personas, dialogues, user, answer, turns=turns):
        dialogues = played.dialogues
    return dialogues


def list_moments(dialogue: Dialogue) -> list[tuple[Dialogue, Reply]]:
    """(dialogue with the pending utterance, the reply that it got) for each of its K turns."""
    return [(dialogue.before(k), turn.reply) for k, turn in enumerate(dialogue.turns)]


def measure_reveal(personas: Sequence[Persona], dialogues: Sequence[Dialogue]) -> pd.DataFrame:
    """Share revealed up to each turn, 0 to 1 (section 5.3): columns user, pace, turn, new_slots, share."""
    rows = []
    for p, dialogue in zip(personas, dialogues, strict=True):
        for turn, (d, _) in enumerate(list_moments(dialogue), start=1):
            new, share = len(d.pending.stated), theoretical_max(p, d)
            rows.append((p.id, read_temperament(p).pace, turn, new, share))
    return pd.DataFrame(rows, columns=["user", "pace", "turn", "new_slots", "share"])


def play_crowd(
    persona: Persona, seed: int, mode: str, keep: Callable[[Moment, random.Random], Any] = lambda m, _: m
) -> list[Any]:
    """What `keep` makes of each of ten moments with the crowd, whose styles follow teacher.MIX[mode]."""
    rng = random.Random(f"corpus|{seed}|{persona.id}")
    diligence, style = rng.choice([0.4, 0.7, 0.9, 1.0]), rng.choices(teacher.STYLES, teacher.MIX[mode])[0]
    profile, kept = Profile(), []

    def answer(_: Sequence[Persona], dialogues: Sequence[Dialogue]) -> list[Turn]:
        nonlocal style, profile
        [dialogue] = dialogues
        if rng.random() < 0.7:
            style = rng.choices(teacher.STYLES, teacher.MIX[mode])[0]
        profile = teacher.write_profile(dialogue, profile, diligence, rng)
        response = teacher.compose(style, gather_evidence(dialogue), rng)
        kept.append(keep((dialogue, profile, response), rng))
        return [Turn(dialogue.pending, render_reply(profile, response), _remember(profile, response, rng))]

    user, start = _RoughUser(persona, seed, rng), [Dialogue(persona.id, persona.id)]
    for _ in play_turns([persona], start, user, answer, turns=TURNS):
        pass
    return kept


@cache
def collect_responses(users: int = 60) -> tuple[str, ...]:
    """Responses that the crowd gave to training users."""
    people = builtin_personas("train", users, 1)
    return tuple(response for person in people for _, _, response in play_crowd(person, 1, "rlpa"))


def select_personal(responses: Sequence[str]) -> tuple[str, ...]:
    """The responses that state something about their user; a bare question would suit anybody."""
    return tuple(r for r in responses if any(s.facts for options in language.parse(r) for s in options))


@dataclass
class _RoughUser:
    """An agenda user in rougher words, who now and then says that something has changed."""

    persona: Persona
    seed: int
    rng: random.Random

    def reply(self, personas: Sequence[Persona], dialogues: Sequence[Dialogue]) -> list[Utterance]:
        """The next utterance of the one user, with its values so far."""
        [dialogue], rng = dialogues, self.rng
        [said] = AgendaUser(self.seed).reply([self.persona], dialogues)
        told = [s for s in dialogue.ledger() if s in SLOTS and s not in said.stated]
        if told and rng.random() <= 0.04:
            slot = rng.choice(told)
            phrase = (language.draw_spoken_value if slot in lex.READERS else scramble)(slot, rng)
            text = f"{said.text} {language.speak('user_train', 'changed', rng, slot, phrase)}"
            self.persona = replace(self.persona, profile=self.persona.profile.replace(slot, phrase))
            said = Utterance(text, (*said.stated, slot), (*said.phrases, phrase))
        return [roughen(said, rng) if dialogue.turns else said]


def roughen(utterance: Utterance, rng: random.Random) -> Utterance:
    """The same facts, sometimes with another word in a frame, sometimes with an aside that tells nothing:
    without them a model learns a few frames by heart and takes every other sentence for a fact."""
    text = utterance.text
    if utterance.phrases and rng.random() < 0.3:
        phrases = sorted(utterance.phrases, key=len, reverse=True)
        frame = re.split(f"({'|'.join(map(re.escape, phrases))})", text)
        words = [(i, m) for i in range(0, len(frame), 2) for m in re.finditer(r"(?<= )[a-z]{2,}\b", frame[i])]
        if words:
            i, word = rng.choice(words)
            frame[i] = frame[i][: word.start()] + rng.choice(list_known_words()) + frame[i][word.end() :]
            text = "".join(frame)
    if rng.random() < 0.3:
        text = " ".join(rng.sample([write_aside(rng), text], 2))
    return replace(utterance, text=text)


def write_aside(rng: random.Random) -> str:
    """A sentence about nothing, with random words in it."""
    text = language.realise(rng.choice(language.load_grammar("asides")), rng, {"word": "{}"})
    return text.format(*(rng.choice(list_known_words()) for _ in range(text.count("{}"))))


def scramble(slot: str, rng: random.Random) -> str:
    """A value shaped like one of the slot's, with one or two words from elsewhere or made up."""
    words = language.draw_spoken_value(slot, rng).split()
    places = [i for i, word in enumerate(words) if word not in lex.STOPWORDS]
    for i in rng.sample(places, min(len(places), rng.randint(1, 2))):
        if rng.random() < 0.85:
            word = rng.choice(list_words())
        else:
            word = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3)))
            word += rng.choice(["", *"nrls"])
        words[i] = word.capitalize() if words[i][:1].isupper() else word
    return " ".join(words)


@cache
def list_words() -> tuple[str, ...]:
    """Every single word of all values, test values included: a base model knows the words of its language,
    but never meets test values or their sentence frames before the test."""
    values = (v for slot in (*lex.LISTED, *lex.list_extended_slots()) for v in lex.list_values(slot))
    return tuple(sorted({word for value in values for form in value.forms for word in form.split()}))


@cache
def list_known_words() -> tuple[str, ...]:
    """`list_words` and every word of users' sentences, test users' too: words are known, their frames not."""
    names = ("user_train", "user_test", "changes_train", "topics")
    said = re.sub(r"\{.*?\}", " ", " ".join(t.text for name in names for t in language.load_grammar(name)))
    return tuple(sorted({*list_words(), *re.findall(r"[a-zA-Z'-]+", said)}))


def _remember(profile: Profile, response: str, rng: random.Random) -> Reply:
    """The reply as later turns see it: now and then with one error in its profile block, or without its
    format: cut off, or with a line, a word or a syllable repeated."""
    # The next block is right all the same: a model that saw only faultless blocks would copy its own slips.
    if rng.random() >= 0.05:
        return Reply(_misnote(profile, rng) if rng.random() < 0.25 else profile, response, True)
    lines = render_reply(profile, response).split("\n")
    if rng.random() < 0.3:
        return Reply(Profile(), "\n".join(lines[1 : rng.randint(2, len(lines))]), False)
    again = rng.choice([rng.choice(lines), rng.choice(response.split()), rng.choice(SYLLABLES)])
    join = rng.choice(["\n", " ", ""]).join
    return Reply(Profile(), join([*lines[1:-1][: rng.randrange(3)], *[again] * rng.randint(3, 20)]), False)


def _misnote(profile: Profile, rng: random.Random) -> Profile:
    """The profile with one item left out, cut short, under another slot, or with a word from elsewhere."""
    if not len(profile):
        return profile
    items = dict(profile.items)
    slot = rng.choice(list(items))
    words = items[slot].split()
    kind = rng.choice(["gone", "short", "slot", "word"])
    if kind == "short" and len(words) > 1:
        items[slot] = " ".join(words[: rng.randrange(1, len(words))])
    elif kind == "word":
        words[rng.randrange(len(words))] = rng.choice(list_known_words())
        items[slot] = " ".join(words)
    else:
        value, free = items.pop(slot), [s for s in SLOTS if profile.get(s) is None]
        if kind == "slot":
            items[rng.choice(free) if free else slot] = value
    return Profile(teacher.sort_by_slot(items))
