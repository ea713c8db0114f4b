"""Any chat model behind an endpoint as the policy of a row: closed, open, or thinking first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlpa_lib.agents.asking import RunFolder, open_endpoint
from rlpa_lib.agents.prompt_tokens import check_request, count_earlier, window
from rlpa_lib.client.chat import Answer, EndpointError, Refused, Request
from rlpa_lib.dialogue import quoting
from rlpa_lib.dialogue.protocols import Completion, Message
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import Config, InputError

if TYPE_CHECKING:
    from rlpa_lib.client.endpoint import ChatEndpoint

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


@dataclass
class EndpointPolicy:
    """`Policy` over a chat endpoint, for evaluation only.

    Each sample is one request, seeded by (seed, prompt, number of equal prompts before it, sample), so all
    are cached and counted singly; at temperature 0 no seed is sent. Prompts over `max_prompt_tokens`
    (estimated) lose their oldest turns, counted in `n_cut`. A refusal's text counts as the answer.
    """

    endpoint: ChatEndpoint
    top_p: float
    max_prompt_tokens: int
    reasoning_tokens: int
    n_cut: int = 0

    def generate(
        self, messages: Sequence[list[Message]], n: int, *, seed: int, temperature: float, max_new_tokens: int
    ) -> list[list[Completion]]:
        """n completions per message list. InputError: a prompt too long even without its history, or n,
        lengths or temperature below their minimum. EndpointError: the server cannot be used."""
        check_request(n, max_new_tokens, temperature)
        if any(talk[-1]["role"] != "user" for talk in messages):
            begun = "cannot go on with a reply that was begun for it"
            raise InputError(f"policy.kind: a model behind a chat endpoint {begun}")
        fitted = [window(_quote(talk), self.max_prompt_tokens, _estimate_tokens) for talk in messages]
        self.n_cut += sum(dropped > 0 for _, dropped in fitted)
        limit, keys, requests = max_new_tokens + self.reasoning_tokens, [json.dumps(p) for p, _ in fitted], []
        for (talk, _), key, earlier in zip(fitted, keys, count_earlier(keys), strict=True):
            options = {"temperature": temperature, "top_p": self.top_p, "max_tokens": limit}
            for sample in range(n):
                drawn = derive_seed(seed, key, earlier, sample) % 2**31 if temperature else None
                requests.append(Request(tuple(talk), seed=drawn, **options))
        answers = iter(self.endpoint.complete(requests, desc="policy", on_error="return"))
        return [[_to_completion(next(answers), dropped) for _ in range(n)] for _, dropped in fitted]


def _quote(messages: Sequence[Message]) -> list[Message]:
    return [{**m, "content": quoting.plain(m["content"], MAX_MESSAGE)} for m in messages]


def _estimate_tokens(messages: Sequence[Message]) -> int:
    return quoting.estimated_tokens(*(m["content"] for m in messages))


def _to_completion(answer: Answer | EndpointError, dropped: int) -> EndpointCompletion:
    """A completion without token ids. Any error except a refusal is raised."""
    if isinstance(answer, Refused):
        return EndpointCompletion((), (), (), str(answer), True, dropped=dropped)
    if isinstance(answer, EndpointError):
        raise answer
    counts = {"n_tokens": answer.completion_tokens, "n_reasoning": answer.reasoning_tokens}
    said = ((), (), (), answer.text, answer.finish_reason == "stop", answer.reasoning)
    return EndpointCompletion(*said, **counts, dropped=dropped)


def make_policy(cfg: Config, run: RunFolder, adapter: Path | None = None) -> EndpointPolicy:
    """The policy behind section `policy`'s endpoint. InputError: it cannot take an adapter."""
    if adapter is not None:
        raise InputError("policy.kind: endpoint cannot take a trained adapter; use local or vllm")
    limits = (cfg.rollout.top_p, cfg.rollout.max_prompt_tokens, cfg.policy.reasoning_tokens)
    return EndpointPolicy(open_endpoint(cfg, "policy", run), *limits)
