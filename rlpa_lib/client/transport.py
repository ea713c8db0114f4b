"""One HTTP request to a chat server: what is sent, what it may cost, and what each failure means for the run."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2  # the HTTP library inside openai
import openai

from rlpa_lib.client.chat import (
    AuthError,
    ConnectionLost,
    EndpointError,
    RateLimitError,
    Request,
    RequestError,
    ServerError,
    TimeoutError_,
    json_schema,
)

REDACTED = "[api key]"
_SHORTEST_KEY = 8  # what a shorter "key" says may well be a word of an answer
# What a server may refuse to be told, although it could answer: left out (or said in another way) from then on.
_OPTIONAL = ("max_tokens", "temperature", "top_p", "seed", "n")
_UNSUPPORTED = re.compile(
    r"unsupported|not (?:yet )?support|does ?n.t support|unavailable|not available|not permitted|not allowed|unrecognized|unknown|extra inputs"
    r"|must be (?:exactly )?1\b|only n",
    re.IGNORECASE,
)
_STRUCTURE = re.compile(r"response_format|json_schema|structured output|guided|invalid schema", re.IGNORECASE)
# String limits that OpenAI's strict mode refuses and that other servers decode by.
_LIMITS = ("minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_FILTERED = {
    "choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}],
    "usage": {"prompt_tokens": 0, "completion_tokens": 0},
}


@dataclass(frozen=True)
class Dialect:
    """What a server is told: how it is asked for structure, and which optional keys it has refused."""

    structure: Literal["schema", "bare schema", "text"] = "schema"  # bare = without limits on lengths and numbers
    refused: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Failure:
    """A request that brought no answer. `passing`: worth another try; `hopeless`: no other request of this batch can do better;
    `billed`: the server may have charged for it; `wait`: seconds that the server asked for."""

    error: EndpointError
    passing: bool = False
    hopeless: bool = False
    billed: bool = False
    wait: float | None = None
    status: int | None = None
    param: str = ""
    told: str = ""  # the server's own words


@dataclass(frozen=True)
class Settings:
    """Where a role's server, model and key are set, for messages: section and key of its model (`judge`, `profile_model`)."""

    section: str
    base_url: str
    model: str
    api_key_env: str
    model_key: str = "model"

    def named(self, key: str) -> str:
        """`judge.model ('gpt-4o')`."""
        value = {self.model_key: self.model, "base_url": self.base_url, "api_key_env": self.api_key_env}.get(key)
        return f"{self.section}.{key}" + (f" ({value!r})" if value else "")


def is_local(base_url: str) -> bool:
    """Whether a server needs no key: this machine, a private address, or a name without a dot."""
    host = urlsplit(base_url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".localhost"))
    return address.is_private or address.is_loopback or address.is_unspecified


def body(model: str, request: Request, dialect: Dialect, *, n: int, seed: int | None, attempt: int) -> dict[str, Any]:
    """JSON of one /chat/completions request for `n` samples. From the second attempt at a structured answer on, the wanted
    schema also stands in the system message."""
    asked: dict[str, Any] = {"model": model, "messages": list(request.messages), "temperature": request.temperature}
    if request.top_p != 1.0:
        asked["top_p"] = request.top_p
    asked["max_completion_tokens" if "max_tokens" in dialect.refused else "max_tokens"] = request.max_tokens
    if seed is not None:
        asked["seed"] = seed
    if n > 1:
        asked["n"] = n
    if request.logprobs:
        asked["logprobs"] = True
    if request.schema is not None:
        if dialect.structure != "text":
            asked["response_format"] = _response_format(request.schema, bare=dialect.structure == "bare schema")
        if dialect.structure == "text" or attempt:
            asked["messages"] = _with_schema(asked["messages"], json_schema(request.schema), attempt)
    for key in dialect.refused:
        asked.pop(key, None)
    return {**asked, **dict(request.extra)}


@cache
def certificates() -> ssl.SSLContext:
    """The trusted certificates, read once: that takes longer than a small batch takes to send."""
    return httpx2.create_ssl_context()


@cache
def _response_format(schema: Any, bare: bool) -> dict[str, Any]:
    strict = openai.pydantic_function_tool(schema)["function"]["parameters"]
    name = re.sub(r"\W", "_", schema.__name__)[:64]
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": _bare(strict) if bare else strict}}


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        # a property may be called like a limit; a limit itself is a number
        return {key: _bare(item) for key, item in value.items() if not (key in _LIMITS and isinstance(item, (int, float)))}
    return [_bare(item) for item in value] if isinstance(value, list) else value


def _with_schema(messages: list[dict[str, str]], schema: dict[str, Any], attempt: int) -> list[dict[str, str]]:
    """The demand stands in the system message, out of reach of quoted data."""
    hint = f"Answer with one JSON object and nothing else. It must fit this JSON schema:\n{json.dumps(schema, ensure_ascii=False)}"
    if attempt:
        hint += f"\nAn earlier answer did not fit (attempt {attempt + 1}). Keep to the schema exactly."
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{hint}"}, *messages[1:]]
    return [{"role": "system", "content": hint}, *messages]


def prompt_bound(asked: Mapping[str, Any]) -> int:
    """Upper bound of a prompt's tokens: no tokenizer of bytes makes more tokens than UTF-8 bytes; 16 a message for its frame.
    RequestError: a text is not Unicode (a lone surrogate)."""
    try:
        told = sum(len(message["content"].encode()) + 16 for message in asked["messages"])
    except UnicodeEncodeError:
        raise RequestError("a message holds text that is not valid Unicode") from None
    return told + len(json.dumps(asked.get("response_format", ""))) + 16


