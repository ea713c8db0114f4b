"""From a server's JSON to an answer: thinking split from speech, and the one checked object in a text."""

from __future__ import annotations

import json
import re
from typing import Any

import pydantic

from rlpa_lib.client.chat import Answer, Filtered, Refused

_THINK = re.compile(r"\s*<(think|thinking)>(.*?)(?:</\1>|\Z)", re.DOTALL)
# A template may open the thinking itself. A tag quoted in JSON is safe: no raw line break can follow it.
_HEADLESS = re.compile(r"(.*?)</(?:think|thinking)>(?:[ \t]*\n|\s*\Z)", re.DOTALL)
_FENCE = re.compile(r"\s*```\w*\s*\n(.*?)\n\s*```\s*", re.DOTALL)
_BRACES = 200  # places tried in one text


class Unreadable(ValueError):
    """A body or a text is not what was asked for; the message says why."""


def read_row(completion: Any) -> dict[str, Any]:
    """The first choice as a row for the cache: raw content, thinking, refusal, finish reason, token counts.

    Unreadable: the JSON is no chat completion.
    """
    choices = completion.get("choices") if isinstance(completion, dict) else None
    if not isinstance(choices, list) or not choices:
        told = json.dumps(completion.get("error") if isinstance(completion, dict) else completion)[:300]
        raise Unreadable(f"no choices in the answer: {told}")
    if not all(isinstance(choice, dict) and isinstance(choice.get("message"), dict) for choice in choices):
        raise Unreadable("a choice without a message")
    first = min(choices, key=lambda choice: choice.get("index") or 0)
    message = first["message"]
    prompt, generated, _, reasoning = count_tokens(completion.get("usage")) or (0, 0, 0, 0)
    return {
        "content": _join_parts(message.get("content")),
        "reasoning": _join_parts(message.get("reasoning_content") or message.get("reasoning")),
        "refusal": _join_parts(message.get("refusal")), "finish_reason": first.get("finish_reason") or "",
        "prompt_tokens": prompt, "completion_tokens": generated, "reasoning_tokens": reasoning,
    }


def _join_parts(content: Any) -> str:
    """Joined, if it is a list of parts. Half a surrogate pair, which no file could hold, becomes "?"."""
    if isinstance(content, list):
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return content.encode(errors="replace").decode() if isinstance(content, str) else ""


def count_tokens(usage: Any) -> tuple[int, int, int, int] | None:
    """Prompt, completion, cached prompt and reasoning tokens of a `usage` object; None when there is none."""
    if not isinstance(usage, dict) or usage.get("completion_tokens") is None:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return usage.get("prompt_tokens") or 0, usage["completion_tokens"], cached, reasoning


def read_answer(row: dict[str, Any], schema: type[pydantic.BaseModel] | None) -> Answer:
    """The answer in a stored row. Refused, Filtered: there is none. Unreadable: it does not fit `schema`."""
    if row["refusal"]:
        raise Refused(row["refusal"])
    if row["finish_reason"] == "content_filter":
        raise Filtered("the server's content filter withheld the answer")
    reasoning, text = row["reasoning"], row["content"]
    if not reasoning:
        reasoning, text = split_thinking(text)
    try:
        parsed = find_object(text, schema) if schema else None
    except Unreadable as error:
        cut = "; it was cut off at max_tokens" if row["finish_reason"] == "length" else ""
        raise Unreadable(f"{error}{cut}") from None
    generated, counted = row["completion_tokens"], row["reasoning_tokens"]
    if reasoning and not counted:  # the server did not count it
        counted = round(generated * len(reasoning) / (len(reasoning) + len(text)))
    return Answer(
        text, parsed, reasoning, prompt_tokens=row["prompt_tokens"], completion_tokens=generated,
        reasoning_tokens=counted, finish_reason=row["finish_reason"],
    )  # fmt: skip


def split_thinking(text: str) -> tuple[str, str]:
    """(thinking, visible text); an opening <think>...</think>, even if it is never closed, is thinking."""
    thoughts = []
    while match := _THINK.match(text):
        thoughts.append(match[2].strip())
        text = text[match.end() :]
    if not thoughts and (match := _HEADLESS.match(text)) and "<think" not in match[1]:
        thoughts, text = [match[1].strip()], text[match.end() :]
    return "\n\n".join(thoughts), text.lstrip() if thoughts else text


def find_object(text: str, schema: type[pydantic.BaseModel]) -> pydantic.BaseModel:
    """The JSON object that fits the schema: the whole text, or the only such object in it. Unreadable: none
    fits, or several different ones do, so that a quoted forgery is never taken for the answer."""
    fenced = _FENCE.fullmatch(text)
    fitting: list[pydantic.BaseModel] = []
    problem = "there is no JSON object in it"
    for candidate in _find_objects(fenced[1] if fenced else text):
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


def _find_objects(text: str) -> list[dict[str, Any]]:
    """Outermost JSON objects in a text, in order."""
    decoder, objects, at = json.JSONDecoder(), [], text.find("{")
    for _ in range(_BRACES):
        if at < 0:
            break
        try:
            value, at = decoder.raw_decode(text, at)
            objects.append(value)
        except (json.JSONDecodeError, RecursionError):
            at += 1
        at = text.find("{", at)
    return objects
