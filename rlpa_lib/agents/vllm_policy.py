"""`VLLMPolicy`: rollouts from vLLM servers with the trainer's adapter, as token ids and log-probabilities."""

from __future__ import annotations

import asyncio
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rlpa_lib.agents import vllm_client
from rlpa_lib.agents.models import load_tokenizer
from rlpa_lib.agents.prompt_tokens import fit_prompt
from rlpa_lib.agents.vllm_client import Adapter, AdapterMissing, AdapterRefused, ServerLost, VLLMClient
from rlpa_lib.client.transport import run_to_end
from rlpa_lib.dialogue.protocols import Completion, Message
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import Config, InputError

if TYPE_CHECKING:
    from rlpa_lib.runs.run import Run

Answer = TypeVar("Answer")
Task = Callable[[dict[str, VLLMClient]], Awaitable[Answer]]
ROUNDS = 3  # how often samples of an adapter that is too old are asked for again


class NoServerLeft(RuntimeError):
    """Every server is gone; the message says which and why. A run can resume from its last checkpoint."""


class StaleSamples(RuntimeError):
    """Samples kept coming from adapters older than `max_policy_lag` allows."""


@dataclass
class ServerState:
    """A server across calls: its adapter (None: not asked yet), and why it was dropped ("" while in use)."""

    url: str
    adapter: Adapter | None = None
    gone: str = ""


class VLLMPolicy:
    """`Policy` over one or more servers (base URLs ending in /v1) that can read this machine's adapters.

    A prompt's n samples come from one server, which computes the prompt once; prompts take turns among
    servers. A sample depends on (weights, seed, prompt, number of equal prompts before it in the call, sample
    index), not on the server, up to rounding. A failing server is dropped until the next `load_adapter`;
    others redo its prompts. `n_cut` counts prompts that lost turns to `max_prompt_tokens`, `n_redone`
    requests sent again. Servers must give log-probabilities as sampled, as those of `vllm_server` do.
    """

    def __init__(
        self, tokenizer, servers: Sequence[str], *, max_prompt_tokens: int = 4096, max_policy_lag: int = 0,
        concurrency: int = 64, retries: int = 2, timeout: float = 600.0, api_key_env: str = "VLLM_API_KEY",
    ):  # fmt: skip
        if not servers or len(set(servers)) != len(servers):
            raise InputError(f"policy.servers: needs one or several different base URLs, got {list(servers)}")
        if tokenizer.eos_token_id is None:
            raise InputError("policy.model: the tokenizer has no end token")
        self.tokenizer, self.servers = tokenizer, [ServerState(url) for url in servers]
        self.max_prompt_tokens, self.max_policy_lag = max_prompt_tokens, max_policy_lag
        self.concurrency = concurrency
        self.newest: Adapter | None = None  # None: the base model
        self.n_cut = self.n_redone = 0
        self._settings = {"api_key_env": api_key_env, "timeout": timeout, "retries": retries}

    @property
    def version(self) -> int:
        """Updates of the newest adapter; 0 is the base model."""
        return self.newest.version if self.newest else 0

    def generate(
        self, messages: Sequence[list[Message]], n: int, *, seed: int, temperature: float, max_new_tokens: int
    ) -> list[list[Completion]]:
        """n completions per message list; `temperature` 0 is greedy. No sample is over `max_policy_lag`
        updates old. Raises InputError (limits, or a refused request), NoServerLeft and StaleSamples."""
        if n < 1 or max_new_tokens < 1 or temperature < 0:
            raise InputError("generate needs n >= 1, max_new_tokens >= 1 and temperature >= 0")
        if all(server.gone for server in self.servers):
            self._revive()
        bodies, seen = [], Counter()
        encoded = [self._encode(m) for m in messages]
        options = {"n": n, "temperature": temperature, "max_tokens": max_new_tokens}
        for prompt, _ in encoded:
            own_seed = derive_seed(seed, seen[prompt], *prompt) >> 1  # sample i adds i: 63 bits
            seen[prompt] += 1
            bodies.append(_build_body(prompt, own_seed, self.tokenizer.eos_token_id, options))
        answers: dict[int, list[Completion]] = {}
        wanted = list(range(len(bodies)))
        for _ in range(ROUNDS):
            answers |= dict(zip(wanted, self._run([self._asker(i, bodies[i]) for i in wanted]), strict=True))
            versions = [answers[i][0].version for i in range(len(bodies))]
            wanted = too_old(versions, self.version, self.max_policy_lag)
            if not wanted:
                return [[replace(c, dropped=encoded[i][1]) for c in answers[i]] for i in range(len(bodies))]
            self.n_redone += len(wanted)
        lag = f"policy.max_policy_lag = {self.max_policy_lag}"
        raise StaleSamples(f"{len(wanted)} prompts were sampled {ROUNDS} times by adapters older than {lag}")

    def load_adapter(self, folder: Path, version: int) -> None:
        """Load the adapter of `folder` on every server, dropped ones included; on return they hold it. A
        server that does not take it is dropped, unless its own is at most `max_policy_lag` updates old. Any
        process of a run may call it: nothing is loaded twice. Raises InputError and NoServerLeft."""
        self.newest = vllm_client.read_adapter(folder, version)
        self._revive()
        self._run([self._swapper(server) for server in self.servers])
        self._alive()

    def _encode(self, messages: list[Message]) -> tuple[tuple[int, ...], int]:
        ids, dropped = fit_prompt(self.tokenizer, messages, self.max_prompt_tokens)
        self.n_cut += bool(dropped)
        return tuple(ids), dropped

    def _run(self, tasks: Sequence[Task[Answer]]) -> list[Answer]:
        """All results in order, from one event loop, one pool per server; the first error stops the rest."""
        results: list[Answer] = []

        async def main() -> None:
            async with AsyncExitStack() as stack:
                clients = {s.url: VLLMClient(s.url, **self._settings) for s in self.servers}
                for client in clients.values():
                    await stack.enter_async_context(client)
                room = asyncio.Semaphore(self.concurrency * len(clients))
                running = [asyncio.create_task(_run_within(room, task, clients)) for task in tasks]
                try:
                    results.extend(await asyncio.gather(*running))
                finally:
                    for task in running:
                        task.cancel()
                    await asyncio.gather(*running, return_exceptions=True)

        run_to_end(main())
        return results

    def _asker(self, index: int, body: dict[str, Any]) -> Task[list[Completion]]:
        async def ask(clients: dict[str, VLLMClient]) -> list[Completion]:
            for _ in range(len(self.servers) + ROUNDS):  # each failure drops a server or reloads its adapter
                alive = self._alive()
                server = alive[index % len(alive)]
                try:
                    adapter = await self._serving(server, clients[server.url])
                    answer = await clients[server.url].complete({"model": adapter.name, **body})
                    return read_completions(answer, body["prompt"], adapter, self.tokenizer)
                except AdapterMissing:
                    if server.adapter == adapter:  # otherwise another prompt has noticed before
                        server.adapter = None
                except (ServerLost, AdapterRefused) as error:
                    self._drop(server, str(error))
                self.n_redone += 1
            vanished = "adapters vanish from the servers as fast as they are loaded"
            raise NoServerLeft(f"policy.servers: {vanished}; does another run use them?")

        return ask

    async def _serving(self, server: ServerState, client: VLLMClient) -> Adapter:
        """What to ask this server for: what it holds, unless that is too old."""
        async with client.lock:  # one prompt sees to it for all
            held, newest = server.adapter, self.newest
            if held is None or too_old([held.version], self.version, self.max_policy_lag):
                if newest is not None:
                    await client.hold(newest)
                server.adapter = held = newest or await client.base()
            return held

    def _swapper(self, server: ServerState) -> Task[None]:
        async def swap(clients: dict[str, VLLMClient]) -> None:
            try:
                await clients[server.url].hold(self.newest)
                server.adapter = self.newest
            except AdapterRefused as error:
                held = server.adapter
                if held is None or too_old([held.version], self.version, self.max_policy_lag):
                    self._drop(server, str(error))
            except ServerLost as error:
                self._drop(server, str(error))

        return swap

    def _revive(self) -> None:
        for server in self.servers:
            server.gone = ""

    def _alive(self) -> list[ServerState]:
        alive = [server for server in self.servers if not server.gone]
        if not alive:
            told = "; ".join(f"{s.url}: {s.gone}" for s in self.servers)
            remedy = "Start them and run the same again: it goes on from its last checkpoint"
            raise NoServerLeft(f"policy.servers: none is left ({told}). {remedy}")
        return alive

    def _drop(self, server: ServerState, reason: str) -> None:
        if not server.gone:
            server.gone, server.adapter = reason or "no reason given", None
            told = f"policy.servers: {server.url} is dropped ({reason}); its prompts go to the others"
            warnings.warn(told, stacklevel=2)


