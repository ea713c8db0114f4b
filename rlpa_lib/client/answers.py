"""From a server's JSON to the samples of an answer: thinking told from speaking, and one checked object in a text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import pydantic

from rlpa_lib.client.chat import Answer, Filtered, Refused, Request

_THINK = re.compile(r"\s*<(think|thinking)>(.*?)(?:</\1>|\Z)", re.DOTALL)
# Templates that open the thinking in the prompt leave only its end. A raw line break cannot stand inside a JSON string, so an object that
# merely quotes the tag is not cut in two.
_HEADLESS = re.compile(r"(.*?)</(?:think|thinking)>(?:[ \t]*\n|\s*\Z)", re.DOTALL)
_FENCE = re.compile(r"\s*```\w*\s*\n(.*?)\n\s*```\s*", re.DOTALL)
_BRACES = 200  # places tried in one text
_TOKEN_ID = "token_id:"


class Unreadable(ValueError):
    """A body or a text that is not what was asked for; the message says why."""


@dataclass(frozen=True)
class Sample:
    """One stored row, read: visible text, thinking, and the object when a schema was asked for."""

    text: str
    reasoning: str
    parsed: pydantic.BaseModel | None


def rows(completion: Any, wanted: int) -> list[dict[str, Any]]:
    """Rows for the cache, at most `wanted`, one a choice: raw content, thinking, refusal, finish reason, its part of the token counts.
    Unreadable: the JSON is no chat completion."""
    choices = completion.get("choices") if isinstance(completion, dict) else None
    if not isinstance(choices, list) or not choices:
        told = json.dumps(completion.get("error") if isinstance(completion, dict) else completion)[:300]
        raise Unreadable(f"no choices in the answer: {told}")
    if not all(isinstance(choice, dict) and isinstance(choice.get("message"), dict) for choice in choices):
        raise Unreadable("a choice without a message")
    chosen = sorted(choices, key=lambda choice: choice.get("index") or 0)[:wanted]
    made = [_row(choice) for choice in chosen]
    for row, counts in zip(made, _shared(completion.get("usage"), len(made)), strict=True):
        row |= counts
    if completion.get("prompt_token_ids"):
        made[0]["prompt_token_ids"] = completion["prompt_token_ids"]
    return made


def _row(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice["message"]
    row = {
        "content": _text(message.get("content")),
        "reasoning": _text(message.get("reasoning_content") or message.get("reasoning")),
        "refusal": _text(message.get("refusal")),
        "finish_reason": choice.get("finish_reason") or "",
    }
    tokens = (choice.get("logprobs") or {}).get("content") or []
    if tokens:
        row["logprobs"] = [token["logprob"] for token in tokens]
    if choice.get("token_ids"):
        row["token_ids"] = choice["token_ids"]
    elif tokens and all(token["token"].startswith(_TOKEN_ID) for token in tokens):
        row["token_ids"] = [int(token["token"].removeprefix(_TOKEN_ID)) for token in tokens]
    return row


def _text(content: Any) -> str:
    """Some servers send a list of parts instead of a text; half a surrogate pair, which no file could hold, becomes a question mark."""
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content.encode(errors="replace").decode() if isinstance(content, str) else ""


def _shared(usage: Any, n: int) -> list[dict[str, int]]:
    """The counts of one answer over its n choices: the prompt on the first, the rest in equal parts; sums are kept."""
    prompt, completion, _, reasoning = counts(usage) or (0, 0, 0, 0)
    parts = [[total // n + (i < total % n) for i in range(n)] for total in (completion, reasoning)]
    return [
        {"prompt_tokens": prompt if i == 0 else 0, "completion_tokens": parts[0][i], "reasoning_tokens": parts[1][i]} for i in range(n)
    ]


def counts(usage: Any) -> tuple[int, int, int, int] | None:
    """Prompt, completion, cached prompt and reasoning tokens of a `usage` object; None when the server gave none."""
    if not isinstance(usage, dict) or usage.get("completion_tokens") is None:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return usage.get("prompt_tokens") or 0, usage["completion_tokens"], cached, reasoning


def read(row: dict[str, Any], schema: type[pydantic.BaseModel] | None) -> Sample:
    """A stored row as a sample. Refused, Filtered: there is no answer in it. Unreadable: the text is not the object asked for."""
    if row["refusal"]:
        raise Refused(row["refusal"])
    if row["finish_reason"] == "content_filter":
        raise Filtered("the server's content filter withheld the answer")
    reasoning, text = (row["reasoning"], row["content"]) if row["reasoning"] else split_thinking(row["content"])
    if schema is None:
        return Sample(text, reasoning, None)
    try:
        return Sample(text, reasoning, find_object(text, schema))
    except Unreadable as error:
        cut = "; it was cut off at max_tokens" if row["finish_reason"] == "length" else ""
        raise Unreadable(f"{error}{cut}") from None


def split_thinking(text: str) -> tuple[str, str]:
    """(thinking, visible text) of a text that may open with <think>...</think> blocks; an unclosed block hides all that follows."""
    thoughts = []
    while match := _THINK.match(text):
        thoughts.append(match[2].strip())
        text = text[match.end() :]
    if not thoughts and (match := _HEADLESS.match(text)) and "<think" not in match[1]:
        thoughts, text = [match[1].strip()], text[match.end() :]
    return "\n\n".join(thoughts), text.lstrip() if thoughts else text


def find_object(text: str, schema: type[pydantic.BaseModel]) -> pydantic.BaseModel:
    """The one JSON object in a text that fits the schema: the whole text, or the only such object inside it.
    Unreadable: none fits, or several that differ do, so that a quoted forgery is never taken for the answer."""
    whole = _FENCE.fullmatch(text)
    candidates = _objects(whole[1] if whole else text)
    fitting: list[pydantic.BaseModel] = []
    problem = "there is no JSON object in it"
    for candidate in candidates:
        try:
            fitting.append(schema.model_validate(candidate))
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            problem = f"{'.'.join(str(part) for part in first['loc']) or 'object'}: {first['msg']}"
    if not fitting:
        raise Unreadable(problem)
    if any(other != fitting[0] for other in fitting[1:]):
        raise Unreadable("it holds several objects that differ")
    return fitting[0]


def _objects(text: str) -> list[dict[str, Any]]:
    """Outermost JSON objects in a text, in order."""
    decoder, found, at = json.JSONDecoder(), [], text.find("{")
    for _ in range(_BRACES):
        if at < 0:
            break
        try:
            value, at = decoder.raw_decode(text, at)
            found.append(value)
        except (json.JSONDecodeError, RecursionError):
            at += 1
        at = text.find("{", at)
    return found


def answer(request: Request, stored: list[dict[str, Any]], samples: list[Sample], cached: bool) -> Answer:
    """Rows and what was read in them, put together."""
    reasoning_tokens = sum(_reasoning_tokens(row, sample) for row, sample in zip(stored, samples, strict=True))
    has_ids = all("token_ids" in row for row in stored)
    return Answer(
        texts=tuple(sample.text for sample in samples),
        parsed=tuple(sample.parsed for sample in samples if sample.parsed is not None),
        reasoning=tuple(sample.reasoning for sample in samples),
        prompt_tokens=sum(row["prompt_tokens"] for row in stored),
        completion_tokens=sum(row["completion_tokens"] for row in stored),
        reasoning_tokens=reasoning_tokens,
        finish_reasons=tuple(row["finish_reason"] for row in stored),
        cached=cached,
        token_ids=tuple(tuple(row["token_ids"]) for row in stored) if has_ids else (),
        logprobs=tuple(tuple(row.get("logprobs", ())) for row in stored) if request.logprobs else (),
        prompt_token_ids=tuple(next((row["prompt_token_ids"] for row in stored if "prompt_token_ids" in row), ())),
    )


def _reasoning_tokens(row: dict[str, Any], sample: Sample) -> int:
    """The server's count; without one, the answer's tokens shared out by length."""
    if row["reasoning_tokens"] or not sample.reasoning:
        return row["reasoning_tokens"]
    return round(row["completion_tokens"] * len(sample.reasoning) / (len(sample.reasoning) + len(sample.text)))
