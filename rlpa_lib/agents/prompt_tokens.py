"""How a message list becomes a prompt's token ids, and what is dropped when it outgrows the context."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlpa_lib.dialogue.protocols import Message
from rlpa_lib.dialogue.quoting import defuse, exact_signs
from rlpa_lib.settings.config import InputError


def harmless(tokenizer, messages: list[Message]) -> list[Message]:
    """The messages with control tokens ("<|user|>") broken up: the template and the messages are tokenised as
    one text, and only the template may set roles and end turns."""
    specials = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    signs = exact_signs(frozenset(specials | set(tokenizer.all_special_tokens)))
    return [{**m, "content": defuse(m["content"], signs)} for m in messages]


def prompt_ids(tokenizer, messages: list[Message]) -> list[int]:
    """Token ids of a message list under the tokenizer's chat template, ready for the assistant's next words.

    The policy continues a final assistant message. No message can bring in control tokens (`harmless`).
    """
    said = harmless(tokenizer, messages)
    said, begun = (said[:-1], said[-1]["content"]) if said[-1]["role"] == "assistant" else (said, "")
    text = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False) + begun
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def fit_prompt(tokenizer, messages: list[Message], limit: int) -> tuple[list[int], int]:
    """(token ids, number of dropped turns) of a prompt cut to `limit` tokens. InputError: as in `window`."""
    encoded: dict[int, list[int]] = {}

    def size(part: list[Message]) -> int:
        encoded[len(part)] = prompt_ids(tokenizer, part)
        return len(encoded[len(part)])

    kept, dropped = window(messages, limit, size)
    return encoded[len(kept)], dropped


def window(
    messages: Sequence[Message], limit: int, size: Callable[[list[Message]], int]
) -> tuple[list[Message], int]:
    """(messages of at most `limit` tokens, number of dropped turns) of a dialogue that may be too long.

    Whole turns (user message and answer) go, oldest first, as few as possible. System prompt and last user
    message always stay; the latest answer, with the latest profile block, goes only if it does not fit beside
    them: then all turns go. `size` is called about log2(turns) times. InputError: those two are too long.
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
        raise InputError(
            "rollout.max_prompt_tokens: the system prompt and the last user message take "
            f"{tokens} tokens, limit {limit}"
        )
    return kept, low
