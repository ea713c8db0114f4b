"""Slot conversion by a language model (appendix C.2): description and personality become the ten slots."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, create_model

from rlpa_lib.agents.asking import JudgePrompt
from rlpa_lib.client.chat import Answer, Request
from rlpa_lib.dialogue import quoting
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import SLOTS, Profile

if TYPE_CHECKING:
    from rlpa_lib.client.endpoint import ChatEndpoint

Language = Literal["en", "zh"]
ROUNDS = 3  # a first answer, and two in which the reasons against the one before are told
MAX_TEXT, MAX_VALUE = 8000, 200  # characters

_ABSENT = re.compile(
    r"(?:unknown|n/?a|none|null|nil|unspecified|undisclosed|undefined|unclear"
    r"|not (?:known|given|clear|available)|no (?:data|information|details?)"
    r"|无|暂无|不明|不知|不详|未知|未定|保密|没有|[-?/—–.…]*)",
    re.IGNORECASE,
)
_SAYS_ABSENT = re.compile(
    r"\b(?:not|never|isn't|wasn't) (?:been |explicitly |directly )?"
    r"(?:mentioned|specified|stated|provided|disclosed|indicated|applicable)\b"
    r"|\bno (?:information|mention|details?) (?:is|are|was|of|on|about|given|provided|available)\b"
    r"|\bunspecified\b|\bnot enough information\b"
    r"|未(?:提及|提到|说明|指定|提供|明确|透露|注明|描述)|没有(?:提及|提到|说明|相关信息)|信息(?:不足|不详|缺失)"
    r"|无(?:相关)?信息|情况不详|无从得知",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"[(（\[【][^)）\]】]*(?:infer|assum|based on|guess|presum|deduc|invented|made up"
    r"|推断|推测|假设|根据|依据|猜测|虚构|编造)[^)）\]】]*[)）\]】]",
    re.IGNORECASE,
)
# Inside a value it would end the profile block that carries it.
_REPLY_TAG = re.compile(r"</?(?:profile|response)>", re.IGNORECASE)
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_REASONS = {
    "en": {
        "empty": "is empty", "absent": "says that nothing is known; write a plausible value instead",
        "remark": "carries a remark on where it comes from; give the value alone",
        "language": "is not in English", "long": f"has more than {MAX_VALUE} characters",
        "again": "These values cannot stand. Send the whole object again.",
    },
    "zh": {
        "empty": "为空", "absent": "只说没有信息；请写一个合理的内容",
        "remark": "带有关于来源的说明；只写内容本身", "language": "不是中文",
        "long": f"超过 {MAX_VALUE} 个字符", "again": "下列内容不能接受，请重新给出完整的对象。",
    },
}


class ConversionFailed(RuntimeError):
    """A model did not fill the slots as asked, even in the last round."""


class SlotValue(BaseModel):
    """One slot: its value, and whether the texts say so (else it was invented)."""

    value: str
    stated: bool


def _key(slot: str) -> str:
    return slot.lower().replace(" ", "_")


TenSlots = create_model("TenSlots", **{_key(slot): (SlotValue, ...) for slot in SLOTS})


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
    talks = [prompt.messages(_values(*pair)) for pair in texts]
    profiles: dict[int, Profile] = {}
    refused: dict[int, dict[str, str]] = {}
    for _ in range(ROUNDS):
        asked = [i for i in range(len(texts)) if i not in profiles]
        if not asked:
            break
        requests = [Request(talks[i], TenSlots, max_tokens=max_tokens) for i in asked]
        for i, answer in zip(asked, endpoint.complete(requests, desc="converter"), strict=True):
            values, invented = _read(answer)
            complaints = {slot: complaint(slot, value, language) for slot, value in values.items()}
            refused[i] = {slot: why for slot, why in complaints.items() if why}
            if not refused[i]:
                profiles[i] = Profile(tuple(values.items()), invented)
            talks[i] = (*talks[i], *_again(answer, refused[i], language))
    failed = [i for i in range(len(texts)) if i not in profiles]
    if failed:
        told = "; ".join(f"{slot} {_REASONS['en'][why]}" for slot, why in refused[failed[0]].items())
        how_many = f"{len(failed)} of {len(texts)} personas could not be converted in {ROUNDS} rounds"
        raise ConversionFailed(f"{how_many}; number {failed[0] + 1}: {told}")
    return [profiles[i] for i in range(len(texts))]


def convert_personas(
    personas: Sequence[Persona], endpoint: ChatEndpoint, prompt: JudgePrompt, **options: Any
) -> list[Persona]:
    """The personas with profiles from `convert` in place of those that rules found."""
    profiles = convert([(p.description, p.personality) for p in personas], endpoint, prompt, **options)
    return [replace(persona, profile=profile) for persona, profile in zip(personas, profiles, strict=True)]


def _values(description: str, personality: str) -> dict[str, str]:
    texts = {"description": description, "personality": personality}
    return {name: quoting.plain(text, MAX_TEXT) for name, text in texts.items()}


def _read(answer: Answer) -> tuple[dict[str, str], frozenset[str]]:
    """Slot -> value on one line, and the invented slots."""
    given = {slot: getattr(answer.parsed, _key(slot)) for slot in SLOTS}
    values = {slot: " ".join(quoting.visible(item.value)[0].split()) for slot, item in given.items()}
    values = {slot: _REPLY_TAG.sub("", value).strip() for slot, value in values.items()}
    return values, frozenset(slot for slot, item in given.items() if not item.stated)


def _again(answer: Answer, refused: dict[str, str], language: Language) -> tuple[dict[str, str], ...]:
    if not refused:
        return ()
    words = _REASONS[language]
    told = "\n".join([words["again"], *(f"- {_key(slot)}: {words[why]}" for slot, why in refused.items())])
    return {"role": "assistant", "content": answer.text}, {"role": "user", "content": told}
