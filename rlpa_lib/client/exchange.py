"""The asynchronous part of one batch: workers that ask, retry, keep and check until every question has its answer or a typed error."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import openai
from tqdm.auto import tqdm

from rlpa_lib.client import answers, transport
from rlpa_lib.client.chat import BadAnswer, CacheMiss, ConnectionLost, EndpointError, Request
from rlpa_lib.client.response_cache import row_key
from rlpa_lib.client.transport import Failure
from rlpa_lib.client.usage import Cost

if TYPE_CHECKING:
    from rlpa_lib.client.endpoint import ChatEndpoint

Row = dict[str, Any]
_LONGEST_DELAY = 30.0  # seconds between two tries, unless the server asks for more
_REFUSALS = 8  # things that one server can refuse to be told, one after the other
_CONNECTIONS = 16  # of one HTTP client
_BUDGET_POLL = 0.05  # seconds between two looks at a budget that requests under way have reserved


@dataclass
class Job:
    """One distinct question of a batch: its key, its rows by (sample, attempt), and how it ended."""

    request: Request
    base: str
    rows: dict[tuple[int, int], Row] = field(default_factory=dict)
    sent: bool = False
    read: list[tuple[Row, answers.Sample]] = field(default_factory=list)
    error: EndpointError | None = None


class Exchange:
    """The jobs of one `complete`, in one event loop; HTTP clients are made when they are first needed and closed with the loop."""

    def __init__(self, endpoint: ChatEndpoint, stop_on_error: bool):
        self.endpoint, self.stop_on_error = endpoint, stop_on_error
        self.clients: list[openai.AsyncOpenAI] = []
        self.stopped: EndpointError | None = None  # nothing more is sent
        self.answer = self.turn = 0

    async def run(self, jobs: list[Job], desc: str) -> None:
        """Settle all jobs, at most `concurrency` at a time, under a progress bar."""
        waiting = iter(jobs)
        with tqdm(total=len(jobs), desc=desc, unit="request", leave=False, disable=None) as bar:

            async def work() -> None:
                for job in waiting:  # shared by all workers
                    await self._settle(job)
                    bar.update()

            workers = [asyncio.create_task(work()) for _ in range(min(self.endpoint.concurrency, len(jobs)))]
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
            await self._fetch(job)
            job.read = [await self._accepted(job, sample) for sample in range(job.request.n)]
        except EndpointError as error:
            error.role = self.endpoint.role
            job.error = error
            if self.stop_on_error and self.stopped is None:
                self.stopped = error

    async def _fetch(self, job: Job) -> None:
        """First rows of all samples; a server that gives fewer choices than asked is asked again."""
        for _ in range(job.request.n):
            missing = [sample for sample in range(job.request.n) if (sample, 0) not in job.rows]
            if not missing:
                return
            rows = await self._ask(job, missing, 0)
            job.rows.update({(sample, 0): row for sample, row in zip(missing, rows, strict=False)})

    async def _accepted(self, job: Job, sample: int) -> tuple[Row, answers.Sample]:
        """A sample that parses; what does not is asked for again under another seed, and kept as well."""
        row, why = None, ""
        for attempt in range(self.endpoint.parse_retries + 1):
            row = job.rows.get((sample, attempt)) or await self._another(job, sample, attempt)
            try:
                return row, answers.read(row, job.request.schema)
            except answers.Unreadable as error:
                why = str(error)
        name, limit = job.request.schema.__name__, f"{self.endpoint.settings.section}.max_tokens"
        hint = f" ({limit} = {job.request.max_tokens})" if row["finish_reason"] == "length" else ""
        raise BadAnswer(f"{self.endpoint.role}: no {name} in {self.endpoint.parse_retries + 1} answers: {why}{hint}", row["content"])

    async def _another(self, job: Job, sample: int, attempt: int) -> Row:
        key = row_key(job.base, sample, attempt)
        kept = self.endpoint.cache.get_many([key]) if self.endpoint.cache else {}
        return kept.get(key) or (await self._ask(job, [sample], attempt))[0]

    async def _ask(self, job: Job, samples: list[int], attempt: int) -> list[Row]:
        """Rows of at least the first of the samples, bought, and committed before they are returned. Raises the failure that ended it."""
        endpoint = self.endpoint
        if endpoint.cache_only:
            raise CacheMiss(f"{endpoint.role}: not in the cache, and endpoint.cache_only forbids to ask {endpoint.settings.named('base_url')}")
        job.sent = True
        began = time.monotonic()
        for retries in range(endpoint.retries + 1):
            outcome = await self._agreed(job, samples, attempt, retries > 0)
            if not isinstance(outcome, Failure):
                self.answer += 1
                return self._keep(job, samples, attempt, outcome)
            delay = self._delay(outcome, retries)
            late = time.monotonic() - began + delay > endpoint.max_wait
            if not outcome.passing or late or retries == endpoint.retries:
                break
            await asyncio.sleep(delay)
        raise self._final(outcome, retries)

    async def _agreed(self, job: Job, samples: list[int], attempt: int, again: bool) -> list[Row] | Failure:
        """One try; when the server refuses to be told something, at once another without it."""
        endpoint = self.endpoint
        seed = _seed(job, samples[0], attempt)
        for _ in range(_REFUSALS):
            n = 1 if "n" in endpoint.dialect.refused else len(samples)
            asked = transport.body(endpoint.model, job.request, endpoint.dialect, n=n, seed=seed, attempt=attempt)
            outcome = await self._once(asked, n, job.request.max_tokens, again)
            if not isinstance(outcome, Failure) or not endpoint.learn(asked, outcome):
                return outcome
        return outcome

    async def _once(self, asked: dict[str, Any], n: int, max_tokens: int, again: bool) -> list[Row] | Failure:
        """One HTTP request, inside the budget; its cost is on record before its answer is used."""
        endpoint, price = self.endpoint, self.endpoint.price
        client, prompt = self._client(), transport.prompt_bound(asked)
        bound = Cost(1, prompt + n * max_tokens, price.usd(prompt, n * max_tokens) if price else 0.0)
        await self._admit(bound)
        # an answer that was under way when this was cancelled may be billed as well
        line, cost = {"lost": 1, "lost_tokens": bound.tokens, "lost_usd": bound.usd}, bound
        began = time.perf_counter()
        try:
            outcome = await transport.send(client, asked, endpoint.timeout, endpoint.settings)
            made = outcome if isinstance(outcome, Failure) else _rows(outcome, n, endpoint.settings)
            if isinstance(made, list):
                line, cost = self._bill(outcome, made, prompt)
                line["seconds"] = round(time.perf_counter() - began, 4)
            elif not made.billed:
                line, cost = {}, Cost(1)
            return made
        finally:
            endpoint.usage.add(endpoint.role, endpoint.model, sent=1, retries=int(again), **line)
            endpoint.budget.settle(bound, cost)

    def _bill(self, outcome: Row, made: list[Row], prompt: int) -> tuple[dict[str, Any], Cost]:
        """Usage line and cost of an answer; without the server's counts, upper bounds."""
        told = answers.counts(outcome.get("usage"))
        bytes_out = sum(len(row["content"].encode()) for row in made)
        prompt_tokens, completion, cached, reasoning = told or (prompt, bytes_out, 0, 0)
        price = self.endpoint.price
        usd = price.usd(prompt_tokens, completion, cached) if price else None
        line = {"prompt_tokens": prompt_tokens, "completion_tokens": completion, "reasoning_tokens": reasoning, "usd": usd}
        return line | ({} if told else {"estimated": 1}), Cost(1, prompt_tokens + completion, usd or 0.0)

    async def _admit(self, bound: Cost) -> None:
        """Wait for the pace and for the budget. Raises what stopped the batch; BudgetExceeded."""
        await self.endpoint.pace.turn()
        self._go_on()
        while not self.endpoint.budget.reserve(bound):
            await asyncio.sleep(_BUDGET_POLL)
            self._go_on()

    def _go_on(self) -> None:
        if self.stopped is not None:
            raise self.stopped

    def _client(self) -> openai.AsyncOpenAI:
        """The clients in turn: a client looks at all its connections for every request, so a few small ones are faster than a large one."""
        if len(self.clients) * _CONNECTIONS < self.endpoint.concurrency:
            self.clients.append(self.endpoint.connect())
        self.turn += 1
        return self.clients[self.turn % len(self.clients)]

    def _keep(self, job: Job, samples: list[int], attempt: int, made: list[Row]) -> list[Row]:
        cache = self.endpoint.cache
        if cache is None:
            return made
        keys = [row_key(job.base, sample, attempt) for sample in samples[: len(made)]]
        kept = cache.put(dict(zip(keys, made, strict=True)))
        return [kept[key] for key in keys]

    def _delay(self, failure: Failure, retries: int) -> float:
        """Seconds to the next try: doubling, with jitter; at least what the server asks for, which then holds for all requests."""
        delay = min(_LONGEST_DELAY, self.endpoint.backoff * 2**retries) * random.uniform(0.5, 1.0)
        if failure.wait is None or failure.wait > self.endpoint.max_wait:
            return max(delay, failure.wait or 0.0)
        self.endpoint.pace.hold(failure.wait)
        return failure.wait + delay

    def _final(self, failure: Failure, retries: int) -> EndpointError:
        """The error of a request that is given up, with what was tried; nothing more is sent when no other request can do better."""
        error = failure.error
        if failure.wait is not None and failure.wait > self.endpoint.max_wait:
            error.args = (f"{error}; the server asks to wait {failure.wait:g} s, more than endpoint.max_wait",)
        elif failure.passing:
            error.args = (f"{error}; given up after {retries + 1} tries",)
        if failure.hopeless and not (isinstance(error, ConnectionLost) and self.answer):
            self.stopped = self.stopped or error
        return error


