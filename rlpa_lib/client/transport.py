"""One HTTP request to a chat server: what is sent, what it may cost, and what each failure means."""

import asyncio
import ipaddress
import json
import os
import re
import ssl
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2  # the HTTP library inside openai
import openai

from rlpa_lib.client import chat
from rlpa_lib.client.chat import EndpointError, Request
from rlpa_lib.settings.config import InputError

Json = dict[str, Any]
REDACTED = "[api key]"
_SHORTEST_KEY = 8  # what a shorter "key" says may well be a word of an answer
_NO_KEY = "local"  # sent to a local server when there is no key
_OPTIONAL = ("max_tokens", "temperature", "top_p", "seed")  # left out from then on if a server refuses them
_UNSUPPORTED = re.compile(
    r"unsupported|not (?:yet )?support|does ?n.t support|unavailable|not available|not permitted|not allowed"
    r"|unrecognized|unknown|extra inputs|must be (?:exactly )?1\b|only n",
    re.IGNORECASE,
)
_STRUCTURE = re.compile(r"response_format|json_schema|structured output|guided|invalid schema", re.IGNORECASE)
# What OpenAI's strict mode refuses in a schema and other servers decode by.
_LIMITS = (
    "minLength maxLength minItems maxItems minimum maximum exclusiveMinimum exclusiveMaximum multipleOf"
).split()
_FILTERED = (
    b'{"choices": [{"message": {}, "finish_reason": "content_filter"}], "usage": {"completion_tokens": 0}}'
)


@dataclass(frozen=True)
class Dialect:
    """How a server is asked for structure, and which optional keys it has refused."""

    structure: Literal["schema", "bare schema", "text"] = "schema"  # bare: without limits on values
    refused: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Server:
    """A model on a server, and the section of the settings that names it. The API key is read from the
    environment and kept nowhere. InputError: bad address or variable name."""

    section: str
    base_url: str
    model: str
    api_key_env: str

    def __post_init__(self) -> None:
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            wrong = f"base_url: {self.base_url!r} is no address such as https://api.openai.com/v1"
        elif address.username or address.password:
            wrong = "base_url: holds a user name or password, which would end up in the run's record; "
            wrong += "use api_key_env"
        elif not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env):
            wrong = "api_key_env: wants the NAME of an environment variable, not a key"
        else:
            return
        raise InputError(f"{self.section}.{wrong}")

    def name(self, key: str) -> str:
        """A setting with its value, for messages: `judge.model ('gpt-4o')`."""
        value = {"model": self.model, "base_url": self.base_url, "api_key_env": self.api_key_env}[key]
        return f"{self.section}.{key} ({value!r})"

    def read_key(self) -> str:
        """The API key. InputError: there is none, and the server is not local."""
        key = os.environ.get(self.api_key_env, "").strip() or (_NO_KEY if is_local(self.base_url) else "")
        if not key:
            unset = f"the environment variable {self.api_key_env} is not set"
            raise InputError(f"{self.section}.api_key_env: {unset}")
        return key

    def connect(self, timeout: float) -> openai.AsyncOpenAI:
        """A client for one event loop, without retries of its own."""
        http = openai.DefaultAsyncHttpxClient(verify=_load_certificates())
        return openai.AsyncOpenAI(
            base_url=self.base_url, api_key=self.read_key(), max_retries=0, timeout=timeout, http_client=http
        )


def is_local(base_url: str) -> bool:
    """Whether a server needs no key: this machine, a private address, or a name without a dot."""
    host = urlsplit(base_url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".localhost"))
    return address.is_private or address.is_loopback or address.is_unspecified


def build_body(model: str, request: Request, dialect: Dialect, seed: int | None, attempt: int) -> Json:
    """JSON of a /chat/completions request. From the second attempt on, and where the server takes no schema,
    the system message holds it, out of reach of quoted data."""
    messages = list(request.messages)
    limit = "max_completion_tokens" if "max_tokens" in dialect.refused else "max_tokens"
    body = {
        "model": model, "messages": messages, "temperature": request.temperature,
        "top_p": None if request.top_p == 1.0 else request.top_p, limit: request.max_tokens, "seed": seed,
    }  # fmt: skip
    if request.schema is not None and dialect.structure != "text":
        body["response_format"] = _response_format(request.schema, dialect.structure == "bare schema")
    if request.schema is not None and (dialect.structure == "text" or attempt):
        demand = "Answer with one JSON object and nothing else. It must fit this JSON schema:\n"
        demand += json.dumps(chat.json_schema(request.schema), ensure_ascii=False)
        if attempt:
            demand += f"\nAn earlier answer did not fit (attempt {attempt + 1}). Keep to the schema exactly."
        if messages and messages[0]["role"] == "system":
            messages[0] = {**messages[0], "content": f"{messages[0]['content']}\n\n{demand}"}
        else:
            messages.insert(0, {"role": "system", "content": demand})
    return {key: value for key, value in body.items() if value is not None and key not in dialect.refused}


@cache
def _load_certificates() -> ssl.SSLContext:
    """The trusted certificates, read once: reading them takes longer than sending a small batch."""
    return httpx2.create_ssl_context()


@cache
def _response_format(schema: Any, bare: bool) -> Json:
    strict = openai.pydantic_function_tool(schema)["function"]["parameters"]
    name = re.sub(r"\W", "_", schema.__name__)[:64]
    given = _drop_limits(strict) if bare else strict
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": given}}


def _drop_limits(value: Any) -> Any:
    if isinstance(value, dict):  # a property may be called like a limit; a limit itself is a number
        kept = {k: v for k, v in value.items() if k not in _LIMITS or not isinstance(v, (int, float))}
        return {key: _drop_limits(item) for key, item in kept.items()}
    return [_drop_limits(item) for item in value] if isinstance(value, list) else value


