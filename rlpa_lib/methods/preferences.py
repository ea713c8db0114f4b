"""Preference conversations in ALOE's tree-of-turns format, which SFT and DPO learn from (appendix D.2): a reader for the real
file, and an offline generator in which the agenda user meets a personalised and a generic responder."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpa_lib.agents import parties
from rlpa_lib.dialogue.dialogue import Dialogue
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.protocols import SimulatedUser
from rlpa_lib.personas.sources import load_personas, near_duplicates
from rlpa_lib.settings.config import Config, InputError

if TYPE_CHECKING:
    from rlpa_lib.runs.run import Run

FILE = "conversations.jsonl"
SIDES = ("preferred", "rejected")
Text = str | tuple[str, ...]


@dataclass(frozen=True)
class Exchange:
    """One turn of the tree: the user's message, both responses, and which of the two continued the dialogue.

    A response is a text, or a tuple of texts where the file lists several; their difference matters to `baselines.data`.
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
            {"user": e.user, "assistant": {"preferred": e.preferred, "rejected": e.rejected}, "chosen": e.chosen,
             "inferred_profile": e.inferred_profile, "inferred_personality": e.inferred_personality}
            for e in self.exchanges
        ]  # fmt: skip
        return {"profile": self.profile, "personality": self.personality, "conversations": turns}


def pick_first(text: Text) -> str:
    """The text itself, or the first of several."""
    return text if isinstance(text, str) else text[0]


def build_history(conversation: Conversation, turn: int, system: str) -> list[dict[str, str]]:
    """Chat messages up to the user's message of `turn` (from 0), with the responses that were really given before it."""
    messages = [{"role": "system", "content": system}]
    for exchange in conversation.exchanges[:turn]:
        messages += [{"role": "user", "content": exchange.user}, {"role": "assistant", "content": exchange.said}]
    return [*messages, {"role": "user", "content": conversation.exchanges[turn].user}]


def read_conversations(path: str | Path) -> list[Conversation]:
    """All conversations of ALOE's `conversations.jsonl`, in the order of the file.

    Taken as they come: a byte-order mark, empty lines, several objects in one line, a list of texts where a text is usual, a persona that is
    still in JSON quotes (ALOE's generator writes the raw lines of its files), no inferred texts, fewer turns than ten.
    InputError with file, line, turn and key of the first broken line and the numbers of the others: not UTF-8, not JSON, a key that is
    missing or of another type, an empty message, a `chosen` that is neither preferred nor rejected, no turn, or no conversation at all.
    """
    found, broken = [], []
    for number, line in enumerate(_text(Path(path)).split("\n"), start=1):
        try:
            found += [_conversation(value) for value in _values(line)]
        except (json.JSONDecodeError, ValueError) as error:
            reason = f"not JSON: {error.msg}" if isinstance(error, json.JSONDecodeError) else str(error)
            broken.append((number, reason))
    if broken:
        number, reason = broken[0]
        others = f" (and {len(broken) - 1} more broken lines: {', '.join(str(n) for n, _ in broken[1:10])})" if broken[1:] else ""
        raise InputError(f"{path}: line {number}: {reason}{others}")
    if not found:
        raise InputError(f"{path}: holds no conversation")
    return found


def generate(personas: Sequence[Persona], user: SimulatedUser, turns: int, seed: int) -> list[Conversation]:
    """E conversations of K turns: the preferred response is the careful assistant's, who uses what has been told, the rejected one the
    generic assistant's, who does not; a fair coin decides which of them the user answers, as in ALOE's generator.

    At turn 1 nothing has been told, so there the two differ in manner only. The same arguments give the same conversations.
    """
    dialogues, trees = [Dialogue(p.id, p.id) for p in personas], [[] for _ in personas]
    for turn in range(1, turns + 1):
        dialogues = [d.hear(u) for d, u in zip(dialogues, user.reply(personas, dialogues), strict=True)]
        for i, dialogue in enumerate(dialogues):
            exchange = _exchange(dialogue, random.Random(f"preferences|{seed}|{dialogue.id}|{turn}"))
            trees[i].append(exchange)
            dialogues[i] = dialogue.answer(exchange.said, Reply(Profile(), exchange.said, True))
    return [Conversation(p.description, p.personality, tuple(tree)) for p, tree in zip(personas, trees, strict=True)]


def find_conversations(cfg: Config) -> Path | None:
    """`conversations.jsonl` beside the run's ALOE files, or None when there is none (or the personas are not ALOE's)."""
    file = Path(cfg.personas.path or ".") / FILE
    return file if cfg.personas.source == "aloe" and file.is_file() else None


def check_conversations(cfg: Config) -> None:
    """Look for what `load_preferences` will need, before anything else is paid for. InputError as there."""
    if (file := find_conversations(cfg)) is not None:
        read_conversations(file)
    elif cfg.user.kind != "agenda":
        raise InputError(f"personas.path: 11_sft and 12_dpo need ALOE's {FILE} in this folder when user.kind is {cfg.user.kind}")