def learnt(dialect: Dialect, asked: Mapping[str, Any], failure: Failure, may_fall_back: bool) -> Dialect | None:
    """The dialect after a refusal that names what the server does not take; None when there is nothing to change."""
    if failure.status not in (400, 422):
        return None
    if "response_format" in asked and (failure.param.startswith("response_format") or _STRUCTURE.search(failure.told)):
        limits = dialect.structure == "schema" and any(f'"{limit}"' in json.dumps(asked["response_format"]) for limit in _LIMITS)
        return replace(dialect, structure="bare schema" if limits else "text") if limits or may_fall_back else None
    if not _UNSUPPORTED.search(failure.told):
        return None
    named = [key for key in _OPTIONAL if key in asked and re.search(rf"\b{key}\b", failure.told)]
    if not named and failure.param in _OPTIONAL and failure.param in asked:
        named = [failure.param]
    return replace(dialect, refused=dialect.refused | {named[0]}) if named else None


async def send(client: openai.AsyncOpenAI, asked: dict[str, Any], seconds: float, settings: Settings) -> dict[str, Any] | Failure:
    """The server's JSON, or why there is none, after at most `seconds` for everything (a slow drip included)."""
    try:
        async with asyncio.timeout(seconds):
            response = await client.post("/chat/completions", cast_to=httpx2.Response, body=asked)
        content = response.content
    except (TimeoutError, openai.APITimeoutError):
        text = f"{settings.named('base_url')}: no whole answer within {seconds:g} s (endpoint.timeout)"
        return Failure(TimeoutError_(text), passing=True, billed=True)
    except openai.APIStatusError as error:
        return _refusal(error, settings, client.api_key)
    except openai.APIConnectionError as error:
        cause = error.__cause__
        reached = not isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout))
        why = redacted(f"{type(cause).__name__}: {cause}", client.api_key)
        text = f"{settings.named('base_url')}: {'the connection broke' if reached else 'cannot be reached'} ({why})"
        return Failure(ConnectionLost(text), passing=True, billed=reached, hopeless=not reached)
    try:
        return json.loads(redacted(content.decode(), client.api_key))
    except ValueError as error:
        return unreadable(settings, f"the answer is not JSON ({error})")


def unreadable(settings: Settings, why: str) -> Failure:
    """Failure of a 200 whose body is no answer."""
    return Failure(ServerError(f"{settings.named('base_url')}: {why}"), passing=True, billed=True)


def redacted(text: str, key: str) -> str:
    """The text without the key, which a server may echo."""
    return text.replace(key, REDACTED) if len(key) >= _SHORTEST_KEY else text


def _refusal(error: openai.APIStatusError, settings: Settings, key: str) -> dict[str, Any] | Failure:
    """What a status other than 2xx means, and which setting to look at; a content filter's 400 as the answer that it is elsewhere."""
    status, detail = error.status_code, error.body if isinstance(error.body, dict) else {}
    told = redacted(" ".join(str(detail.get("message") or error.response.text).split()), key)[:500]
    code, param = str(detail.get("code") or ""), str(detail.get("param") or "")
    known = {"status": status, "param": param, "told": told}
    suffix = f": {status}: {told}"
    if status in (401, 403):
        text = f"{settings.named('api_key_env')}: the key is refused or lacks the rights for {settings.named(settings.model_key)}{suffix}"
        return Failure(AuthError(text), hopeless=True, **known)
    if status == 402 or code == "insufficient_quota":
        return Failure(AuthError(f"{settings.named('api_key_env')}: the account behind this key has no money left{suffix}"), hopeless=True, **known)
    if status == 429:
        text = f"{settings.named('base_url')}: too many requests (endpoint.concurrency, endpoint.max_rpm){suffix}"
        return Failure(RateLimitError(text), passing=True, wait=retry_after(error.response.headers), **known)
    if status in (408, 409) or status >= 500:
        text = f"{settings.named('base_url')}: the server failed{suffix}"
        return Failure(ServerError(text), passing=True, wait=retry_after(error.response.headers), **known)
    if status == 400 and "content_filter" in (code, param):
        return _FILTERED
    if status == 404:
        text = f"{settings.named(settings.model_key)} or {settings.named('base_url')}: the server knows no such model or address{suffix}"
        return Failure(RequestError(text), hopeless=True, **known)
    what = f"{settings.section}.{param}" if param else settings.named(settings.model_key)
    return Failure(RequestError(f"{what}: the server does not take this request{suffix}"), **known)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: Retry-After-Ms, or Retry-After as seconds or as a date; None without a readable one."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if re.fullmatch(r"\d+(\.\d+)?", value):
            return float(value) / unit
    try:
        when = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


class Pace:
    """Keeps requests apart: at most `per_minute`, and none before the time that a server has asked for."""

    def __init__(self, per_minute: float | None):
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def turn(self) -> None:
        """Wait for this request's turn."""
        now = time.monotonic()
        at = max(now, self._next)
        if self._gap:
            self._next = at + self._gap
        if at > now:
            await asyncio.sleep(at - now)

    def hold(self, seconds: float) -> None:
        """Nothing is sent for so long."""
        self._next = max(self._next, time.monotonic() + seconds)
