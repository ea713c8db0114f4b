"""What is asked of a chat model, what comes back, and every way in which that can fail, as data types."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pydantic

from rlpa_lib.runs.storage import hash_json


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
            "messages": list(self.messages),
            "schema": _hash_schema(self.schema) if self.schema else None,
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "max_tokens": self.max_tokens,
            "seed": self.seed,
            "logprobs": False,  # never set; kept because keys of existing caches hold it
            "extra": {},
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
