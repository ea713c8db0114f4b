"""What is asked of a chat model, what comes back, and every way in which that can fail, as data types."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pydantic

from rlpa_lib.runs.storage import hash_json


@dataclass(frozen=True)
class Request:
    """One question to a chat model; two equal requests are the same question and share their answers."""

    messages: tuple[dict[str, str], ...]  # role and content
    schema: type[pydantic.BaseModel] | None = None  # structured answer wanted
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512  # a sample, thinking included
    seed: int | None = None
    n: int = 1  # samples
    logprobs: bool = False
    extra: tuple[tuple[str, Any], ...] = ()  # server specific body keys

    def content(self) -> dict[str, Any]:
        """Plain JSON of everything but `n`; the schema by a digest of what it demands."""
        return {
            "messages": list(self.messages),
            "schema": _schema_digest(self.schema) if self.schema else None,
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "logprobs": self.logprobs,
            "extra": dict(self.extra),
        }


@cache
def json_schema(schema: type[pydantic.BaseModel]) -> dict[str, Any]:
    """JSON schema of a pydantic type, made once."""
    return schema.model_json_schema()


@cache
def _schema_digest(schema: type[pydantic.BaseModel]) -> str:
    return hash_json(json_schema(schema))


@dataclass(frozen=True)
class Answer:
    """n samples in one answer; token counts are sums over them. Reasoning is told apart from the visible text, also where it came inline."""

    texts: tuple[str, ...]  # visible texts
    parsed: tuple[pydantic.BaseModel, ...]  # one a sample when a schema was asked for, else ()
    reasoning: tuple[str, ...]  # "" where none
    prompt_tokens: int
    completion_tokens: int  # reasoning included
    reasoning_tokens: int  # the server's count; shared out by length where the server has none
    finish_reasons: tuple[str, ...]
    cached: bool  # no request was sent for this one
    token_ids: tuple[tuple[int, ...], ...] = ()  # one a sample, where the server returns them
    logprobs: tuple[tuple[float, ...], ...] = ()  # one a sample, where asked for
    prompt_token_ids: tuple[int, ...] = ()


class EndpointError(RuntimeError):
    """A request without an answer. `role`: whose request it was."""

    role: str = ""


class AuthError(EndpointError):
    """401, 403, or an account without money: wrong key or rights."""


class RequestError(EndpointError):
    """400, 404, 413, 422 and the like: the server will never take this request."""


class RateLimitError(EndpointError):
    """429 until the retries were used up."""


class ServerError(EndpointError):
    """408, 409, 5xx, or a body that is no answer, until the retries were used up."""


class TimeoutError_(EndpointError):
    """No whole answer within the time allowed, until the retries were used up."""


class ConnectionLost(EndpointError):
    """No connection, or one that broke, until the retries were used up."""


class BadAnswer(EndpointError):
    """Answers that are not what the schema demands, also when asked again. `raw`: the last one, as it came."""

    def __init__(self, message: str, raw: str):
        super().__init__(message)
        self.raw = raw


class Refused(EndpointError):
    """The model refused. The message is its refusal."""


class Filtered(Refused):
    """A content filter withheld the answer."""


class BudgetExceeded(EndpointError):
    """The next request could exceed the run's budget. What was answered before is kept."""


class CacheMiss(EndpointError):
    """A replay from the cache alone met a question that is not in it."""
