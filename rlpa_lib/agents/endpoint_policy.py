"""Any chat model behind an endpoint as the policy of a row: closed, open, or thinking first."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlpa_lib.agents.asking import open_endpoint
from rlpa_lib.agents.prompt_tokens import window
from rlpa_lib.client.chat import Answer, EndpointError, Refused, Request
from rlpa_lib.dialogue import quoting
from rlpa_lib.dialogue.protocols import Completion, Message
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import Config, InputError

if TYPE_CHECKING:
    from rlpa_lib.client.endpoint import ChatEndpoint
    from rlpa_lib.runs.run import Run

MAX_MESSAGE = 100_000  # characters; a chat message beyond it loses its middle


@dataclass(frozen=True)
class EndpointCompletion(Completion):
    """What a server answered: visible `text`, hidden `reasoning`, and the tokens generated in all
    (`n_tokens`) and in thinking (`n_reasoning`). It has no token ids, so it cannot train."""

    reasoning: str = ""
    n_tokens: int = 0
    n_reasoning: int = 0

    @property
    def n_generated(self) -> int:
        """Tokens generated, thinking included, as the server counted them."""
        return self.n_tokens


class EndpointPolicy:
    """`Policy` over a chat endpoint, for evaluation only.

    Each sample is one request, seeded by (seed, prompt, number of equal prompts before it, sample), so all
    are cached and counted singly; at temperature 0 no seed is sent. Prompts over `max_prompt_tokens`
    (estimated) lose their oldest turns, counted in `n_cut`. A refusal's text counts as the answer.
    """

    def __init__(
        self, endpoint: ChatEndpoint, *, top_p: float = 1.0, max_prompt_tokens: int = 4096,
        reasoning_tokens: int = 0,
    ):  # fmt: skip
        self.endpoint, self.top_p = endpoint, top_p
        self.max_prompt_tokens, self.reasoning_tokens, self.n_cut = max_prompt_tokens, reasoning_tokens, 0

    def generate(
        self, messages: Sequence[list[Message]], n: int, *, seed: int, temperature: float, max_new_tokens: int
    ) -> list[list[Completion]]:
        """n completions per message list. InputError: a prompt too long even without its history, or n,
        lengths or temperature below their minimum. EndpointError: the server cannot be used."""
        if n < 1 or max_new_tokens < 1 or temperature < 0:
            raise InputError("generate needs n >= 1, max_new_tokens >= 1 and temperature >= 0")
        if any(m[-1]["role"] != "user" for m in messages):
            begun = "cannot go on with a reply that was begun for it"
            raise InputError(f"policy.kind: a model behind a chat endpoint {begun}")
        fitted = [self._fit(m) for m in messages]
        limit, seen, requests = max_new_tokens + self.reasoning_tokens, Counter(), []
        for prompt, _ in fitted:
            key = json.dumps(prompt)
            for sample in range(n):
                drawn = derive_seed(seed, key, seen[key], sample) % 2**31 if temperature else None
                requests.append(Request(prompt, None, temperature, self.top_p, max_tokens=limit, seed=drawn))
            seen[key] += 1
        answers = self.endpoint.complete(requests, desc="policy", on_error="return")
        completions = [replace(to_completion(a), dropped=fitted[i // n][1]) for i, a in enumerate(answers)]
        return [completions[i * n : (i + 1) * n] for i in range(len(fitted))]

    def _fit(self, messages: list[Message]) -> tuple[tuple[Message, ...], int]:
        """Messages with control tokens broken up, cut by `window`, and the number of dropped turns."""
        said = [{**m, "content": quoting.plain(m["content"], MAX_MESSAGE)} for m in messages]
        kept, dropped = window(said, self.max_prompt_tokens, _estimate)
        self.n_cut += bool(dropped)
        return tuple(kept), dropped


def _estimate(messages: Sequence[Message]) -> int:
    return quoting.estimated_tokens(*(m["content"] for m in messages))


def to_completion(answer: Answer | EndpointError) -> EndpointCompletion:
    """A completion without token ids. Any error except a refusal is raised."""
    if isinstance(answer, Refused):
        return EndpointCompletion((), (), (), str(answer), True)
    if isinstance(answer, EndpointError):
        raise answer
    return EndpointCompletion(
        (), (), (), answer.text, answer.finish_reason == "stop", reasoning=answer.reasoning,
        n_tokens=answer.completion_tokens, n_reasoning=answer.reasoning_tokens,
    )  # fmt: skip


def make_policy(cfg: Config, run: Run | Path | None, adapter: Path | None = None) -> EndpointPolicy:
    """The policy behind section `policy`'s endpoint. InputError: it cannot take an adapter."""
    if adapter is not None:
        raise InputError("policy.kind: endpoint cannot take a trained adapter; use local or vllm")
    return EndpointPolicy(
        open_endpoint(cfg, "policy", run), top_p=cfg.rollout.top_p,
        max_prompt_tokens=cfg.rollout.max_prompt_tokens, reasoning_tokens=cfg.policy.reasoning_tokens,
    )  # fmt: skip
