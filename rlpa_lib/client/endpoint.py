"""Which model stands behind each role of a run, and its client: batches answered in order, cached, retried,
within a budget."""

from __future__ import annotations

import asyncio
import os
import random
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import openai
from tqdm.auto import tqdm

from rlpa_lib.client import chat, transport
from rlpa_lib.client.chat import Answer, EndpointError, Request
from rlpa_lib.client.response_cache import ResponseCache, base_key, row_key
from rlpa_lib.client.usage import Budget, Cost, Usage, read_prices
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.roles import find_section
from rlpa_lib.settings.schema import Endpoint

Row = dict[str, Any]
_DEFAULT_SERVER = "https://api.openai.com/v1"
_LONGEST_DELAY = 30.0  # seconds between two tries, unless the server asks for more
_REFUSALS = 8  # things that one server can refuse to be told, one after the other
_CONNECTIONS = 16  # of one HTTP client
_BUDGET_POLL = 0.05  # seconds between two looks at a budget that requests under way have reserved


def endpoint_for(cfg: Config, role: str, run: Any, comparator: str | None = None) -> ChatEndpoint:
    """The endpoint of a role in `settings.roles` for a run (Run or directory); `comparator`: that row of
    evaluation.comparators. All share the run's cache, budget and usage record (metrics/usage.jsonl), which
    later sessions continue. InputError: as for Server and ChatEndpoint, or no model is named."""
    section, party = find_section(cfg, role)
    if comparator is not None:
        section, party = f"evaluation.comparators.{comparator}", cfg.evaluation.comparators[comparator]
    model = party.model
    if model is None:
        raise InputError(f"{section}.model: is needed to ask a server")
    base_url = party.base_url or os.environ.get("OPENAI_BASE_URL") or _DEFAULT_SERVER
    shared = _open_shared(Path(getattr(run, "dir", run)).resolve(), cfg.endpoint)
    server = transport.Server(section, base_url.rstrip("/"), model, party.api_key_env)
    return ChatEndpoint(server, role, *shared, limits=cfg.endpoint, mode=party.mode)


@cache
def _open_shared(run_dir: Path, given: Endpoint) -> tuple[ResponseCache | None, Budget, Usage]:
    """Once per run and process, so that all endpoints share one budget."""
    usage = Usage(run_dir / "metrics" / "usage.jsonl")
    limits = given.model_dump(include={"max_usd", "max_requests", "max_tokens"})
    budget = Budget(**limits, prices=read_prices(given.prices), spent=usage.spent())
    if given.cache == "off":
        return None, budget, usage
    file = run_dir / "cache" / "responses.sqlite" if given.cache == "run" else Path(given.cache).expanduser()
    return ResponseCache(file), budget, usage


@dataclass(eq=False)
class ChatEndpoint:
    """One model on one server in one role.

    `limits` is section `endpoint` of the settings. `mode`: how structured answers are asked for; auto =
    json_schema until refused. InputError: no key for a server that is not local, no cache for `cache_only`,
    or a USD budget without a price.
    """

    server: transport.Server
    role: str
    cache: ResponseCache | None
    budget: Budget
    usage: Usage
    limits: Endpoint = Endpoint()
    mode: Literal["auto", "json_schema", "text"] = "auto"
    backoff: float = 0.5  # seconds before the first retry, at most

    def __post_init__(self) -> None:
        if self.limits.cache_only and self.cache is None:
            raise InputError("endpoint.cache_only: needs a cache (endpoint.cache)")
        self.model = self.server.model
        self.dialect = transport.Dialect("text" if self.mode == "text" else "schema")
        self.pace = transport.Pace(self.limits.max_rpm)
        setting = f"{self.server.section}.model"
        local = transport.is_local(self.server.base_url)
        self.price = self.budget.price(self.model, local=local, setting=setting)
        if not self.limits.cache_only:
            self.server.read_key()

    def complete(
        self, requests: Sequence[Request], *, desc: str = "", on_error: Literal["raise", "return"] = "raise"
    ) -> list[Answer | EndpointError]:
        """Answers in the order of requests; equal ones are sent once. For scripts, threads and notebooks.

        With on_error="raise" the first error stops further sending and is raised once requests under way are
        kept; "return" puts errors in place of answers. A wrong key, an unknown model or an unreachable server
        stops the rest of the batch either way.
        """
        if not requests:
            return []
        modes = [{} if request.schema is None else {"mode": self.mode} for request in requests]
        contents = [request.content() | mode for request, mode in zip(requests, modes, strict=True)]
        bases = [base_key(self.server.base_url, self.model, content) for content in contents]
        questions = dict(zip(bases, requests, strict=True))
        kept = self.cache.get_many(list(map(row_key, questions))) if self.cache else {}
        exchange = Exchange(self, kept, stop_on_error=on_error == "raise")
        transport.run_to_end(exchange.run(questions, desc or self.role))
        results: list[Answer | EndpointError] = []
        for base in bases:
            results.append(result := exchange.results[base])
            if isinstance(result, Answer):  # an equal request further down was not sent
                exchange.results[base] = replace(result, cached=True)
        failed = [result for result in results if isinstance(result, EndpointError)]
        cached = sum(isinstance(result, Answer) and result.cached for result in results)
        self.usage.add(self.role, self.model, requests=len(results), cached=cached, errors=len(failed))
        if failed and on_error == "raise":
            raise failed[0]
        return results


