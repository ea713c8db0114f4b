"""Client of OpenAI-compatible chat servers: a batch in, answers in order out; cached, retried, within a budget, counted per role."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache as remembered
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import openai

from rlpa_lib.client import answers, transport
from rlpa_lib.client.chat import (
    Answer,
    AuthError,
    BadAnswer,
    BudgetExceeded,
    CacheMiss,
    ConnectionLost,
    EndpointError,
    Filtered,
    RateLimitError,
    Refused,
    Request,
    RequestError,
    ServerError,
    TimeoutError_,
)
from rlpa_lib.client.exchange import Exchange, Job, run_to_end
from rlpa_lib.client.response_cache import ResponseCache, base_key, row_key
from rlpa_lib.client.transport import Dialect, Failure, Settings
from rlpa_lib.client.usage import Budget, Usage, read_prices
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.schema import Endpoint

# the names that the rest of the library imports from here
__all__ = [
    "Answer", "AuthError", "BadAnswer", "Budget", "BudgetExceeded", "CacheMiss", "ChatEndpoint", "ConnectionLost", "EndpointError", "Filtered",
    "RateLimitError", "Refused", "Request", "RequestError", "ResponseCache", "ServerError", "TimeoutError_", "Usage", "endpoint_for",
]  # fmt: skip

Mode = Literal["auto", "json_schema", "text"]
_DEFAULT_SERVER = "https://api.openai.com/v1"
_NO_KEY = "local"  # sent to a local server when there is no key
# section and key of the model behind each role of the usage record
_ROLES = {
    "user": ("user", "model"), "judge": ("judge", "model"), "response_judge": ("judge", "model"), "profile_judge": ("judge", "profile_model"),
    "evaluator": ("evaluator", "model"), "converter": ("user", "model"), "rewriter": ("user", "model"),
    "user_judge": ("judge", "model"), "policy": ("policy", "model"),
}  # fmt: skip


class ChatEndpoint:
    """One model on one server in one role. Keys are read from the environment and kept nowhere.

    `mode`: how structured answers are asked for; auto = json_schema until the server refuses it. `retries` bounds the tries of a request that
    may pass, `max_wait` (seconds) their whole time, `timeout` one try, `parse_retries` how often an answer that does not parse is asked for
    again. `cache_only`: nothing is sent. InputError: bad address, no key for a server that is not local, no price but a budget in USD.
    """

    def __init__(
        self, *, base_url: str | None, model: str, api_key_env: str, role: str, cache: ResponseCache | None, budget: Budget, usage: Usage,
        concurrency: int = 16, retries: int = 5, timeout: float = 60.0, mode: Mode = "auto", parse_retries: int = 2, max_wait: float = 600.0,
        backoff: float = 0.5, max_rpm: float | None = None, cache_only: bool = False, settings: Settings | None = None,
    ):  # fmt: skip
        server = (base_url or os.environ.get("OPENAI_BASE_URL") or _DEFAULT_SERVER).rstrip("/")
        self.settings = settings or Settings(role, server, model, api_key_env)
        self.server, self.model, self.api_key_env, self.role = server, model, api_key_env, role
        self.cache, self.budget, self.usage = cache, budget, usage
        self.concurrency, self.retries, self.timeout, self.mode = concurrency, retries, timeout, mode
        self.parse_retries, self.max_wait, self.backoff, self.cache_only = parse_retries, max_wait, backoff, cache_only
        self.dialect = Dialect("text" if mode == "text" else "schema")
        self.pace = transport.Pace(max_rpm)
        self._check()
        local = transport.is_local(server)
        self.price = budget.price(model, local=local, setting=f"{self.settings.section}.{self.settings.model_key}")
        if not cache_only:
            self._key()

    def _check(self) -> None:
        address, named = urlsplit(self.server), f"{self.settings.section}.base_url"
        if address.scheme not in ("http", "https") or not address.hostname:
            raise InputError(f"{named}: {self.server!r} is no address such as https://api.openai.com/v1")
        if address.username or address.password:
            raise InputError(f"{named}: holds a user name or password, which would end up in the run's record; use api_key_env")
        if not re.fullmatch(r"[A-Za-z_]\w*", self.api_key_env):
            raise InputError(f"{self.settings.section}.api_key_env: wants the NAME of an environment variable, not a key")
        if self.cache_only and self.cache is None:
            raise InputError("endpoint.cache_only: needs a cache (endpoint.cache)")

    def _key(self) -> str:
        if key := os.environ.get(self.api_key_env, "").strip():
            return key
        if transport.is_local(self.server):
            return _NO_KEY
        raise InputError(f"{self.settings.section}.api_key_env: the environment variable {self.api_key_env} is not set")

    def complete(
        self, requests: Sequence[Request], *, desc: str = "", on_error: Literal["raise", "return"] = "raise"
    ) -> list[Answer | EndpointError]:
        """Answers in the order of the requests; equal requests are sent once. Works in scripts, threads and notebook cells.

        With on_error="raise" the first error stops further sending, what is under way is awaited and kept, and the error is raised; with
        "return" errors stand in their places. Wrong keys, unknown models and unreachable servers stop the rest of the batch either way.
        """
        bases = [self._base(request) for request in requests]
        jobs = self._jobs(requests, bases)
        if jobs:
            run_to_end(lambda: Exchange(self, on_error == "raise").run(list(jobs.values()), desc or self.role))
        seen: set[str] = set()
        results: list[Answer | EndpointError] = []
        for request, base in zip(requests, bases, strict=True):
            results.append(_result(request, jobs[base], repeated=base in seen))
            seen.add(base)
        failed = [result for result in results if isinstance(result, EndpointError)]
        if results:
            cached = sum(isinstance(result, Answer) and result.cached for result in results)
            self.usage.add(self.role, self.model, requests=len(results), cached=cached, errors=len(failed))
        if failed and on_error == "raise":
            raise failed[0]
        return results

    def _base(self, request: Request) -> str:
        content = request.content()
        if request.schema is not None:
            content["mode"] = self.mode
        return base_key(self.server, self.model, content)

    def _jobs(self, requests: Sequence[Request], bases: Sequence[str]) -> dict[str, Job]:
        """Distinct questions with the rows that the cache has."""
        jobs: dict[str, Job] = {}
        for request, base in zip(requests, bases, strict=True):
            if base not in jobs or jobs[base].request.n < request.n:
                jobs[base] = Job(request, base)
        places = {row_key(job.base, sample): (job, sample) for job in jobs.values() for sample in range(job.request.n)}
        for key, row in (self.cache.get_many(list(places)) if self.cache else {}).items():
            job, sample = places[key]
            job.rows[sample, 0] = row
        return jobs

    def connect(self) -> openai.AsyncOpenAI:
        """A client for one event loop; retries are this library's."""
        http = openai.DefaultAsyncHttpxClient(verify=transport.certificates())
        return openai.AsyncOpenAI(base_url=self.server, api_key=self._key(), max_retries=0, timeout=self.timeout, http_client=http)

    def learn(self, asked: Mapping[str, Any], failure: Failure) -> bool:
        """Whether a refusal says what to leave out from now on; the change is told once."""
        new = transport.learnt(self.dialect, asked, failure, may_fall_back=self.mode == "auto")
        if new is None:
            return False
        if new != self.dialect:
            dropped = sorted(new.refused - self.dialect.refused) or [f"structured output ({self.dialect.structure}; now: {new.structure})"]
            warnings.warn(f"{self.role}: {self.model} refuses {dropped[0]} and is asked without it", stacklevel=2)
            self.dialect = new
        return True


