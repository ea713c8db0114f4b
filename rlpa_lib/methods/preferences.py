"""Preference conversations in ALOE's format, which SFT and DPO learn from (appendix D.2): a reader for the
real file, and an offline generator in which the agenda user meets a personalised and a generic assistant."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlpa_lib.agents import parties, world
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.protocols import SimulatedUser
from rlpa_lib.dialogue.turns import play_turns
from rlpa_lib.methods.table import Answer
from rlpa_lib.personas import aloe
from rlpa_lib.personas.conversations import FILE, SIDES, Conversation, Exchange, read_conversations
from rlpa_lib.personas.conversations import pick_first as pick_first  # notebooks show what is learned
from rlpa_lib.runs.run import Run
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import SOURCES, USERS, resolve


def build_history(conversation: Conversation, turn: int, system: str) -> list[dict[str, str]]:
    """Chat messages up to the user's message of `turn` (from 0), with the responses that were really
    given."""
    said = [("system", system)]
    for exchange in conversation.exchanges[:turn]:
        said += [("user", exchange.user), ("assistant", exchange.said)]
    said.append(("user", conversation.exchanges[turn].user))
    return [{"role": role, "content": text} for role, text in said]


def generate(personas: Sequence[Persona], user: SimulatedUser, turns: int, seed: int) -> list[Conversation]:
    """E conversations of K turns: the preferred response is the careful assistant's, who uses what has been
    told, the rejected one the generic assistant's, who does not; a fair coin decides which the user answers,
    as in ALOE.

    At turn 1 nothing has been told, so there the two differ in manner only.
    """

    def write(_: Sequence[Persona], heard: Sequence[Dialogue]) -> list[Exchange]:
        exchanges = []
        for dialogue in heard:
            rng = random.Random(f"preferences|{seed}|{dialogue.id}|{len(dialogue.turns) + 1}")
            both = world.write_pair(dialogue, rng)
            told = "\n".join(f"- {slot}: {phrase}" for slot, phrase in dialogue.facts().items())
            exchanges.append(Exchange(dialogue.pending.text, *both, rng.choice(SIDES), told))
        return exchanges

    def choose(_: Any, __: Any, exchanges: Sequence[Exchange]) -> list[Answer]:
        return [Answer(e.said, Reply(Profile(), e.said, True), 0) for e in exchanges]

    dialogues = [Dialogue(persona.id, persona.id) for persona in personas]
    played = list(play_turns(personas, dialogues, user, write, choose, turns=turns, judge_chooses=True))
    trees = zip(*(turn.answers for turn in played), strict=True)
    return [Conversation(p.description, p.personality, tree) for p, tree in zip(personas, trees, strict=True)]


def find_conversations(cfg: Config) -> Path | None:
    """`conversations.jsonl` beside the run's personas; None when there is none, or their source has none."""
    file = Path(cfg.personas.path or ".") / FILE
    return file if SOURCES[cfg.personas.source].has_conversations and file.is_file() else None


def check_conversations(cfg: Config) -> None:
    """Look for what `load_preferences` will need, before anything else is paid for. InputError as there."""
    if (file := find_conversations(cfg)) is not None:
        found = len(_read_training(cfg, file))
        there = f"{file} holds {found} that are not about test users"
    elif not USERS[cfg.user.kind].scripted:
        wanted = f"11_sft and 12_dpo need ALOE's {FILE} in this folder when user.kind is {cfg.user.kind}"
        raise InputError(f"personas.path: {wanted}")
    else:
        supply = resolve(SOURCES[cfg.personas.source].count)(cfg.personas, "train")
        found, there = supply.n, f"one is made for each training user, and {supply.how}"
        if supply.more:
            return
    for key, n in (("sft", cfg.sft.conversations), ("dpo", cfg.dpo.conversations)):
        if n is not None and n > found:
            told = f"{n} asked for, but {there}; set it to at most {found}"
            raise InputError(f"{key}.conversations: {told}")


def load_preferences(
    cfg: Config, user: SimulatedUser | None, n: int | None, seed: int, run: Run | Path | None = None
) -> list[Conversation]:
    """`n` conversations (None = all) of a run: ALOE's own where the file is there, in an order drawn from
    `seed` and without those about test users; else `generate` with `user`, made of rules, and training
    personas.

    `run` is needed where a language model fills the personas' slots. InputError: a broken line, fewer
    conversations than asked for, or no file where the users are language models.
    """
    if (file := find_conversations(cfg)) is None:
        check_conversations(cfg)
        people = parties.load_people(cfg, "train", n or cfg.personas.train_users, seed, run)
        return generate(people, user, cfg.rollout.turns, seed)
    found = _read_training(cfg, file)
    if n is not None and n > len(found):
        there = f"{len(found)} are there that are not about test users"
        raise InputError(f"{file}: {n} conversations asked for, but {there}")
    return random.Random(f"preferences|{seed}").sample(found, len(found))[:n]


def _read_training(cfg: Config, file: Path) -> list[Conversation]:
    """Those that are not about a test user, nearly or with a test user's personality: they would give the
    test away."""
    texts = aloe.read_texts(cfg.personas)
    return [talk for talk in read_conversations(file) if not texts.is_of_test(talk.profile, talk.personality)]