def _rows(completion: Any, n: int, settings: transport.Settings) -> list[Row] | Failure:
    try:
        return answers.rows(completion, n)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # whatever a foreign server puts where a chat completion is due
        return transport.unreadable(settings, f"the answer is no chat completion ({type(error).__name__}: {error})")


def _seed(job: Job, sample: int, attempt: int) -> int | None:
    """The seed that was asked for; further samples and attempts get seeds of their own, made from their keys."""
    if (sample, attempt) == (0, 0) or (job.request.seed is None and not attempt):
        return job.request.seed
    return int(row_key(job.base, sample, attempt)[:8], 16) % 2**31


def run_to_end(make: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine in an event loop of its own, in a thread of its own where this thread already runs one (a notebook)."""
    try:
        asyncio.get_running_loop()
        running = True
    except RuntimeError:
        running = False
    if not running:
        asyncio.run(make())
        return
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task]] = []

    async def main() -> None:
        started.append((asyncio.get_running_loop(), asyncio.current_task()))
        await make()

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(lambda: asyncio.run(main()))
        try:
            future.result()
        except BaseException:  # above all an interrupt of the waiting cell: the requests stop with it
            if started and not future.done():
                loop, task = started[0]
                loop.call_soon_threadsafe(task.cancel)
            raise
