"""`VLLMPolicy`: rollouts from vLLM servers with the trainer's adapter, as token ids and log-probabilities."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rlpa_lib.agents import vllm_client
from rlpa_lib.agents.models import load_end_ids, load_tokenizer
from rlpa_lib.agents.prompt_tokens import (
    check_request,
    count_earlier,
    decode_reply,
    find_end_ids,
    fit_prompt,
)
from rlpa_lib.agents.vllm_client import Adapter, AdapterMissing, AdapterRefused, ServerLost, VLLMClient
from rlpa_lib.client.transport import run_to_end
from rlpa_lib.dialogue.protocols import Completion, Message
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import Config, InputError

Result = TypeVar("Result")
ROUNDS = 3  # how often samples of an adapter that is too old are asked for again
SAMPLING = {  # the whole distribution, whatever a server's defaults; log-probabilities of sampled tokens only
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": True,
    "logprobs": 0, "return_token_ids": True, "return_tokens_as_token_ids": True,
}  # fmt: skip


class NoServerLeft(RuntimeError):
    """Every server is gone; the message says which and why. A run can resume from its last checkpoint."""


class StaleSamples(RuntimeError):
    """Samples kept coming from adapters older than `max_policy_lag` allows."""


class VLLMPolicy:
    """`Policy` over one or more servers (base URLs ending in /v1) that can read this machine's adapters.

    A prompt's n samples come from one server, which computes the prompt once; prompts take turns among
    servers. A sample depends on (weights, seed, prompt, number of equal prompts before it in the call, sample
    index), not on the server, up to rounding. A failing server is dropped until the next `load_adapter`;
    others redo its prompts. `n_cut` counts prompts that lost turns to `max_prompt_tokens`, `n_redone`
    requests sent again. Servers must give log-probabilities as sampled, as those of `vllm_server` do.
    A turn ends with one of `end_ids` (None: the tokenizer's).
    """

    def __init__(
        self, tokenizer, servers: Sequence[str], *, max_prompt_tokens: int = 4096, max_policy_lag: int = 0,
        concurrency: int = 64, retries: int = 2, timeout: float = 600.0,
        end_ids: frozenset[int] | None = None,
    ):  # fmt: skip
        if not servers or len(set(servers)) != len(servers):
            raise InputError(f"policy.servers: needs one or several different base URLs, got {list(servers)}")
        self.end_ids = end_ids or find_end_ids(tokenizer)
        self.tokenizer, self.servers = tokenizer, [VLLMClient(url, timeout, retries) for url in servers]
        self.max_prompt_tokens, self.max_policy_lag = max_prompt_tokens, max_policy_lag
        self.concurrency, self.n_cut, self.n_redone = concurrency, 0, 0
        self.newest: Adapter | None = None  # None: the base model

    @property
    def version(self) -> int:
        """Updates of the newest adapter; 0 is the base model."""
        return self.newest.version if self.newest else 0

    def generate(
        self, messages: Sequence[list[Message]], n: int, *, seed: int, temperature: float, max_new_tokens: int
    ) -> list[list[Completion]]:
        """n completions per message list; `temperature` 0 is greedy. No sample is over `max_policy_lag`
        updates old. Raises InputError (limits, or a refused request), NoServerLeft and StaleSamples."""
        check_request(n, max_new_tokens, temperature)
        if all(server.gone for server in self.servers):
            self._revive()
        fitted = [fit_prompt(self.tokenizer, talk, self.max_prompt_tokens) for talk in messages]
        self.n_cut += sum(dropped > 0 for _, dropped in fitted)
        options = {"n": n, "temperature": temperature, "max_tokens": max_new_tokens, **SAMPLING}
        options["stop_token_ids"] = sorted(self.end_ids)  # samples end only there
        earlier = count_earlier([tuple(ids) for ids, _ in fitted])
        bodies = [  # sample i adds i to the seed: 63 bits
            {"prompt": ids, "seed": derive_seed(seed, before, *ids) >> 1, **options}
            for (ids, _), before in zip(fitted, earlier, strict=True)
        ]
        answers: dict[int, list[Completion]] = {}
        wanted = list(range(len(bodies)))
        for _ in range(ROUNDS):
            sampled = self._run([partial(self._ask, i, bodies[i]) for i in wanted])
            answers |= dict(zip(wanted, sampled, strict=True))
            versions = [answers[i][0].version for i in range(len(bodies))]
            wanted = too_old(versions, self.version, self.max_policy_lag)
            if not wanted:
                return [[replace(c, dropped=fitted[i][1]) for c in answers[i]] for i in range(len(bodies))]
            self.n_redone += len(wanted)
        lag = f"policy.max_policy_lag = {self.max_policy_lag}"
        raise StaleSamples(f"{len(wanted)} prompts were sampled {ROUNDS} times by adapters older than {lag}")

    def load_adapter(self, folder: Path, version: int) -> None:
        """Load the adapter of `folder` on every server, dropped ones included; on return they hold it. A
        server that does not take it is dropped, unless its own is at most `max_policy_lag` updates old. Any
        process of a run may call it: nothing is loaded twice. Raises InputError and NoServerLeft."""
        self.newest = vllm_client.read_adapter(folder, version)
        self._revive()
        self._run([partial(self._swap, server) for server in self.servers])
        self._alive()

    def _run(self, tasks: Sequence[Callable[[], Awaitable[Result]]]) -> list[Result]:
        """All results in order, from one event loop, one pool per server; the first error stops the rest."""
        results: list[Result] = []
        room = asyncio.Semaphore(self.concurrency * len(self.servers))

        async def run_within(task: Callable[[], Awaitable[Result]]) -> Result:
            async with room:
                return await task()

        async def main() -> None:
            for server in self.servers:
                server.connect()
            running = [asyncio.create_task(run_within(task)) for task in tasks]
            try:
                results.extend(await asyncio.gather(*running))
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)
                for server in self.servers:
                    await server.client.close()

        run_to_end(main())
        return results

    async def _ask(self, index: int, body: dict[str, Any]) -> list[Completion]:
        for _ in range(len(self.servers) + ROUNDS):  # each failure drops a server or reloads its adapter
            alive = self._alive()
            server = alive[index % len(alive)]
            try:
                adapter = await self._find_adapter(server)
                answer = await server.complete({"model": adapter.name, **body})
                return read_completions(answer, body["prompt"], adapter, self.tokenizer, self.end_ids)
            except AdapterMissing:
                if server.adapter == adapter:  # otherwise another prompt has noticed before
                    server.adapter = None
            except (ServerLost, AdapterRefused) as error:
                server.drop(str(error))
            self.n_redone += 1
        vanished = "adapters vanish from the servers as fast as they are loaded"
        raise NoServerLeft(f"policy.servers: {vanished}; does another run use them?")

    async def _find_adapter(self, server: VLLMClient) -> Adapter:
        """What to ask this server for: what it holds, unless that is too old."""
        async with server.lock:  # one prompt sees to it for all
            if self._lacks(server) and self.newest is not None:
                await server.hold(self.newest)
            elif self._lacks(server):
                server.adapter = await server.base()
            return server.adapter

    async def _swap(self, server: VLLMClient) -> None:
        try:
            await server.hold(self.newest)
        except (ServerLost, AdapterRefused) as error:
            if isinstance(error, ServerLost) or self._lacks(server):
                server.drop(str(error))

    def _lacks(self, server: VLLMClient) -> bool:
        """Whether it holds nothing, or something too old."""
        held = server.adapter
        return held is None or bool(too_old([held.version], self.version, self.max_policy_lag))

    def _revive(self) -> None:
        for server in self.servers:
            server.gone = ""

    def _alive(self) -> list[VLLMClient]:
        alive = [server for server in self.servers if not server.gone]
        if not alive:
            told = "; ".join(f"{s.url}: {s.gone}" for s in self.servers)
            remedy = "Start them and run the same again: it goes on from its last checkpoint"
            raise NoServerLeft(f"policy.servers: none is left ({told}). {remedy}")
        return alive


def too_old(versions: Sequence[int], newest: int, allowed: int) -> list[int]:
    """Indices of the versions more than `allowed` updates behind the newest."""
    return [i for i, version in enumerate(versions) if newest - version > allowed]


def read_completions(
    answer: dict[str, Any], prompt: Sequence[int], adapter: Adapter, tokenizer,
    end_ids: Collection[int] | None = None,
) -> list[Completion]:
    """Completions of an answer. Raises ServerLost if its weights, prompt or shapes are not as requested.
    They end with one of `end_ids` (None: the tokenizer's)."""
    end_ids = end_ids or find_end_ids(tokenizer)
    if answer["model"] != adapter.name:
        raise ServerLost(f"asked for {adapter.name}, it answered with {answer['model']}")
    completions = []
    for choice in sorted(answer["choices"], key=lambda choice: choice["index"]):
        ids = tuple(choice.get("token_ids") or ())
        logprobs = tuple((choice.get("logprobs") or {}).get("token_logprobs") or ())
        if choice.get("prompt_token_ids") != list(prompt) or not ids or len(ids) != len(logprobs):
            missing = "does not hold this prompt's token ids with one log-probability each"
            raise ServerLost(f"its answer {missing}; is it vLLM?")
        finished = choice["finish_reason"] == "stop" and ids[-1] in end_ids
        thought, text = decode_reply(tokenizer, prompt, ids, finished)
        said = (tuple(prompt), ids, logprobs, text, finished)
        completions.append(Completion(*said, version=adapter.version, reasoning=thought))
    return completions


def make_policy(cfg: Config, run: Run | Path | None, adapter: Path | None = None) -> VLLMPolicy:
    """The policy on `policy.servers`, which hold the adapter on return if one is given."""
    limits = {"max_prompt_tokens": cfg.rollout.max_prompt_tokens, "max_policy_lag": cfg.policy.max_policy_lag}
    tokenizer = load_tokenizer(cfg)
    ends = load_end_ids(cfg, tokenizer)
    policy = VLLMPolicy(tokenizer, cfg.policy.servers, end_ids=ends, **limits)
    if adapter is not None:
        policy.load_adapter(adapter, 1)
    return policy
