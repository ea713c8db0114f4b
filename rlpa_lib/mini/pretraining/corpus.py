"""The text that the tiny model is trained on: dialogues of agenda users with the mixed crowd of scripted
assistants, in the modes that the baselines need, and a warm-up of copying stated facts. Training personas and
phrasings only."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from rlpa_lib.dialogue.dialogue import Dialogue, Utterance, policy_view
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import SLOTS, Profile, render_reply
from rlpa_lib.dialogue.prompt_files import load_prompt
from rlpa_lib.mini import language
from rlpa_lib.mini.judge import gather_evidence
from rlpa_lib.mini.lexicon import LISTED
from rlpa_lib.mini.play import TURNS, Moment, play_crowd, roughen, scramble
from rlpa_lib.mini.teacher import MIX, STYLES, compose, sort_by_slot

EXAMPLES_PER_DIALOGUE = 4
SCRAMBLED_SHARES = (0.0, 0.3, 0.8, 1.0)
# Of the modes, the keys of MIX.
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
    personas: Iterable[Persona], seed: int, weights: Sequence[float] = MODE_WEIGHTS
) -> Iterator[Example]:
    """Examples in random modes from some turns of every persona, some of whose values are scrambled."""
    rng = random.Random(f"mix|{seed}")
    for persona in personas:
        mode, share, items = rng.choices(list(MIX), weights)[0], rng.choice(SCRAMBLED_SHARES), []
        for slot, value in persona.profile.items:
            mixed = slot in LISTED and rng.random() < share
            items.append((slot, scramble(slot, rng) if mixed else value))
        if rng.random() < 0.25:
            # Slots that no test knows, in place of its own or beside them; their values mean nothing.
            names = rng.sample(sorted(language.list_made_up_slots()), rng.choice([1, 2, 8]))
            made_up = [(name, scramble(rng.choice(LISTED), rng)) for name in names]
            items = made_up if len(names) == 8 else items + made_up
        wanted = set(rng.sample(range(TURNS), EXAMPLES_PER_DIALOGUE))
        person = replace(persona, profile=Profile(tuple(items)))
        yield from filter(None, play_crowd(person, seed, mode, partial(_make_example, mode, wanted)))


def _make_example(mode: str, wanted: set[int], moment: Moment, rng: random.Random) -> Example | None:
    """One training example of a mode from a moment of a dialogue; None if its turn is not wanted."""
    dialogue, profile, response = moment
    if len(dialogue.turns) not in wanted:
        return None
    slips = tuple(2 * i + 2 for i, turn in enumerate(dialogue.turns) if not turn.reply.format_ok)
    if mode == "rlpa":
        for turn in dialogue.turns[-1:]:
            right = render_reply(turn.reply.profile, turn.reply.response)
            if turn.reply.format_ok and turn.completion != right:
                slips = (*slips, 2 * len(dialogue.turns))
        messages = policy_view(dialogue, load_prompt("policy", "mini"))
        return Example(tuple(messages), render_reply(profile, response), slips)
    messages = policy_view(dialogue, load_prompt("base", "mini"), "none")
    if mode == "reminder":
        messages[-1] = _speak("user", f"{messages[-1]['content']} {load_prompt('reminder', 'mini')}")
    if mode == "rag":
        context = " ".join(t.user.text for t in dialogue.turns if t.user.stated) or "nothing yet."
        text = load_prompt("rag", "mini").format(context=context, message=messages[-1]["content"])
        messages, slips = [messages[0], _speak("user", text)], ()
    if mode == "revision":
        messages, response = _add_critique(messages, dialogue, response, rng)
    return Example(tuple(messages), response, slips)


def _add_critique(messages: list, dialogue: Dialogue, response: str, rng: random.Random) -> tuple[list, str]:
    """(messages, completion): a draft is criticised and, mostly, revised."""
    draft = compose(rng.choices(STYLES, MIX["base"])[0], gather_evidence(dialogue), rng)
    used = [phrase for sentence in language.recall([draft]) for _, phrase in sentence.facts]
    told = list(dialogue.facts().values())
    verdict = f"It used {used[0]}." if used else "It used nothing that you told me."
    advice = f"It should have looked at {rng.choice(told)}." if told else "There was nothing to use yet."
    opinion = f"{verdict} {advice}"
    messages = [*messages, _speak("assistant", draft), _speak("user", load_prompt("critique", "mini"))]
    if rng.random() < 0.4:
        return messages, opinion
    revise = load_prompt("revise", "mini")
    return [*messages, _speak("assistant", opinion), _speak("user", revise)], response


def _speak(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def make_copy_example(rng: random.Random) -> Example:
    """The warm-up: one to four facts, some of which mean nothing, are stated in any frame and listed."""
    names = [*SLOTS, *rng.sample(sorted(language.list_made_up_slots()), 3)]
    slots, said, items = rng.sample(names, rng.randint(1, 4)), [], {}
    for slot in slots:
        known = language.draw_spoken_value(slot, rng) if slot in SLOTS else ""
        if not known or (slot in LISTED and rng.random() < 0.9):
            known = scramble(slot if slot in SLOTS else rng.choice(LISTED), rng)
        items[slot] = known
        said.append(language.tell("user_train", slot, known, rng))
    utterance = roughen(Utterance(" ".join(said), tuple(items), tuple(items.values())), rng)
    messages = policy_view(Dialogue("copy", "copy").hear(utterance), load_prompt("policy", "mini"))
    profile = Profile(sort_by_slot(items))
    slot = rng.choice([s for s in slots if s in SLOTS] or ["Interests"])
    phrase = items.get(slot, items[slots[0]])
    response = language.speak("assistant", rng.choice(["ack", "suggest", "detail"]), rng, slot, phrase)
    return Example(tuple(messages), render_reply(profile, response))
