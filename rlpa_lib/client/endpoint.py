"""Client of OpenAI-compatible chat servers: batches answered in order, cached, retried, within a budget."""

from __future__ import annotations

import asyncio
import random
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import openai
from tqdm.auto import tqdm

from rlpa_lib.client import answers, chat, transport
from rlpa_lib.client.chat import Answer, EndpointError, Request, RequestError
from rlpa_lib.client.response_cache import ResponseCache, base_key, row_key
from rlpa_lib.client.usage import Budget, Cost, Usage
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.schema import Endpoint

Row = dict[str, Any]
_LONGEST_DELAY = 30.0  # seconds between two tries, unless the server asks for more
_REFUSALS = 8  # things that one server can refuse to be told, one after the other
_CONNECTIONS = 16  # of one HTTP client
_BUDGET_POLL = 0.05  # seconds between two looks at a budget that requests under way have reserved


@dataclass
class Job:
    """One distinct question of a batch: its key, its row where the cache has one, and how it ended."""

    request: Request
    base: str
    row: Row | None = None
    sent: bool = False
    result: Answer | EndpointError | None = None


@dataclass(eq=False)
class ChatEndpoint:
    """One model on one server in one role.

    `limits` is section `endpoint` of the settings: `retries` bounds the tries of a request, `max_wait`
    (seconds) their total time, `timeout` one try, `parse_retries` the repeats for an answer that does not
    parse; `cache_only` sends nothing. `mode`: how structured answers are asked for; auto = json_schema until
    refused. InputError: no key for a server that is not local, or a USD budget without a price.
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
        setting = f"{self.server.section}.{self.server.model_key}"
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
        bases = [self._base(request) for request in requests]
        jobs = {base: Job(request, base) for request, base in zip(requests, bases, strict=True)}
        keys = {row_key(base): job for base, job in jobs.items()}
        for key, row in (self.cache.get_many(list(keys)) if self.cache else {}).items():
            keys[key].row = row
        if jobs:
            exchange = _Exchange(self, stop_on_error=on_error == "raise")
            transport.run_to_end(exchange.run(list(jobs.values()), desc or self.role))
        results: list[Answer | EndpointError] = []
        for job in map(jobs.__getitem__, bases):
            answered = isinstance(job.result, Answer)
            results.append(replace(job.result, cached=not job.sent) if answered else job.result)
            job.sent = False  # an equal request further down was not sent
        failed = [result for result in results if isinstance(result, EndpointError)]
        if results:
            cached = sum(isinstance(result, Answer) and result.cached for result in results)
            self.usage.add(self.role, self.model, requests=len(results), cached=cached, errors=len(failed))
        if failed and on_error == "raise":
            raise failed[0]
        return results

    def _base(self, request: Request) -> str:
        mode = {} if request.schema is None else {"mode": self.mode}
        return base_key(self.server.base_url, self.model, request.content() | mode)

    def learn(self, body: Mapping[str, Any], error: RequestError) -> bool:
        """Whether a refusal says what to leave out from now on; the change is reported once."""
        old = self.dialect
        new = transport.adapt_dialect(old, body, error, auto=self.mode == "auto")
        if new is None:
            return False
        if new != old:
            structure = f"structured output ({old.structure}; now: {new.structure})"
            [key] = new.refused - old.refused or {structure}
            warnings.warn(f"{self.role}: {self.model} refuses {key} and is asked without it", stacklevel=2)
            self.dialect = new
        return True


class _Exchange:
    """The jobs of one `complete` in one event loop: workers ask, retry, keep and check until all are done."""

    def __init__(self, endpoint: ChatEndpoint, stop_on_error: bool):
        self.endpoint, self.limits, self.stop_on_error = endpoint, endpoint.limits, stop_on_error
        self.clients: list[openai.AsyncOpenAI] = []
        self.stopped: EndpointError | None = None  # nothing more is sent
        self.answered, self.turn = False, 0

    async def run(self, jobs: list[Job], desc: str) -> None:
        """Settle all jobs, at most `concurrency` at a time, under a progress bar."""
        waiting = iter(jobs)
        with tqdm(total=len(jobs), desc=desc, unit="request", leave=False, disable=None) as bar:

            async def work() -> None:
                for job in waiting:  # shared by all workers
                    await self._settle(job)
                    bar.update()

            workers = [asyncio.create_task(work()) for _ in range(min(self.limits.concurrency, len(jobs)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                for client in self.clients:
                    await client.close()

    async def _settle(self, job: Job) -> None:
        try:
            job.result = await self._accept(job)
        except EndpointError as error:
            error.role = self.endpoint.role
            job.result = error
            if self.stop_on_error and self.stopped is None:
                self.stopped = error

    async def _accept(self, job: Job) -> Answer:
        """An answer that parses; others are kept too, and asked for again under another seed."""
        endpoint, request, tries = self.endpoint, job.request, self.limits.parse_retries + 1
        for attempt in range(tries):
            key, row = row_key(job.base, attempt), None if attempt else job.row
            if row is None and attempt and endpoint.cache:
                row = endpoint.cache.get_many([key]).get(key)
            row = row or await self._buy(job, key, attempt)
            try:
                return answers.read_answer(row, request.schema)
            except answers.Unreadable as error:
                why = str(error)
        if row["finish_reason"] == "length":
            why += f" ({endpoint.server.section}.max_tokens = {request.max_tokens})"
        told = f"{endpoint.role}: no {request.schema.__name__} in {tries} answers: {why}"
        raise chat.BadAnswer(told, raw=row["content"])

    async def _buy(self, job: Job, key: str, attempt: int) -> Row:
        """A row from the server, committed before it is returned. Raises the error that ended the tries."""
        endpoint, limits = self.endpoint, self.limits
        if limits.cache_only:
            place = endpoint.server.name("base_url")
            told = f"not in the cache, and endpoint.cache_only forbids to ask {place}"
            raise chat.CacheMiss(f"{endpoint.role}: {told}")
        job.sent = True
        end = time.monotonic() + limits.max_wait
        for retries in range(limits.retries + 1):
            try:
                row = await self._agree(job.request, key, attempt, again=retries > 0)
                break
            except EndpointError as error:
                if error is self.stopped:
                    raise
                delay = self._delay(error, retries)
                if not error.passing or retries == limits.retries or time.monotonic() + delay > end:
                    self._give_up(error, retries + 1)
                    raise
            await asyncio.sleep(delay)
        self.answered = True
        return row if endpoint.cache is None else endpoint.cache.put({key: row})[key]

    async def _agree(self, request: Request, key: str, attempt: int, again: bool) -> Row:
        """One try, repeated at once if the server refuses an option; each parse attempt has its own seed."""
        seed = int(key[:8], 16) % 2**31 if attempt else request.seed
        for left in reversed(range(_REFUSALS)):
            body = transport.build_body(self.endpoint.model, request, self.endpoint.dialect, seed, attempt)
            try:
                return await self._send(body, request.max_tokens, again)
            except RequestError as error:
                if error is self.stopped or not left or not self.endpoint.learn(body, error):
                    raise
        raise AssertionError("the last refusal is raised")

    async def _send(self, body: dict[str, Any], max_tokens: int, again: bool) -> Row:
        """One HTTP request within the budget; its cost is recorded before its answer is used."""
        endpoint, price = self.endpoint, self.endpoint.price
        client, prompt = self._client(), transport.bound_prompt(body)
        bound = Cost(1, prompt + max_tokens, price.usd(prompt, max_tokens) if price else 0.0)
        await self._admit(bound)
        # an answer that was under way when this was cancelled may be billed as well
        line, cost = {"lost": 1, "lost_tokens": bound.tokens, "lost_usd": bound.usd}, bound
        began = time.perf_counter()
        try:
            completion, row = await transport.send(client, body, self.limits.timeout, endpoint.server)
            line, cost = self._bill(completion, row, prompt)
            line["seconds"] = round(time.perf_counter() - began, 4)
            return row
        except EndpointError as error:
            if not error.billed:
                line, cost = {}, Cost(1)
            raise
        finally:
            endpoint.usage.add(endpoint.role, endpoint.model, sent=1, retries=int(again), **line)
            endpoint.budget.settle(bound, cost)

    def _bill(self, completion: Row, row: Row, bound: int) -> tuple[dict[str, Any], Cost]:
        """Usage line and cost of an answer; upper bounds if the server gives no counts."""
        told, price = answers.count_tokens(completion.get("usage")), self.endpoint.price
        prompt, generated, cached, reasoning = told or (bound, len(row["content"].encode()), 0, 0)
        line = {"prompt_tokens": prompt, "completion_tokens": generated, "reasoning_tokens": reasoning}
        if not told:
            line["estimated"] = 1
        usd = price.usd(prompt, generated, cached) if price else None
        return line | {"usd": usd}, Cost(1, prompt + generated, usd or 0.0)

    async def _admit(self, bound: Cost) -> None:
        """Wait for the pace and the budget. Raises what stopped the batch, or BudgetExceeded."""
        await self.endpoint.pace.wait()
        while self.stopped is None and not self.endpoint.budget.reserve(bound):
            await asyncio.sleep(_BUDGET_POLL)
        if self.stopped is not None:
            raise self.stopped

    def _client(self) -> openai.AsyncOpenAI:
        """The clients in turn; each checks all its connections for a request, so small ones are faster."""
        if len(self.clients) * _CONNECTIONS < self.limits.concurrency:
            self.clients.append(self.endpoint.server.connect(self.limits.timeout))
        self.turn += 1
        return self.clients[self.turn % len(self.clients)]

    def _delay(self, error: EndpointError, retries: int) -> float:
        """Seconds to the next try: doubling, with jitter; what the server asks for holds for all requests."""
        delay = min(_LONGEST_DELAY, self.endpoint.backoff * 2**retries) * random.uniform(0.5, 1.0)
        if error.wait is None or error.wait > self.limits.max_wait:
            return max(delay, error.wait or 0.0)
        self.endpoint.pace.hold(error.wait)
        return error.wait + delay

    def _give_up(self, error: EndpointError, tries: int) -> None:
        """Report what was tried; stop sending if no other request can do better."""
        if error.wait is not None and error.wait > self.limits.max_wait:
            error.args = (f"{error}; the server asks to wait {error.wait:g} s, more than endpoint.max_wait",)
        elif error.passing:
            error.args = (f"{error}; given up after {tries} tries",)
        if error.hopeless and not (isinstance(error, chat.ConnectionLost) and self.answered):
            self.stopped = self.stopped or error