def bound_prompt(body: Json) -> int:
    """Upper bound of a prompt's tokens: its UTF-8 bytes (no byte tokenizer makes more), plus 16 a message for
    its frame. RequestError: a text is not Unicode (a lone surrogate)."""
    try:
        told = sum(len(message["content"].encode()) + 16 for message in body["messages"])
    except UnicodeEncodeError:
        raise chat.RequestError("a message holds text that is not valid Unicode") from None
    return told + len(json.dumps(body.get("response_format", ""))) + 16


def adapt_dialect(dialect: Dialect, body: Json, error: EndpointError, auto: bool) -> Dialect | None:
    """The dialect after a refusal that names its cause, else None. `auto`: structure may become text."""
    structured = error.param.startswith("response_format") or _STRUCTURE.search(error.told)
    if "response_format" in body and structured:
        asked = json.dumps(body["response_format"])
        if dialect.structure == "schema" and any(f'"{limit}"' in asked for limit in _LIMITS):
            return replace(dialect, structure="bare schema")
        return replace(dialect, structure="text") if auto else None
    if not _UNSUPPORTED.search(error.told):
        return None
    given = [key for key in _OPTIONAL if key in body]
    named = [key for key in given if re.search(rf"\b{key}\b", error.told)]
    named = named or [key for key in given if key == error.param]
    return replace(dialect, refused=dialect.refused | {named[0]}) if named else None


async def send(client: openai.AsyncOpenAI, body: Json, timeout: float, server: Server) -> tuple[Json, Json]:
    """(the server's JSON, its row for the cache), within `timeout` seconds in all, even for a slow stream."""
    place = server.name("base_url")
    try:
        async with asyncio.timeout(timeout):
            content = (await client.post("/chat/completions", cast_to=httpx2.Response, body=body)).content
    except (TimeoutError, openai.APITimeoutError):
        late = f"no whole answer within {timeout:g} s (endpoint.timeout)"
        raise chat.TimeoutError_(f"{place}: {late}") from None
    except openai.APIStatusError as error:
        content = _read_refusal(error, server, client.api_key)
    except openai.APIConnectionError as error:
        cause = error.__cause__
        reached = not isinstance(cause, (httpx2.ConnectError, httpx2.ConnectTimeout))
        what = "the connection broke" if reached else "cannot be reached"
        why = redact(f"{type(cause).__name__}: {cause}", client.api_key)
        raise chat.ConnectionLost(f"{place}: {what} ({why})", billed=reached, hopeless=not reached) from None
    try:
        completion = json.loads(redact(content.decode(), client.api_key))
        return completion, chat.read_row(completion)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise chat.ServerError(f"{place}: the answer is not JSON ({error})", billed=True) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"{place}: the answer is no chat completion ({type(error).__name__}: {error})"
        raise chat.ServerError(told, billed=True) from None


def redact(text: str, key: str) -> str:
    """The text without the key, which a server may echo."""
    return text.replace(key, REDACTED) if len(key) >= _SHORTEST_KEY else text


def _read_refusal(error: openai.APIStatusError, server: Server, api_key: str) -> bytes:
    """Raise what an error status means; return a content filter's 400 as the answer it is elsewhere."""
    status, detail = error.status_code, error.body if isinstance(error.body, dict) else {}
    told = redact(" ".join(str(detail.get("message") or error.response.text).split()), api_key)[:500]
    code, param = str(detail.get("code") or ""), str(detail.get("param") or "")
    model, place, variable = (server.name(key) for key in ("model", "base_url", "api_key_env"))
    if status == 400 and "content_filter" in (code, param):
        return _FILTERED
    refused, limits = "the key is refused or lacks the rights for", "endpoint.concurrency, endpoint.max_rpm"
    unpaid = status == 402 or code == "insufficient_quota"
    setting = f"{server.section}.{param}" if param else model
    meanings = (
        (status in (401, 403), chat.AuthError, f"{variable}: {refused} {model}"),
        (unpaid, chat.AuthError, f"{variable}: the account behind this key has no money left"),
        (status == 429, chat.RateLimitError, f"{place}: too many requests ({limits})"),
        (status in (408, 409) or status >= 500, chat.ServerError, f"{place}: the server failed"),
        (status == 404, chat.RequestError, f"{model} or {place}: the server knows no such model or address"),
        (True, chat.RequestError, f"{setting}: the server does not take this request"),
    )
    kind, what = next((kind, what) for holds, kind, what in meanings if holds)
    named = {"told": told, "param": param} if status in (400, 422) else {}
    wait = retry_after(error.response.headers) if kind.passing else None
    hopeless = kind.hopeless or status == 404
    raise kind(f"{what}: {status}: {told}", wait=wait, hopeless=hopeless, **named) from None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: Retry-After-Ms, or Retry-After in seconds or as a date, or None."""
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

    async def wait(self) -> None:
        """Wait for this request's turn."""
        now = time.monotonic()
        at = max(now, self._next)
        self._next = at + self._gap
        if at > now:
            await asyncio.sleep(at - now)

    def hold(self, seconds: float) -> None:
        """Send nothing for this many seconds."""
        self._next = max(self._next, time.monotonic() + seconds)


def run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in a thread with its own loop: in a notebook, the cell's thread already runs one."""
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task]] = []

    async def main() -> None:
        started.append((asyncio.get_running_loop(), asyncio.current_task()))
        await work

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(lambda: asyncio.run(main()))
        try:
            future.result()
        except BaseException:  # above all an interrupt of the waiting cell: the requests stop with it
            if started and not future.done():
                loop, task = started[0]
                loop.call_soon_threadsafe(task.cancel)
            raise
