"""The text that the tiny model is trained on: dialogues of agenda users with a mixed crowd of scripted assistants, in the
modes that the baselines need, and a warm-up of copying stated facts. Training personas and phrasings only."""
from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.dialogue import Dialogue, Utterance, policy_view
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import SLOTS, Profile, Reply, render_reply
from rlpa_lib.mini import language
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.mini.teacher import MIX, STYLES, compose, in_slot_order, scene, spoken_value, write_profile
from rlpa_lib.mini.user import AgendaUser

TURNS = 10
SYLLABLES = "ba be bo da de do fa fi ga go ha ka ki la le lo ma mi mo na ne no pa ra re ri ro sa se so ta ti to va ve wa zu".split()
MODES = ("rlpa", "base", "reminder", "revision", "rag")
MODE_WEIGHTS = (0.54, 0.11, 0.10, 0.15, 0.10)
LAST_WEIGHTS = (0.44, 0.16, 0.20, 0.10, 0.10)  # a reminder is one sentence among many; what it asks for is learned last


@dataclass(frozen=True)
class Example:
    """A prompt as chat messages, and the completion that is learned; `slips` are the places of messages that are not to be imitated."""

    messages: tuple[dict[str, str], ...]
    completion: str
    slips: tuple[int, ...] = ()


def pseudo_word(rng: random.Random) -> str:
    """A word that means nothing: copying it cannot be memorised."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3))) + rng.choice(["", "n", "r", "l", "s"])


def scramble(slot: str, rng: random.Random, pool: Sequence[str]) -> str:
    """A value that looks like one of the slot's but holds words from elsewhere."""
    words = rng.choice(rng.choice(lex.lexicon().values(slot, "train")).forms).split()
    places = [i for i, w in enumerate(words) if w not in lex.STOPWORDS]
    for i in rng.sample(places, min(len(places), rng.randint(1, 2))):
        word = rng.choice(pool) if rng.random() < 0.85 else pseudo_word(rng)
        words[i] = word.capitalize() if words[i][:1].isupper() else word
    return " ".join(words)


@cache
def word_pool() -> tuple[str, ...]:
    """Every word of the world's values, the test values included, one by one: a base model knows the words of its
    language. What it never meets before the test is the values themselves, and the sentence frames around them."""
    return tuple(sorted({w for values in lex.lexicon().by_slot.values() for v in values for f in v.forms for w in f.split()}))


@cache
def known_words() -> tuple[str, ...]:
    """The word pool and every word that users say, test users included: a word is known, a sentence frame is not."""
    said = " ".join(t.text for name in ("user_train", "user_test", "changes_train", "topics") for t in language.grammar(name))
    return tuple(sorted({*word_pool(), *re.findall(r"[a-zA-Z'-]+", re.sub(r"\{.*?\}", " ", said))}))


def disturbed(utterance: Utterance, rng: random.Random) -> Utterance:
    """The same facts in rougher words: sometimes another word stands in a frame, sometimes a sentence that tells nothing
    lies between the others. A model that knows a few frames by heart takes every other sentence for a fact."""
    text = utterance.text
    if utterance.phrases and rng.random() < 0.3:
        frame = re.split("(" + "|".join(map(re.escape, sorted(utterance.phrases, key=len, reverse=True))) + ")", text)
        words = [(i, m) for i in range(0, len(frame), 2) for m in re.finditer(r"(?<= )[a-z]{2,}\b", frame[i])]
        if words:
            i, word = rng.choice(words)
            frame[i] = frame[i][: word.start()] + rng.choice(known_words()) + frame[i][word.end() :]
            text = "".join(frame)
    if rng.random() < 0.3:
        text = " ".join(rng.sample([aside(rng), text], 2))
    return replace(utterance, text=text)


def aside(rng: random.Random) -> str:
    """A sentence about nothing, with random words in it."""
    text = language.realise(rng.choice(language.grammar("asides")), rng, {"word": "{}"})
    return text.format(*(rng.choice(known_words()) for _ in range(text.count("{}"))))


def with_made_up_slots(persona: Persona, rng: random.Random, pool: Sequence[str]) -> Persona:
    """The persona with slots that no test knows, instead of its own or beside them; their values mean nothing."""
    names = rng.sample(sorted(language.made_up_slots()), rng.choice([1, 2, 8]))
    own = () if len(names) == 8 else persona.profile.items
    return replace(persona, profile=Profile((*own, *((name, scramble(rng.choice(list(lex.FILES)), rng, pool)) for name in names))))