class Exchange:
    """One `complete` in its event loop. `_parse`, `_retry` (after errors that pass) and `_adapt` each repeat
    the next one where needed; `_send`, the last, is where the cost is counted."""

    def __init__(self, endpoint: ChatEndpoint, kept: dict[str, Row], stop_on_error: bool):
        self.endpoint, self.limits, self.stop_on_error = endpoint, endpoint.limits, stop_on_error
        self.kept = kept  # rows of first answers that the cache holds, by key
        self.results: dict[str, Answer | EndpointError] = {}
        self.clients: list[openai.AsyncOpenAI] = []
        self.stopped: EndpointError | None = None  # nothing more is sent
        self.answered, self.turn = False, 0

    async def run(self, questions: dict[str, Request], desc: str) -> None:
        """Fill `results` by the keys of `questions`, at most `concurrency` at a time."""
        waiting = iter(questions.items())
        with tqdm(total=len(questions), desc=desc, unit="request", leave=False, disable=None) as bar:

            async def work() -> None:
                for base, request in waiting:  # shared by all workers
                    try:
                        self.results[base] = await self._parse(request, base)
                    except EndpointError as error:
                        error.role, self.results[base] = self.endpoint.role, error
                        if self.stop_on_error:
                            self.stopped = self.stopped or error
                    bar.update()

            at_once = min(self.limits.concurrency, len(questions))
            workers = [asyncio.create_task(work()) for _ in range(at_once)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                for client in self.clients:
                    await client.close()

    async def _parse(self, request: Request, base: str) -> Answer:
        """An answer that parses; others are kept too, and asked for again under another seed."""
        endpoint, tries, sent = self.endpoint, self.limits.parse_retries + 1, False
        for attempt in range(tries):
            key = row_key(base, attempt)
            row = (endpoint.cache.get_many([key]) if attempt and endpoint.cache else self.kept).get(key)
            if row is None:
                row, sent = await self._retry(request, key, attempt), True
            try:
                return replace(chat.read_answer(row, request.schema), cached=not sent)
            except chat.Unreadable as error:
                why = str(error)
        if row["finish_reason"] == "length":
            why += f" ({endpoint.server.section}.max_tokens = {request.max_tokens})"
        told = f"{endpoint.role}: no {request.schema.__name__} in {tries} answers: {why}"
        raise chat.BadAnswer(told, raw=row["content"])

    async def _retry(self, request: Request, key: str, attempt: int) -> Row:
        """A row from the server after at most `endpoint.retries` retries, kept before it is returned. Delays
        double, with jitter; what a server asks for holds for all requests. Raises the error that ended it."""
        endpoint, limits = self.endpoint, self.limits
        if limits.cache_only:
            told = f"{endpoint.role}: not in the cache, and endpoint.cache_only forbids to ask"
            raise chat.CacheMiss(f"{told} {endpoint.server.name('base_url')}")
        end = time.monotonic() + limits.max_wait
        for retries in range(limits.retries + 1):
            try:
                row = await self._adapt(request, key, attempt, again=retries > 0)
                break
            except EndpointError as error:
                if error is self.stopped:
                    raise
                asked = error.wait or 0.0
                delay = min(_LONGEST_DELAY, endpoint.backoff * 2**retries) * random.uniform(0.5, 1.0) + asked
                if 0.0 < asked <= limits.max_wait:
                    endpoint.pace.hold(asked)
                if not error.passing or retries == limits.retries or time.monotonic() + delay > end:
                    if asked > limits.max_wait:
                        told = f"the server asks to wait {asked:g} s, more than endpoint.max_wait"
                        error.args = (f"{error}; {told}",)
                    elif error.passing:
                        error.args = (f"{error}; given up after {retries + 1} tries",)
                    # a server that has answered before may come back
                    if error.hopeless and not (isinstance(error, chat.ConnectionLost) and self.answered):
                        self.stopped = self.stopped or error
                    raise
            await asyncio.sleep(delay)
        self.answered = True
        return row if endpoint.cache is None else endpoint.cache.put({key: row})[key]

    async def _adapt(self, request: Request, key: str, attempt: int, again: bool) -> Row:
        """One try, repeated at once without what the server refuses to be told, which is reported once. Each
        attempt at an answer that parses has its own seed."""
        endpoint = self.endpoint
        seed = int(key[:8], 16) % 2**31 if attempt else request.seed
        for left in reversed(range(_REFUSALS)):
            body = transport.build_body(endpoint.model, request, endpoint.dialect, seed, attempt)
            try:
                return await self._send(body, request.max_tokens, again)
            except chat.RequestError as error:
                old = endpoint.dialect
                new = transport.adapt_dialect(old, body, error, auto=endpoint.mode == "auto")
                if error is self.stopped or not left or new is None:
                    raise
                if new != old:
                    structure = f"structured output ({old.structure}; now: {new.structure})"
                    [what] = new.refused - old.refused or {structure}
                    told = f"{endpoint.role}: {endpoint.model} refuses {what} and is asked without it"
                    warnings.warn(told, stacklevel=2)
                    endpoint.dialect = new
        raise AssertionError("the last refusal is raised")

    async def _send(self, body: dict[str, Any], max_tokens: int, again: bool) -> Row:
        """One HTTP request: its upper bound is reserved before it is sent, its cost recorded before its row
        is used. Raises what stopped the batch, or BudgetExceeded."""
        endpoint, price = self.endpoint, self.endpoint.price
        if len(self.clients) * _CONNECTIONS < self.limits.concurrency:
            self.clients.append(endpoint.server.connect(self.limits.timeout))
        self.turn += 1  # a client checks all its connections for a request, so several small ones are faster
        client, most = self.clients[self.turn % len(self.clients)], transport.bound_prompt(body)
        bound = Cost(1, most + max_tokens, price.usd(most, max_tokens) if price else 0.0)
        await endpoint.pace.wait()
        while self.stopped is None and not endpoint.budget.reserve(bound):
            await asyncio.sleep(_BUDGET_POLL)
        if self.stopped is not None:
            raise self.stopped
        # an answer that was under way when this was cancelled may be billed as well
        line, cost = {"lost": 1, "lost_tokens": bound.tokens, "lost_usd": bound.usd}, bound
        began = time.perf_counter()
        try:
            completion, row = await transport.send(client, body, self.limits.timeout, endpoint.server)
            counts = chat.count_tokens(completion.get("usage"))  # upper bounds if the server gives none
            prompt, generated, cached, reasoning = counts or (most, len(row["content"].encode()), 0, 0)
            usd = price.usd(prompt, generated, cached) if price else None
            cost = Cost(1, prompt + generated, usd or 0.0)
            line = {
                "prompt_tokens": prompt, "completion_tokens": generated, "reasoning_tokens": reasoning,
                "estimated": None if counts else 1, "usd": usd,
                "seconds": round(time.perf_counter() - began, 4),
            }
            return row
        except EndpointError as error:
            if not error.billed:
                line, cost = {}, Cost(1)
            raise
        finally:
            endpoint.usage.add(endpoint.role, endpoint.model, sent=1, retries=int(again), **line)
            endpoint.budget.settle(bound, cost)
