"""One transcript of a user and the assistant, and what each party may see of it (section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rlpa_lib.dialogue.profile import Profile, Reply, Strictness, render_reply
from rlpa_lib.runs import storage

HISTORY_PROFILES = ("latest", "all", "none")


@dataclass(frozen=True)
class Utterance:
    """What the user says. `stated`: the true profile's slots that it reveals, for bookkeeping only.

    `phrases`: the words for each (as many as `stated`, or none if the user cannot tell).
    """

    text: str
    stated: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Turn:
    """A user utterance and its answer: `completion` as sampled, `reply` as parsed from it."""

    user: Utterance
    completion: str
    reply: Reply


@dataclass(frozen=True)
class Dialogue:
    """Finished turns, and the user utterance that waits for a reply, if any."""

    id: str
    persona_id: str
    turns: tuple[Turn, ...] = ()
    pending: Utterance | None = None

    def hear(self, utterance: Utterance) -> Dialogue:
        """The dialogue after the user speaks. ValueError: the utterance before is not answered yet."""
        if self.pending is not None:
            raise ValueError(f"dialogue {self.id}: the user spoke twice without a reply")
        return replace(self, pending=utterance)

    def answer(self, completion: str, reply: Reply, fallback: str | None = None) -> Dialogue:
        """The dialogue after the assistant's answer. ValueError: nothing is pending. Of a reply with a broken
        format user and policy see `fallback`, without one its text, as in the released code."""
        if fallback is not None and not reply.format_ok:
            reply = replace(reply, response=fallback)
        turn = Turn(self._require_pending(), completion, reply)
        return replace(self, turns=(*self.turns, turn), pending=None)

    def before(self, k: int) -> Dialogue:
        """The dialogue before answer `k` (from 0), the utterance pending. IndexError: no such answer."""
        return replace(self, turns=self.turns[:k], pending=self.turns[k].user)

    def utterances(self) -> list[Utterance]:
        """What the user has said, the pending utterance included, in order."""
        return [turn.user for turn in self.turns] + ([self.pending] if self.pending else [])

    def ledger(self) -> dict[str, int]:
        """Slot -> turn (from 1) in which the user first revealed it, the pending utterance included."""
        first: dict[str, int] = {}
        for index, utterance in enumerate(self.utterances(), start=1):
            for slot in utterance.stated:
                first.setdefault(slot, index)
        return first

    def facts(self) -> dict[str, str]:
        """Slot -> the words in which the user last stated it, the pending utterance included."""
        said = self.utterances()
        return {slot: phrase for u in said for slot, phrase in zip(u.stated, u.phrases, strict=False)}

    def to_json(self) -> dict:
        """A dict of plain values for one JSONL row; `from_json` reads it back."""
        return storage.plain(self)

    @staticmethod
    def from_json(data: dict) -> Dialogue:
        """Inverse of `to_json`. KeyError: a field is missing."""
        pending = None if data["pending"] is None else _read_utterance(data["pending"])
        turns = []
        for turn in data["turns"]:
            reply = turn["reply"]
            parsed = Reply(Profile.from_json(reply["profile"]), reply["response"], reply["format_ok"])
            turns.append(Turn(_read_utterance(turn["user"]), turn["completion"], parsed))
        return Dialogue(data["id"], data["persona_id"], tuple(turns), pending)

    def _require_pending(self) -> Utterance:
        if self.pending is None:
            raise ValueError(f"dialogue {self.id}: no user utterance is waiting for a reply")
        return self.pending


def policy_view(
    dialogue: Dialogue, system_prompt: str, history_profiles: Literal["latest", "all", "none"] = "latest",
    strictness: Strictness = "strict",
) -> list[dict[str, str]]:
    """Chat messages for the policy: system, then user and assistant in turn, the pending utterance last.

    With "latest" only the last assistant message keeps its profile block, so a prompt does not extend the one
    before it (as in the released code); "all" keeps every block, "none" none. A reply with a broken format
    gets an empty block; `strictness` is how replies are read. ValueError: nothing is pending, or
    `history_profiles` is something else.
    """
    if history_profiles not in HISTORY_PROFILES:
        raise ValueError(f"history_profiles must be one of {HISTORY_PROFILES}, not {history_profiles!r}")
    pending, messages = dialogue._require_pending(), [{"role": "system", "content": system_prompt}]
    for index, turn in enumerate(dialogue.turns, start=1):
        content, profile = turn.reply.response, turn.reply.profile if turn.reply.format_ok else Profile()
        if history_profiles == "all" or (history_profiles == "latest" and index == len(dialogue.turns)):
            content = render_reply(profile, content, strictness)
        messages += [{"role": "user", "content": turn.user.text}, {"role": "assistant", "content": content}]
    return [*messages, {"role": "user", "content": pending.text}]


def judge_view(dialogue: Dialogue) -> list[tuple[str, str]]:
    """("user" or "assistant", text) pairs: responses without profile blocks, the pending utterance last."""
    lines: list[tuple[str, str]] = []
    for turn in dialogue.turns:
        lines += [("user", turn.user.text), ("assistant", turn.reply.response)]
    return lines if dialogue.pending is None else [*lines, ("user", dialogue.pending.text)]


def _read_utterance(data: dict) -> Utterance:
    return Utterance(data["text"], tuple(data["stated"]), tuple(data["phrases"]))