def _result(request: Request, job: Job, repeated: bool) -> Answer | EndpointError:
    if job.error is not None:
        return job.error
    rows, samples = zip(*job.read[: request.n], strict=True)
    return answers.answer(request, list(rows), list(samples), cached=repeated or not job.sent)


def endpoint_for(cfg: Config, role: str, run: Any, comparator: str | None = None) -> ChatEndpoint:
    """The endpoint of a role (user, judge, response_judge, profile_judge, evaluator, converter, rewriter, user_judge, policy) in a run, given as
    Run or directory; with `comparator`, of that row of evaluation.comparators.

    All roles of a run share its cache, budget and usage record (metrics/usage.jsonl), which go on where a former session stopped.
    InputError: as for ChatEndpoint, or no model is named.
    """
    section, key = _ROLES[role]
    party = getattr(cfg, section)
    if comparator is not None:
        section, party = f"evaluation.comparators.{comparator}", cfg.evaluation.comparators[comparator]
    if key == "profile_model" and party.profile_model is None:
        key = "model"
    model = getattr(party, key)
    if model is None:
        raise InputError(f"{section}.{key}: is needed to ask a server")
    given = cfg.endpoint
    server = party.base_url or os.environ.get("OPENAI_BASE_URL") or _DEFAULT_SERVER
    cache, budget, usage = _shared(Path(getattr(run, "dir", run)).resolve(), given)
    return ChatEndpoint(
        base_url=server, model=model, api_key_env=party.api_key_env, role=role, cache=cache, budget=budget, usage=usage, mode=party.mode,
        concurrency=given.concurrency, retries=given.retries, timeout=given.timeout, parse_retries=given.parse_retries,
        max_wait=given.max_wait, max_rpm=given.max_rpm, cache_only=given.cache_only,
        settings=Settings(section, server.rstrip("/"), model, party.api_key_env, key),
    )  # fmt: skip


@remembered
def _shared(run_dir: Path, given: Endpoint) -> tuple[ResponseCache | None, Budget, Usage]:
    """Once per run and process, so that several endpoints keep to one budget."""
    usage = Usage(run_dir / "metrics" / "usage.jsonl")
    limits = {"max_usd": given.max_usd, "max_requests": given.max_requests, "max_tokens": given.max_tokens}
    budget = Budget(**limits, prices=read_prices(given.prices), spent=usage.spent())
    if given.cache == "off":
        return None, budget, usage
    file = run_dir / "cache" / "responses.sqlite" if given.cache == "run" else Path(given.cache).expanduser()
    return ResponseCache(file), budget, usage
