"""Slot conversion by a language model (appendix C.2): description and personality become the ten slots, or a
description slots of the model's own naming (Extended ALOE)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
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
MAX_TEXT, MAX_VALUE, MAX_NAME = 8000, 200, 40  # characters

_GIVEN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_ABSENT, _SAYS_ABSENT, _REMARK, _NO_NAME = (
    re.compile("|".join(_GIVEN[name]), re.IGNORECASE)
    for name in ("absent", "says_absent", "remark", "no_name")
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


class FreeSlot(BaseModel):
    """One fact: what it is about, in a word or two, and what the text says."""

    slot: str
    value: str


Messages = tuple[dict[str, str], ...]
Read = Callable[[Any, Language], tuple[Profile | None, dict[str, str]]]
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
    talks = [prompt.messages({"description": d, "personality": p}) for d, p in shown]
    return _convert(talks, [TenSlots] * len(talks), _read, endpoint, language, max_tokens)


def convert_freely(
    texts: Sequence[tuple[str, int]], endpoint: ChatEndpoint, prompt: JudgePrompt, *, language: Language,
    max_tokens: int = 1024,
) -> list[Profile]:  # fmt: skip
    """A profile with slots of the model's own naming for each (description, number of facts in it), in order
    (Extended ALOE: "no constraints on the slot keys"). Names are checked as values are, and refused where
    they name nothing ("Fact 1"); a name given twice is numbered. Errors as in `convert`."""
    talks = [prompt.messages({"description": quoting.plain(d, MAX_TEXT), "facts": n}) for d, n in texts]
    schemas = [free_schema(n) for _, n in texts]
    return _convert(talks, schemas, _read_freely, endpoint, language, max_tokens)


@cache
def free_schema(n: int) -> type[BaseModel]:
    """The answer {"fact_1": {"slot": "...", "value": "..."}, ..., "fact_n": ...}."""
    return create_model(f"FreeSlots_{n}", **{f"fact_{i}": (FreeSlot, ...) for i in range(1, n + 1)})


def _convert(
    first: Sequence[Messages], schemas: Sequence[type[BaseModel]], read: Read, endpoint: ChatEndpoint,
    language: Language, max_tokens: int,
) -> list[Profile]:  # fmt: skip
    """Profiles that `read` finds nothing wrong with, each asked for in up to ROUNDS rounds."""
    talks, profiles = dict(enumerate(first)), dict[int, Profile]()
    refused: dict[int, dict[str, str]] = {}
    for _ in range(ROUNDS):
        requests = [Request(talk, schemas[i], max_tokens=max_tokens) for i, talk in talks.items()]
        answers = endpoint.complete(requests, desc="converter") if requests else []
        for i, answer in zip(list(talks), answers, strict=True):
            profile, refused[i] = read(answer.parsed, language)
            if profile is None:
                wrong = refused[i].items()
                lines = [f"- {_KEYS.get(key, key)}: {_reason(why, language)}" for key, why in wrong]
                told = "\n".join([_reason("again", language), *lines])
                said = {"role": "assistant", "content": answer.text}, {"role": "user", "content": told}
                talks[i] = (*talks[i], *said)
            else:
                profiles[i] = profile
                del talks[i]
    if talks:
        one = min(talks)
        told = "; ".join(f"{key} {_reason(why, 'en')}" for key, why in refused[one].items())
        how_many = f"{len(talks)} of {len(first)} personas could not be converted in {ROUNDS} rounds"
        raise ConversionFailed(f"{how_many}; number {one + 1}: {told}")
    return [profiles[i] for i in range(len(first))]


def _read(answer: Any, language: Language) -> tuple[Profile | None, dict[str, str]]:
    """The profile, its values on one line, and key -> complaint if it cannot stand."""
    given = {slot: getattr(answer, key) for slot, key in _KEYS.items()}
    values = {slot: _clean(item.value) for slot, item in given.items()}
    complaints = {slot: complaint(slot, value, language) for slot, value in values.items()}
    refused = {slot: why for slot, why in complaints.items() if why}
    invented = frozenset(slot for slot, item in given.items() if not item.stated)
    return None if refused else Profile(tuple(values.items()), invented), refused


def _read_freely(answer: Any, language: Language) -> tuple[Profile | None, dict[str, str]]:
    """As `_read`; what is told twice counts once."""
    items, refused = dict[str, str](), {}
    for key, item in vars(answer).items():
        slot, value = _clean(item.slot), _clean(item.value)
        bare = re.fullmatch(r"[\d.,:/ -]*\d[\d.,:/ -]*", value)  # numbers are of no language
        wrong = complaint("Age" if bare else slot, value, language)
        if wrong := wrong or complain_name(slot, language):
            refused[key] = wrong
        elif (slot, value) not in items.items():
            names = (slot if number == 1 else f"{slot} {number}" for number in count(1))
            items[next(name for name in names if name not in items)] = value
    return None if refused else Profile(tuple(items.items())), refused


def complain_name(slot: str, language: Language) -> str | None:
    """What is wrong with a slot's name: name (it says nothing, or would break a profile line) or language."""
    if not slot or len(slot) > MAX_NAME or re.search("[:：]", slot) or _NO_NAME.fullmatch(slot):
        return "name"
    return "language" if bool(_CHINESE.search(slot)) != (language == "zh") else None


def _clean(text: str) -> str:
    """A text on one line, without what nobody sees and without tags of a reply."""
    return _REPLY_TAG.sub("", " ".join(quoting.visible(text)[0].split())).strip()


def _reason(why: str, language: Language) -> str:
    return _GIVEN["reasons"][language][why].format(limit=MAX_VALUE)
