"""The text that the tiny model is trained on: dialogues of agenda users with the mixed crowd of scripted
assistants, in the modes that the baselines need, and a warm-up of copying stated facts. Training personas and
phrasings only."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.dialogue import Dialogue, Utterance, policy_view
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import SLOTS, Profile, render_reply
from rlpa_lib.mini import language
from rlpa_lib.mini import lexicon as lex
from rlpa_lib.mini.play import TURNS, Moment, list_words, play_crowd, roughen, scramble
from rlpa_lib.mini.teacher import MIX, STYLES, compose, draw_spoken_value, read_scene, sort_by_slot

MODES = tuple(MIX)
EXAMPLES_PER_DIALOGUE = 4
MODE_WEIGHTS = (0.54, 0.11, 0.10, 0.15, 0.10)
# A reminder is one sentence among many; what it asks for is learned last.
LAST_WEIGHTS = (0.44, 0.16, 0.20, 0.10, 0.10)


@dataclass(frozen=True)
class Example:
    """A prompt as chat messages, and the completion to learn; `slips`: messages not to be imitated."""

    messages: tuple[dict[str, str], ...]
    completion: str
    slips: tuple[int, ...] = ()


def make_corpus(
    personas: Sequence[Persona], seed: int, shares: Sequence[float], weights: Sequence[float] = MODE_WEIGHTS
) -> Iterator[Example]:
    """Examples in random modes from some turns of every persona; `shares`: of scrambled values."""
    rng, pool = random.Random(f"mix|{seed}"), list_words()
    for persona in personas:
        mode = rng.choices(MODES, weights)[0]
        person = scramble_persona(persona, rng, pool, rng.choice(shares))
        if rng.random() < 0.25:
            person = add_made_up_slots(person, rng, pool)
        wanted = set(rng.sample(range(TURNS), EXAMPLES_PER_DIALOGUE))

        def keep(moment: Moment, numbers: random.Random, mode=mode, wanted=wanted) -> Example | None:
            return make_example(mode, moment, numbers) if len(moment[0].turns) in wanted else None

        yield from filter(None, play_crowd(person, seed, mode, keep))


def scramble_persona(persona: Persona, rng: random.Random, pool: Sequence[str], share: float) -> Persona:
    """The persona with some values replaced by scrambled ones."""
    items = persona.profile.items
    mixed = ((s, scramble(s, rng, pool) if s in lex.FILES and rng.random() < share else v) for s, v in items)
    return replace(persona, profile=Profile(tuple(mixed)))


def add_made_up_slots(persona: Persona, rng: random.Random, pool: Sequence[str]) -> Persona:
    """The persona with slots that no test knows, in place of its own or beside them; values mean nothing."""
    names = rng.sample(sorted(language.list_made_up_slots()), rng.choice([1, 2, 8]))
    own = () if len(names) == 8 else persona.profile.items
    added = ((name, scramble(rng.choice(list(lex.FILES)), rng, pool)) for name in names)
    return replace(persona, profile=Profile((*own, *added)))


def make_example(mode: str, moment: Moment, rng: random.Random) -> Example:
    """One training example of a mode from a moment of a dialogue."""
    dialogue, profile, response = moment
    slips = tuple(2 * i + 2 for i, turn in enumerate(dialogue.turns) if not turn.reply.format_ok)
    if mode == "rlpa":
        for turn in dialogue.turns[-1:]:
            right = render_reply(turn.reply.profile, turn.reply.response)
            if turn.reply.format_ok and turn.completion != right:
                slips = (*slips, 2 * len(dialogue.turns))
        return Example(tuple(policy_view(dialogue, _load("policy"))), render_reply(profile, response), slips)
    messages = policy_view(dialogue, _load("base"), "none")
    if mode == "reminder":
        messages[-1] = {"role": "user", "content": f"{messages[-1]['content']} {_load('reminder')}"}
    if mode == "rag":
        context = " ".join(t.user.text for t in dialogue.turns if t.user.stated)
        text = _load("rag").format(context=context or "nothing yet.", message=messages[-1]["content"])
        messages, slips = [messages[0], {"role": "user", "content": text}], ()
    if mode == "revision":
        return replace(_make_revision(messages, dialogue, response, rng), slips=slips)
    return Example(tuple(messages), response, slips)


def _make_revision(messages: list, dialogue: Dialogue, response: str, rng: random.Random) -> Example:
    draft = compose(rng.choices(STYLES, MIX["base"])[0], read_scene(dialogue), rng)
    used = [phrase for options in language.parse(draft) if options for _, phrase in options[0].facts]
    told = list(dialogue.facts().values())
    verdict = f"It used {used[0]}." if used else "It used nothing that you told me."
    advice = f"It should have looked at {rng.choice(told)}." if told else "There was nothing to use yet."
    opinion = f"{verdict} {advice}"
    critique = [{"role": "assistant", "content": draft}, {"role": "user", "content": _load("critique")}]
    if rng.random() < 0.4:
        return Example((*messages, *critique), opinion)
    revise = [{"role": "assistant", "content": opinion}, {"role": "user", "content": _load("revise")}]
    return Example((*messages, *critique, *revise), response)


def make_copy_example(rng: random.Random, pool: Sequence[str], scrambled_share: float = 0.9) -> Example:
    """The warm-up: one to four facts, some of which mean nothing, are stated in any frame and listed."""
    names = [*SLOTS, *rng.sample(sorted(language.list_made_up_slots()), 3)]
    slots, said, items = rng.sample(names, rng.randint(1, 4)), [], {}
    for slot in slots:
        known = draw_spoken_value(slot, rng) if slot in SLOTS else ""
        free = slot not in ("Age", "Gender") and (not known or rng.random() < scrambled_share)
        if free:
            known = scramble(slot if slot in SLOTS else rng.choice(list(lex.FILES)), rng, pool)
        items[slot] = known
        said.append(language.tell("user_train", slot, items[slot], rng))
    utterance = roughen(Utterance(" ".join(said), tuple(items), tuple(items.values())), rng)
    messages = policy_view(Dialogue("copy", "copy").hear(utterance), _load("policy"))
    profile = Profile(sort_by_slot(items))
    slot = rng.choice([s for s in slots if s in SLOTS] or ["Interests"])
    items.setdefault(slot, items[slots[0]])
    frames = language.find_templates("assistant", rng.choice(["ack", "suggest", "detail"]), slot)
    response = language.realise(rng.choice(frames), rng, items)
    return Example(tuple(messages), render_reply(profile, response))


def _load(name: str) -> str:
    return prompt_files.load_prompt(name, "mini")
