"""What policies share around the sampling: message lists as token ids that fit, and ids as text."""

import bisect
import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

from rlpa_lib.client.thinking import find_open_thought, split_thinking
from rlpa_lib.dialogue.protocols import Message
from rlpa_lib.dialogue.quoting import defuse, exact_signs
from rlpa_lib.settings.config import InputError

PROBES = (
    ("system", "probe of the system"), ("user", "probe of the user"), ("assistant", "probe of the assistant"),
)  # fmt: skip
PROMPT_END = 12  # tokens of a prompt in which a tag would stand that opens the thinking


def check_request(n: int, max_new_tokens: int, temperature: float) -> None:
    """InputError: one of them is below its minimum."""
    if n < 1 or max_new_tokens < 1 or temperature < 0:
        raise InputError("generate needs n >= 1, max_new_tokens >= 1 and temperature >= 0")


def count_earlier(prompts: Sequence[Hashable]) -> list[int]:
    """How many equal prompts come before each, so that equal prompts are sampled apart."""
    counters: dict[Hashable, itertools.count] = defaultdict(itertools.count)
    return [next(counters[prompt]) for prompt in prompts]


def harmless(tokenizer, messages: list[Message]) -> list[Message]:
    """The messages with control tokens ("<|user|>") broken up: the template and the messages are tokenised as
    one text, and only the template may set roles and end turns."""
    specials = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    signs = exact_signs(frozenset(specials | set(tokenizer.all_special_tokens)))
    return [{**m, "content": defuse(m["content"], signs)} for m in messages]


def prompt_ids(tokenizer, messages: list[Message]) -> list[int]:
    """Token ids of `harmless` messages under the tokenizer's chat template, ready for the assistant's next
    words; the policy continues a final assistant message."""
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
    turns = range((len(rest) - 1) // 2)  # an answer that was begun goes with the last user message
    dropped = bisect.bisect_left(turns, True, key=lambda n: size(lead + rest[2 * n :]) <= limit)
    kept = lead + rest[2 * dropped :]
    if (tokens := size(kept)) > limit:
        both = "the system prompt and the last user message"
        raise InputError(f"rollout.max_prompt_tokens: {both} take {tokens} tokens, limit {limit}")
    return kept, dropped


def find_end_ids(tokenizer, *configs) -> frozenset[int]:
    """Token ids with which a turn ends: the tokenizer's end token, the one that the chat template writes
    behind an answer, and `eos_token_id` (one or several) of the given configurations, such as a model's
    generation_config. InputError: there is none at all."""
    found = {tokenizer.eos_token_id, _find_template_end(tokenizer)}
    for config in configs:
        ids = getattr(config, "eos_token_id", None)
        found |= set(ids) if isinstance(ids, Sequence) else {ids}
    if not (found := found - {None}):
        raise InputError("policy.model: neither its tokenizer nor its configuration names an end token")
    return frozenset(found)


def find_answer_end(tokenizer) -> int:
    """The token with which an answer ends under the chat template, else the tokenizer's end token.
    InputError: there is neither."""
    found = _find_template_end(tokenizer)
    if found is None and tokenizer.eos_token_id is None:
        raise InputError("policy.model: neither its chat template nor its tokenizer names an end token")
    return tokenizer.eos_token_id if found is None else found


def _find_template_end(tokenizer) -> int | None:
    """The control token right behind an answer, blanks aside."""
    if not tokenizer.chat_template:
        return None
    talk = [{"role": role, "content": text} for role, text in PROBES]  # some templates want a system prompt
    tail = tokenizer.apply_chat_template(talk, tokenize=False).rpartition(PROBES[-1][1])[2]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for token in tokenizer(tail, add_special_tokens=False)["input_ids"]:
        if token in special or tokenizer.decode([token]).strip():
            return token if token in special else None
    return None


def decode_reply(
    tokenizer, prompt: Sequence[int], token_ids: Sequence[int], finished: bool
) -> tuple[str, str]:
    """(thinking, text) of a completion without its end token. A thought that the prompt's template has opened
    is one, even if it is cut off."""
    said = token_ids[:-1] if finished else token_ids
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    opened = find_open_thought(tokenizer.decode(prompt[-PROMPT_END:], **options))
    return split_thinking(opened + tokenizer.decode(said, **options))
