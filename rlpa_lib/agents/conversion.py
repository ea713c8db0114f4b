"""Slot conversion by a language model (appendix C.2): description and personality become the ten slots."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, create_model

from rlpa_lib.agents.asking import JudgePrompt
from rlpa_lib.client.chat import Request
from rlpa_lib.dialogue import quoting
from rlpa_lib.dialogue.profile import SLOTS, Profile

if TYPE_CHECKING:
    from rlpa_lib.client.endpoint import ChatEndpoint

Language = Literal["en", "zh"]
ROUNDS = 3  # a first answer, and two in which the reasons against the one before are told
MAX_TEXT, MAX_VALUE = 8000, 200  # characters

_GIVEN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_ABSENT, _SAYS_ABSENT, _REMARK = (
    re.compile("|".join(_GIVEN[name]), re.IGNORECASE) for name in ("absent", "says_absent", "remark")
)
# Inside a value it would end the profile block that carries it.
_REPLY_TAG = re.compile(r"</?(?:profile|response)>", re.IGNORECASE)
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


class ConversionFailed(RuntimeError):
    """A model did not fill the slots as asked, even in the last round."""


class SlotValue(BaseModel):
    """One slot: its value, and whether the texts say so (else it was invented)."""

    value: str
    stated: bool


_KEYS = {slot: slot.lower().replace(" ", "_") for slot in SLOTS}
TenSlots = create_model("TenSlots", **dict.fromkeys(_KEYS.values(), (SlotValue, ...)))


def complaint(slot: str, value: str, language: Language) -> str | None:
    """What is wrong with a value: empty, absent, remark, language or long; None when nothing is."""
    text = value.strip()
    if not text:
        return "empty"
    if _ABSENT.fullmatch(text.strip(" .。!！\"'“”")) or _SAYS_ABSENT.search(text):
        return "absent"
    if _REMARK.search(text):
        return "remark"
    bare_age = slot == "Age" and language == "zh" and re.search(r"\d", text)
    if bool(_CHINESE.search(text)) != (language == "zh") and not bare_age:
        return "language"
    return "long" if len(text) > MAX_VALUE else None


def convert(
    texts: Sequence[tuple[str, str]], endpoint: ChatEndpoint, prompt: JudgePrompt, *, language: Language,
    max_tokens: int = 1024,
) -> list[Profile]:  # fmt: skip
    """A ten-slot profile for each (description, personality), in order; `filled` names the invented slots. A
    value that is empty, "not mentioned", explained, overlong or in the wrong language is asked for again with
    the reason, up to twice. ConversionFailed: still wrong. EndpointError: no readable answer."""
    shown = [[quoting.plain(text, MAX_TEXT) for text in pair] for pair in texts]
    talks = dict(enumerate(prompt.messages({"description": d, "personality": p}) for d, p in shown))
    profiles: dict[int, Profile] = {}
    refused: dict[int, dict[str, str]] = {}
    for _ in range(ROUNDS):
        requests = [Request(talk, TenSlots, max_tokens=max_tokens) for talk in talks.values()]
        answers = endpoint.complete(requests, desc="converter")
        for i, answer in zip(list(talks), answers, strict=True):
            profile, refused[i] = _read(answer.parsed, language)
            if profile is None:
                lines = [f"- {_KEYS[slot]}: {_reason(why, language)}" for slot, why in refused[i].items()]
                told = "\n".join([_reason("again", language), *lines])
                said = {"role": "assistant", "content": answer.text}, {"role": "user", "content": told}
                talks[i] = (*talks[i], *said)
            else:
                profiles[i] = profile
                del talks[i]
    if talks:
        first = min(talks)
        told = "; ".join(f"{slot} {_reason(why, 'en')}" for slot, why in refused[first].items())
        how_many = f"{len(talks)} of {len(texts)} personas could not be converted in {ROUNDS} rounds"
        raise ConversionFailed(f"{how_many}; number {first + 1}: {told}")
    return [profiles[i] for i in range(len(texts))]


def _read(answer: Any, language: Language) -> tuple[Profile | None, dict[str, str]]:
    """The profile, its values on one line, and slot -> complaint if it cannot stand."""
    given = {slot: getattr(answer, key) for slot, key in _KEYS.items()}
    values = {slot: " ".join(quoting.visible(item.value)[0].split()) for slot, item in given.items()}
    values = {slot: _REPLY_TAG.sub("", value).strip() for slot, value in values.items()}
    complaints = {slot: complaint(slot, value, language) for slot, value in values.items()}
    refused = {slot: why for slot, why in complaints.items() if why}
    invented = frozenset(slot for slot, item in given.items() if not item.stated)
    return None if refused else Profile(tuple(values.items()), invented), refused


def _reason(why: str, language: Language) -> str:
    return _GIVEN["reasons"][language][why].format(limit=MAX_VALUE)