def scrambled(persona: Persona, rng: random.Random, pool: Sequence[str], share: float) -> Persona:
    """The persona with some values replaced by scrambled ones."""
    items = tuple((s, scramble(s, rng, pool) if s in lex.FILES and rng.random() < share else v) for s, v in persona.profile.items)
    return replace(persona, profile=Profile(items))


def dialogues(personas: Sequence[Persona], seed: int, mode: str) -> Iterator[tuple[Dialogue, Profile, str, random.Random]]:
    """Play every persona for ten turns; yields before each reply (dialogue with a pending utterance, profile, response, rng)."""
    for persona in personas:
        rng, user = random.Random(f"corpus|{seed}|{persona.id}"), AgendaUser(seed)
        dialogue, profile = Dialogue(persona.id, persona.id), None
        diligence, style = rng.choice([0.4, 0.7, 0.9, 1.0]), rng.choices(STYLES, MIX[mode])[0]
        for _ in range(TURNS):
            persona, utterance = _changing(persona, dialogue, user.reply([persona], [dialogue])[0], rng)
            dialogue = dialogue.hear(disturbed(utterance, rng) if dialogue.turns else utterance)
            if rng.random() < 0.7:
                style = rng.choices(STYLES, MIX[mode])[0]
            profile = write_profile(dialogue, profile, diligence, rng)
            response = compose(style, scene(dialogue), rng)
            yield dialogue, profile, response, rng
            dialogue = dialogue.answer(render_reply(profile, response), _remembered(profile, response, rng))


def _remembered(profile: Profile, response: str, rng: random.Random) -> Reply:
    """The reply as the next turns see it: now and then broken, or with a profile block that is wrong in one place. What the assistant
    notes next is right all the same: a model that has only ever seen faultless blocks copies its own slips from turn to turn."""
    if rng.random() < 0.05:
        return Reply(Profile(), _broken(profile, response, rng), False)
    return Reply(_misnoted(profile, rng) if rng.random() < 0.25 else profile, response, True)


def _broken(profile: Profile, response: str, rng: random.Random) -> str:
    """Text of a reply that lost its format: a line, a word or a piece of a word again and again, or an end in the middle."""
    lines = render_reply(profile, response).split("\n")
    if rng.random() < 0.3:
        return "\n".join(lines[1 : rng.randint(2, len(lines))])
    again = rng.choice([rng.choice(lines), rng.choice(response.split()), rng.choice(SYLLABLES)])
    return rng.choice(["\n", " ", ""]).join([*lines[1:-1][: rng.randrange(3)], *[again] * rng.randint(3, 20)])


def _misnoted(profile: Profile, rng: random.Random) -> Profile:
    """The profile with one item left out, cut short, under another slot, or with a word from elsewhere."""
    if not len(profile):
        return profile
    items = list(profile.items)
    at = rng.randrange(len(items))
    slot, value = items.pop(at)
    words = value.split()
    kind = rng.choice(["gone", "short", "slot", "word"])
    if kind == "short" and len(words) > 1:
        items.insert(at, (slot, " ".join(words[: rng.randrange(1, len(words))])))
    if kind == "slot":
        free = [s for s in SLOTS if profile.get(s) is None]
        items.append((rng.choice(free), value) if free else (slot, value))
    if kind == "word":
        words[rng.randrange(len(words))] = rng.choice(known_words())
        items.insert(at, (slot, " ".join(words)))
    return Profile(in_slot_order(dict(items)))


def _changing(persona: Persona, dialogue: Dialogue, utterance: Utterance, rng: random.Random) -> tuple[Persona, Utterance]:
    """Now and then something that was told is no longer so, and the user says what is so now."""
    told = [s for s in dialogue.ledger() if s in SLOTS and s not in utterance.stated]
    if not told or rng.random() > 0.04:
        return persona, utterance
    slot = rng.choice(told)
    phrase = spoken_value(slot, rng) if slot in ("Age", "Gender") else scramble(slot, rng, word_pool())
    text = language.realise(rng.choice(language.templates("changes_train", "changed", slot)), rng, {slot: phrase})
    changed = replace(persona, profile=persona.profile.replace(slot, phrase))
    return changed, Utterance(f"{utterance.text} {text}", (*utterance.stated, slot), (*utterance.phrases, phrase))