def load_preferences(
    cfg: Config, user: SimulatedUser | None, n: int | None, seed: int, run: Run | Path | None = None
) -> list[Conversation]:
    """`n` conversations (None = all) of a run: ALOE's own where the file is there, in an order drawn from `seed` and without those about
    test users; else `generate` with `user`, which must be the agenda user, and the run's training personas.

    `run` is needed where a language model fills the personas' slots. InputError: a broken line, fewer conversations than asked for,
    or no file where the users are language models.
    """
    if (file := find_conversations(cfg)) is None:
        check_conversations(cfg)
        people = parties.load_people(cfg, "train", n or cfg.personas.train_users, seed, run)
        return generate(people, user, cfg.rollout.turns, seed)
    found = _without_test_users(read_conversations(file), cfg, seed)
    if n is not None and n > len(found):
        raise InputError(f"{file}: {n} conversations asked for, but {len(found)} are there that are not about test users")
    return random.Random(f"preferences|{seed}").sample(found, len(found))[:n]


def _exchange(dialogue: Dialogue, rng: random.Random) -> Exchange:
    from rlpa_lib.mini.teacher import compose, scene  # the offline world; real files need none of it

    view = scene(dialogue)
    preferred = compose("careful", view, rng)
    rejected = next((r for r in (compose("generic", view, rng) for _ in range(8)) if r != preferred), preferred)
    told = "\n".join(f"- {slot}: {phrase}" for slot, phrase in dialogue.facts().items())
    return Exchange(dialogue.pending.text, preferred, rejected, rng.choice(SIDES), told)


def _without_test_users(conversations: list[Conversation], cfg: Config, seed: int) -> list[Conversation]:
    """A conversation about somebody who is nearly a test user would give the test away."""
    test = load_personas(cfg.personas, "vanilla", None, seed)  # their texts alone are compared, whoever fills the slots
    about = [Persona(str(i), c.profile, "", Profile()) for i, c in enumerate(conversations)]
    leaked = {int(persona.id) for persona, _ in near_duplicates(about, test)}
    return [c for i, c in enumerate(conversations) if i not in leaked]


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: line {data[: error.start].count(10) + 1}: not UTF-8") from error


def _values(line: str) -> Iterator[Any]:
    """The JSON values of a line, of which there may be several."""
    rest = line.strip()
    while rest:
        value, end = json.JSONDecoder().raw_decode(rest)
        yield value
        rest = rest[end:].strip()


def _conversation(value: Any) -> Conversation:
    if not isinstance(value, dict):
        raise ValueError(f"an object was expected, not {type(value).__name__}")
    turns = _key(value, "conversations", list, "")
    if not turns:
        raise ValueError("`conversations` has no turn")
    exchanges = tuple(_turn(turn, f"turn {k}: ") for k, turn in enumerate(turns, start=1))
    return Conversation(_persona(value, "profile"), _persona(value, "personality"), exchanges)


def _turn(turn: Any, where: str) -> Exchange:
    if not isinstance(turn, dict):
        raise ValueError(f"{where}an object was expected, not {type(turn).__name__}")
    both = _key(turn, "assistant", dict, where)
    chosen = _key(turn, "chosen", str, where)
    if chosen not in SIDES:
        raise ValueError(f"{where}`chosen` is {chosen!r}, neither preferred nor rejected")
    inferred = [turn.get(key) if isinstance(turn.get(key), str) else "" for key in ("inferred_profile", "inferred_personality")]
    return Exchange(_filled(_key(turn, "user", str, where), "user", where), *(_response(both, side, where) for side in SIDES), chosen, *inferred)


def _response(both: dict, side: str, where: str) -> Text:
    value = _key(both, side, (str, list), where)
    if isinstance(value, str):
        return _filled(value, side, where)
    if not value or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{where}`{side}` is a list without texts, or with something else")
    return tuple(_filled(text, side, where) for text in value)


def _key(tree: dict, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    if key not in tree:
        raise ValueError(f"{where}`{key}` is missing")
    if not isinstance(tree[key], kind):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{where}`{key}` is {type(tree[key]).__name__}, not {names}")
    return tree[key]


def _filled(text: str, key: str, where: str) -> str:
    if not text.strip():
        raise ValueError(f"{where}`{key}` is empty")
    return text.strip()


def _persona(tree: dict, key: str) -> str:
    """A persona's text without the JSON quotes that it may still wear; two texts of one line are joined."""
    text = _key(tree, key, str, "").strip()
    if text.startswith('"'):
        try:
            return " ".join(value for value in _values(text) if isinstance(value, str))
        except json.JSONDecodeError:
            return text  # prose that happens to begin with a quotation mark
    return text
