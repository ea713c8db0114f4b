"""What is asked of a chat model, how its answer is read from a server's JSON, and every way in which that can
fail."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pydantic

from rlpa_lib.client.thinking import split_thinking
from rlpa_lib.runs.storage import hash_json

_FENCE = re.compile(r"\s*```\w*\s*\n(.*?)\n\s*```\s*", re.DOTALL)
_BRACES = 200  # places tried in one text


@dataclass(frozen=True)
class Request:
    """One question to a chat model; two equal requests are the same question and share their answer."""

    messages: tuple[dict[str, str], ...]  # role and content
    schema: type[pydantic.BaseModel] | None = None  # structured answer wanted
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512  # thinking included
    seed: int | None = None

    def content(self) -> dict[str, Any]:
        """Everything asked, as plain JSON, with the schema as a digest."""
        return {
            "messages": list(self.messages), "schema": _hash_schema(self.schema) if self.schema else None,
            "temperature": float(self.temperature), "top_p": float(self.top_p),
            "max_tokens": self.max_tokens, "seed": self.seed,
            "logprobs": False, "extra": {},  # never set; kept because keys of existing caches hold them
        }


@cache
def json_schema(schema: type[pydantic.BaseModel]) -> dict[str, Any]:
    """JSON schema of a pydantic type, made once."""
    return schema.model_json_schema()


@cache
def _hash_schema(schema: type[pydantic.BaseModel]) -> str:
    return hash_json(json_schema(schema))


@dataclass(frozen=True)
class Answer:
    """The answer to one request, its reasoning separate from the visible text wherever the server put it."""

    text: str  # visible
    parsed: Any  # instance of the request's schema; None without one
    reasoning: str  # "" where none
    prompt_tokens: int
    completion_tokens: int  # reasoning included
    reasoning_tokens: int  # the server's count; by length where the server has none
    finish_reason: str
    cached: bool = False  # no request was sent for this one


class EndpointError(RuntimeError):
    """A request without an answer. The class says what follows; `facts` override that for one error."""

    role = ""  # whose request it was
    passing = False  # worth another try
    hopeless = False  # no other request of the batch can do better
    billed = False  # the server may have charged for it
    wait: float | None = None  # seconds that the server asks for
    told = param = ""  # by a server that does not take the request: its words, and the key that it names
    raw = ""  # an answer that does not fit, as it came

    def __init__(self, message: str, **facts: Any):
        super().__init__(message)
        vars(self).update(facts)


class AuthError(EndpointError):
    """401, 403, or an account without money: wrong key or rights."""

    hopeless = True


class RequestError(EndpointError):
    """400, 404, 413, 422 and the like: the server will never take this request."""


class RateLimitError(EndpointError):
    """429 until the retries were used up."""

    passing = True


class ServerError(EndpointError):
    """408, 409, 5xx, or a body that is no answer, until the retries were used up."""

    passing = True


class TimeoutError_(EndpointError):
    """No whole answer within the time allowed, until the retries were used up."""

    passing = billed = True


class ConnectionLost(EndpointError):
    """No connection, or one that broke, until the retries were used up."""

    passing = True


class BadAnswer(EndpointError):
    """Answers that do not fit the schema, even when asked for again. `raw`: the last one, as it came."""


class Refused(EndpointError):
    """The model refused. The message is its refusal."""


class Filtered(Refused):
    """A content filter withheld the answer."""


class BudgetExceeded(EndpointError):
    """The next request could exceed the run's budget. What was answered before is kept."""


class CacheMiss(EndpointError):
    """The cache, the only source in a replay, does not hold the question."""


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
    return Answer(text, parsed, reasoning, row["prompt_tokens"], generated, counted, row["finish_reason"])


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
            problem = f"{'.'.join(map(str, first['loc'])) or 'object'}: {first['msg']}"
    if not fitting:
        raise Unreadable(problem)
    if any(other != fitting[0] for other in fitting[1:]):
        raise Unreadable("it holds several objects that differ")
    return fitting[0]


def _find_objects(text: str) -> Iterator[dict[str, Any]]:
    """Outermost JSON objects in a text, in order."""
    at = 0
    for _ in range(_BRACES):
        if (at := text.find("{", at)) < 0:
            return
        try:
            value, at = json.JSONDecoder().raw_decode(text, at)
            yield value
        except (json.JSONDecodeError, RecursionError):
            at += 1