def copy_example(rng: random.Random, pool: Sequence[str], scrambled_share: float = 0.9) -> Example:
    """The warm-up: one to four facts are stated, in any frame, and listed. Some of the values mean nothing."""
    slots, said, items = rng.sample([*SLOTS, *rng.sample(sorted(language.made_up_slots()), 3)], rng.randint(1, 4)), [], {}
    for slot in slots:
        known = spoken_value(slot, rng) if slot in SLOTS else ""
        free = slot not in ("Age", "Gender") and (not known or rng.random() < scrambled_share)
        items[slot] = scramble(slot if slot in SLOTS else rng.choice(list(lex.FILES)), rng, pool) if free else known
        said.append(language.tell("user_train", slot, items[slot], rng))
    user = Dialogue("copy", "copy").hear(disturbed(Utterance(" ".join(said), tuple(items), tuple(items.values())), rng))
    profile = Profile(in_slot_order(items))
    messages = policy_view(user, _load("policy"))
    slot = rng.choice([s for s in slots if s in SLOTS] or ["Interests"])
    items.setdefault(slot, items[slots[0]])
    response = language.realise(rng.choice(language.templates("assistant", rng.choice(["ack", "suggest", "detail"]), slot)), rng, items)
    return Example(tuple(messages), render_reply(profile, response))


def _load(name: str) -> str:
    return prompt_files.load_prompt(name, "mini")


def example(mode: str, dialogue: Dialogue, profile: Profile, response: str, rng: random.Random) -> Example:
    """One training example of a mode from a moment of a dialogue."""
    slips = tuple(2 * i + 2 for i, turn in enumerate(dialogue.turns) if not turn.reply.format_ok)
    if mode == "rlpa":
        last = dialogue.turns[-1] if dialogue.turns else None
        misnoted = last is not None and last.reply.format_ok and last.completion != render_reply(last.reply.profile, last.reply.response)
        slips = (*slips, *([2 * len(dialogue.turns)] if misnoted else []))
        return Example(tuple(policy_view(dialogue, _load("policy"))), render_reply(profile, response), slips)
    messages = policy_view(dialogue, _load("base"), "none")
    if mode == "reminder":
        messages[-1] = {"role": "user", "content": f"{messages[-1]['content']} {_load('reminder')}"}
    if mode == "rag":
        context = " ".join(t.user.text for t in dialogue.turns if t.user.stated)
        text = _load("rag").format(context=context or "nothing yet.", message=messages[-1]["content"])
        messages, slips = [messages[0], {"role": "user", "content": text}], ()
    if mode == "revision":
        return replace(_revision(messages, dialogue, response, rng), slips=slips)
    return Example(tuple(messages), response, slips)


def _revision(messages: list, dialogue: Dialogue, response: str, rng: random.Random) -> Example:
    draft = compose(rng.choices(STYLES, MIX["base"])[0], scene(dialogue), rng)
    sentences = [options[0] for options in language.parse(draft) if options]
    used = [phrase for s in sentences for _, phrase in s.facts]
    told = list(dialogue.facts().values())
    verdict = f"It used {used[0]}." if used else "It used nothing that you told me."
    advice = f"It should have looked at {rng.choice(told)}." if told else "There was nothing to use yet."
    critique = [{"role": "assistant", "content": draft}, {"role": "user", "content": _load("critique")}]
    if rng.random() < 0.4:
        return Example((*messages, *critique), f"{verdict} {advice}")
    revise = [{"role": "assistant", "content": f"{verdict} {advice}"}, {"role": "user", "content": _load("revise")}]
    return Example((*messages, *critique, *revise), response)


def corpus(
    personas: Sequence[Persona], seed: int, shares: Sequence[float], turns_per_dialogue: int = 4, weights: Sequence[float] = MODE_WEIGHTS
) -> Iterator[Example]:
    """Examples in random modes, some turns of every persona's dialogue; `shares` are the shares of scrambled values to draw from."""
    rng, pool = random.Random(f"mix|{seed}"), word_pool()
    for persona in personas:
        mode = rng.choices(MODES, weights)[0]
        played = scrambled(persona, rng, pool, rng.choice(shares))
        if rng.random() < 0.25:
            played = with_made_up_slots(played, rng, pool)
        wanted = set(rng.sample(range(TURNS), turns_per_dialogue))
        for turn, moment in enumerate(dialogues([played], seed, mode)):
            if turn in wanted:
                yield example(mode, *moment)