async def _run_within(room: asyncio.Semaphore, task: Task[Answer], clients: dict[str, VLLMClient]) -> Answer:
    async with room:
        return await task(clients)


def too_old(versions: Sequence[int], newest: int, allowed: int) -> list[int]:
    """Indices of the versions more than `allowed` updates behind the newest."""
    return [i for i, version in enumerate(versions) if newest - version > allowed]


SAMPLING = {  # the whole distribution, whatever a server's defaults; log-probabilities of sampled tokens only
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": True,
    "logprobs": 0, "return_token_ids": True, "return_tokens_as_token_ids": True,
}  # fmt: skip


def _build_body(prompt: tuple[int, ...], seed: int, end_id: int, options: dict[str, Any]) -> dict[str, Any]:
    """A /completions body; samples end only at `end_id`."""
    return {"prompt": list(prompt), "seed": seed, "stop_token_ids": [end_id], **options, **SAMPLING}


def read_completions(
    answer: dict[str, Any], prompt: Sequence[int], adapter: Adapter, tokenizer
) -> list[Completion]:
    """Completions of an answer. Raises ServerLost if its weights, prompt or shapes are not as requested."""
    if answer["model"] != adapter.name:
        raise ServerLost(f"asked for {adapter.name}, it answered with {answer['model']}")
    completions = []
    for choice in sorted(answer["choices"], key=lambda choice: choice["index"]):
        ids, logprobs = choice.get("token_ids") or (), choice.get("logprobs") or {}
        logprobs = logprobs.get("token_logprobs") or ()
        if choice.get("prompt_token_ids") != list(prompt) or not ids or len(ids) != len(logprobs):
            missing = "does not hold this prompt's token ids with one log-probability each"
            raise ServerLost(f"its answer {missing}; is it vLLM?")
        finished = choice["finish_reason"] == "stop" and ids[-1] == tokenizer.eos_token_id
        plain = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        text = tokenizer.decode(ids[:-1] if finished else ids, **plain)
        said = (tuple(prompt), tuple(ids), tuple(logprobs), text, finished)
        completions.append(Completion(*said, version=adapter.version))
    return completions


def make_policy(cfg: Config, run: Run | Path | None, adapter: Path | None = None) -> VLLMPolicy:
    """The policy on `policy.servers`, which hold the adapter on return if one is given."""
    limits = {"max_prompt_tokens": cfg.rollout.max_prompt_tokens, "max_policy_lag": cfg.policy.max_policy_lag}
    policy = VLLMPolicy(load_tokenizer(cfg), cfg.policy.servers, **limits)
    if adapter is not None:
        policy.load_adapter(adapter, 1)
    return policy
