"""Preference conversations in ALOE's format, which SFT and DPO learn from (appendix D.2): a reader for the
real file, and an offline generator in which the agenda user meets a personalised and a generic assistant."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpa_lib.agents import parties, world
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.protocols import SimulatedUser
from rlpa_lib.dialogue.turns import play_turns
from rlpa_lib.methods.table import Answer
from rlpa_lib.personas.sources import find_near_duplicates, load_personas, read_text, split_values
from rlpa_lib.runs.run import Run
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import SOURCES, USERS

FILE = "conversations.jsonl"
SIDES = ("preferred", "rejected")
INFERRED = ("inferred_profile", "inferred_personality")
Text = str | tuple[str, ...]


@dataclass(frozen=True)
class Exchange:
    """One turn of the tree: the user's message, both responses, and which of the two continued the dialogue.

    A response is a text, or a tuple of texts where the file lists several; `training_data` tells them apart.
    """

    user: str
    preferred: Text
    rejected: Text
    chosen: str
    inferred_profile: str = ""
    inferred_personality: str = ""

    @property
    def said(self) -> str:
        """The response that the user answered."""
        return pick_first(self.preferred if self.chosen == "preferred" else self.rejected)


@dataclass(frozen=True)
class Conversation:
    """One line of the file: a persona in prose, and its turns."""

    profile: str
    personality: str
    exchanges: tuple[Exchange, ...]

    def to_json(self) -> dict[str, Any]:
        """The line as ALOE's generator writes it; `read_conversations` reads it back."""
        turns = [
            {"user": e.user, "assistant": {side: getattr(e, side) for side in SIDES}, "chosen": e.chosen}
            | {key: getattr(e, key) for key in INFERRED}
            for e in self.exchanges
        ]
        return {"profile": self.profile, "personality": self.personality, "conversations": turns}


Talks = Sequence[Conversation]


def pick_first(text: Text) -> str:
    """The text itself, or the first of several."""
    return text if isinstance(text, str) else text[0]


def build_history(conversation: Conversation, turn: int, system: str) -> list[dict[str, str]]:
    """Chat messages up to the user's message of `turn` (from 0), with the responses that were really
    given."""
    said = [("system", system)]
    for exchange in conversation.exchanges[:turn]:
        said += [("user", exchange.user), ("assistant", exchange.said)]
    said.append(("user", conversation.exchanges[turn].user))
    return [{"role": role, "content": text} for role, text in said]


def read_conversations(path: str | Path) -> list[Conversation]:
    """All conversations of ALOE's `conversations.jsonl`, in the order of the file.

    Taken as they come: a byte-order mark, empty lines, several objects in one line, a list of texts where a
    text is usual, a persona that is still in JSON quotes (ALOE's generator writes the raw lines of its
    files), no inferred texts, fewer turns than ten. InputError with file, line, turn and key of the first
    broken line and the numbers of the others: not UTF-8, not JSON, a key that is missing or of another type,
    an empty message, a `chosen` that is neither preferred nor rejected, no turn, or no conversation at all.
    """
    found, broken = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        try:
            found += [_read_conversation(value) for value in split_values(line)]
        except ValueError as error:
            broken.append((number, error))
    if broken:
        (number, reason), *more = broken
        numbers = ", ".join(str(n) for n, _ in more[:9])
        others = f" (and {len(more)} more broken lines: {numbers})" if more else ""
        raise InputError(f"{path}: line {number}: {reason}{others}")
    if not found:
        raise InputError(f"{path}: holds no conversation")
    return found


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
        read_conversations(file)
    elif not USERS[cfg.user.kind].scripted:
        wanted = f"11_sft and 12_dpo need ALOE's {FILE} in this folder when user.kind is {cfg.user.kind}"
        raise InputError(f"personas.path: {wanted}")


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
    # A conversation about somebody who is nearly a test user would give the test away.
    talks, test = read_conversations(file), load_personas(cfg.personas, "vanilla", None, seed)
    about = [Persona(str(i), talk.profile, "", Profile()) for i, talk in enumerate(talks)]
    leaked = {int(persona.id) for persona, _ in find_near_duplicates(about, test)}
    found = [talk for i, talk in enumerate(talks) if i not in leaked]
    if n is not None and n > len(found):
        there = f"{len(found)} are there that are not about test users"
        raise InputError(f"{file}: {n} conversations asked for, but {there}")
    return random.Random(f"preferences|{seed}").sample(found, len(found))[:n]


def _read_conversation(tree: Any) -> Conversation:
    _check(tree, conversations="list", profile="str", personality="str")
    if not tree["conversations"]:
        raise ValueError("`conversations` has no turn")
    exchanges = []
    for k, turn in enumerate(tree["conversations"], start=1):
        try:
            exchanges.append(_read_turn(turn))
        except ValueError as error:
            raise ValueError(f"turn {k}: {error}") from None
    return Conversation(_unquote(tree["profile"]), _unquote(tree["personality"]), tuple(exchanges))


def _read_turn(turn: Any) -> Exchange:
    _check(turn, assistant="dict", chosen="str", user="str")
    _check(turn["assistant"], **dict.fromkeys(SIDES, "str or list"))
    if turn["chosen"] not in SIDES:
        raise ValueError(f"`chosen` is {turn['chosen']!r}, neither preferred nor rejected")
    said: dict[str, Text] = {}
    for key, value in {"user": turn["user"], **{side: turn["assistant"][side] for side in SIDES}}.items():
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"`{key}` is a list without texts, or with something else")
        if not all(text.strip() for text in texts):
            raise ValueError(f"`{key}` is empty")
        said[key] = tuple(map(str.strip, texts)) if isinstance(value, list) else value.strip()
    inferred = {key: turn[key] for key in INFERRED if isinstance(turn.get(key), str)}
    return Exchange(**said, chosen=turn["chosen"], **inferred)


def _unquote(text: str) -> str:
    """A persona's text without the JSON quotes that it may still wear; two texts of one line are joined."""
    text = text.strip()
    if text.startswith('"'):
        try:
            return " ".join(value for value in split_values(text) if isinstance(value, str))
        except ValueError:
            return text  # prose that happens to begin with a quotation mark
    return text


def _check(tree: Any, **wanted: str) -> None:
    """ValueError: the tree is no object, or one of these keys is missing or of another type."""
    if not isinstance(tree, dict):
        raise ValueError(f"an object was expected, not {type(tree).__name__}")
    for key, names in wanted.items():
        if key not in tree:
            raise ValueError(f"`{key}` is missing")
        if (found := type(tree[key]).__name__) not in names.split(" or "):
            raise ValueError(f"`{key}` is {found}, not {names}")
