"""One transcript of a user and the assistant, and what each party may see of it (section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rlpa_lib.dialogue.profile import Profile, Reply, render_reply

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

    def ledger(self) -> dict[str, int]:
        """Slot -> turn (from 1) in which the user first revealed it, the pending utterance included."""
        utterances = [turn.user for turn in self.turns]
        if self.pending is not None:
            utterances.append(self.pending)
        first: dict[str, int] = {}
        for index, utterance in enumerate(utterances, start=1):
            for slot in utterance.stated:
                first.setdefault(slot, index)
        return first

    def facts(self) -> dict[str, str]:
        """Slot -> the words in which the user last stated it, the pending utterance included."""
        utterances = [turn.user for turn in self.turns] + ([self.pending] if self.pending else [])
        return {slot: phrase for u in utterances for slot, phrase in zip(u.stated, u.phrases, strict=False)}

    def to_json(self) -> dict:
        """A dict of plain values for one JSONL row; `from_json` reads it back."""
        return {
            "id": self.id,
            "persona_id": self.persona_id,
            "turns": [_turn_to_json(turn) for turn in self.turns],
            "pending": None if self.pending is None else _utterance_to_json(self.pending),
        }

    @staticmethod
    def from_json(data: dict) -> Dialogue:
        """Inverse of `to_json`. KeyError: a field is missing."""
        pending = data["pending"]
        return Dialogue(
            id=data["id"],
            persona_id=data["persona_id"],
            turns=tuple(_turn_from_json(turn) for turn in data["turns"]),
            pending=None if pending is None else _utterance_from_json(pending),
        )

    def _require_pending(self) -> Utterance:
        if self.pending is None:
            raise ValueError(f"dialogue {self.id}: no user utterance is waiting for a reply")
        return self.pending


def policy_view(
    dialogue: Dialogue, system_prompt: str, history_profiles: Literal["latest", "all", "none"] = "latest"
) -> list[dict[str, str]]:
    """Chat messages for the policy: system, then user and assistant in turn, the pending utterance last.

    With "latest" only the last assistant message keeps its profile block, so a prompt does not extend the one
    before it (as in the released code); "all" keeps every block, "none" none. A reply with a broken format
    gets an empty block. ValueError: nothing is pending, or `history_profiles` is something else.
    """
    if history_profiles not in HISTORY_PROFILES:
        raise ValueError(f"history_profiles must be one of {HISTORY_PROFILES}, not {history_profiles!r}")
    pending = dialogue._require_pending()
    messages = [{"role": "system", "content": system_prompt}]
    last = len(dialogue.turns) - 1
    for index, turn in enumerate(dialogue.turns):
        with_profile = history_profiles == "all" or (history_profiles == "latest" and index == last)
        content = _with_profile(turn.reply) if with_profile else turn.reply.response
        messages.append({"role": "user", "content": turn.user.text})
        messages.append({"role": "assistant", "content": content})
    messages.append({"role": "user", "content": pending.text})
    return messages


def judge_view(dialogue: Dialogue) -> list[tuple[str, str]]:
    """("user" or "assistant", text) pairs: responses without profile blocks, the pending utterance last."""
    lines: list[tuple[str, str]] = []
    for turn in dialogue.turns:
        lines.append(("user", turn.user.text))
        lines.append(("assistant", turn.reply.response))
    if dialogue.pending is not None:
        lines.append(("user", dialogue.pending.text))
    return lines


def _with_profile(reply: Reply) -> str:
    return render_reply(reply.profile if reply.format_ok else Profile(), reply.response)


def _utterance_to_json(utterance: Utterance) -> dict:
    return {"text": utterance.text, "stated": list(utterance.stated), "phrases": list(utterance.phrases)}


def _utterance_from_json(data: dict) -> Utterance:
    return Utterance(data["text"], tuple(data["stated"]), tuple(data["phrases"]))


def _turn_to_json(turn: Turn) -> dict:
    reply = {
        "profile": turn.reply.profile.to_json(),
        "response": turn.reply.response,
        "format_ok": turn.reply.format_ok,
    }
    return {"user": _utterance_to_json(turn.user), "completion": turn.completion, "reply": reply}


def _turn_from_json(data: dict) -> Turn:
    reply = data["reply"]
    parsed = Reply(Profile.from_json(reply["profile"]), reply["response"], reply["format_ok"])
    return Turn(_utterance_from_json(data["user"]), data["completion"], parsed)
