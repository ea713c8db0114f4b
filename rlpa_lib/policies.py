"""Policies: what turns message lists into sampled completions, and how a prompt is made of them (`local_policy` runs a model in process)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rlpa_lib.config import InputError
from rlpa_lib.llm.quoting import defuse, exact_signs

Message = dict[str, str]


@dataclass(frozen=True)
class Completion:
    """One sampled reply: the very ids that training uses, the end token included when `finished`.

    `logprobs` are natural logarithms at the temperature of sampling, fp32, one a token id. `version` counts the updates of
    the adapter that sampled it, where a server holds one (0: none yet, or sampled in process). `dropped` counts the oldest turns that its
    prompt had no room for (see `window`).
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finished: bool
    version: int = field(default=0, kw_only=True)
    dropped: int = field(default=0, kw_only=True)

    @property
    def n_generated(self) -> int:
        """How many tokens were generated; a policy behind an endpoint has a count but no ids."""
        return len(self.token_ids)


class Policy(Protocol):
    """Anything that can answer: n completions for each message list, in order."""

    def generate(
        self, messages: Sequence[list[Message]], n: int, *, seed: int, temperature: float, max_new_tokens: int
    ) -> list[list[Completion]]: ...


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts; the same parts give the same seed on every machine."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def harmless(tokenizer, messages: list[Message]) -> list[Message]:
    """The messages as data: a control token's name in a message ("<|user|>") is broken up, so that only the chat template, which is
    tokenised as one text with what the messages say, sets roles and ends turns."""
    specials = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    signs = exact_signs(frozenset(specials | set(tokenizer.all_special_tokens)))
    return [{**m, "content": defuse(m["content"], signs)} for m in messages]


def prompt_ids(tokenizer, messages: list[Message]) -> list[int]:
    """Token ids of a message list under the tokenizer's chat template, ready for the assistant's next words.

    A final assistant message is the beginning of the answer, which the policy continues (its completion holds what comes after).
    No message can bring control tokens in (`harmless`).
    """
    said = harmless(tokenizer, messages)
    said, begun = (said[:-1], said[-1]["content"]) if said[-1]["role"] == "assistant" else (said, "")
    text = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False) + begun
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def fit_prompt(tokenizer, messages: list[Message], limit: int) -> tuple[list[int], int]:
    """(token ids, number of dropped turns) of a prompt of at most `limit` tokens, by the rule of `window`. InputError as there."""
    encoded: dict[int, list[int]] = {}

    def size(part: list[Message]) -> int:
        encoded[len(part)] = prompt_ids(tokenizer, part)
        return len(encoded[len(part)])

    kept, dropped = window(messages, limit, size)
    return encoded[len(kept)], dropped


def window(messages: Sequence[Message], limit: int, size: Callable[[list[Message]], int]) -> tuple[list[Message], int]:
    """(messages of at most `limit` tokens, number of dropped turns): the rule for dialogues that outgrow the context.

    Whole turns (a user message and its answer) go, from the oldest on and no more than needed. System prompt and last user message stay
    always; the latest answer, which holds the latest profile block, is the last to go, and is lost only when it does not fit beside these
    two: then as many turns are dropped as there were. `size` is asked about log2(turns) times. InputError: those two alone are too long.
    """
    lead = [m for m in messages[:1] if m["role"] == "system"]
    rest = list(messages[len(lead) :])
    if size(lead + rest) <= limit:
        return lead + rest, 0
    low, high = 0, (len(rest) - 1) // 2  # an answer that was begun goes with the last user message
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if size(lead + rest[2 * middle :]) <= limit else (middle + 1, high)
    kept = lead + rest[2 * low :]
    if (tokens := size(kept)) > limit:
        raise InputError(f"rollout.max_prompt_tokens: the system prompt and the last user message take {tokens} tokens, limit {limit}")
    return kept, low
