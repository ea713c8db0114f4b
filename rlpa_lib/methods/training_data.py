"""From preference conversations to what SFT and DPO are trained on, in two variants.

`fixed` is how we read the method: each turn's preferred response is learned once, after the dialogue that really led to it.

`aloe_scripts` does what ALOE's own training scripts do, on which the paper says it builds (whether it used them unchanged is unknown):
SFT  1. the *first* message of the user stands at *every* turn, so that no response answers its message;
     2. one growing text per turn: the response of turn 1 is learned K times, that of turn K once;
     3. the loss is on all tokens, the user's and the system prompt's too;
     4. texts are packed into blocks of full length that run across conversations, each block one sample, 48 a step;
     5. general chat and code-action examples are mixed in.
DPO  6. the rejected answer is a random choice from the stored text, that is one single character (a true choice where it is a list);
     7. beta 0.9 and a learning rate of 1e-5 instead of the paper's 0.01 and 5e-6, 48 pairs a step.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from rlpa_lib.agents.prompt_tokens import fit_prompt, harmless, prompt_ids
from rlpa_lib.methods.preferences import Conversation, build_history, pick_first
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import InputError

VARIANTS = ("fixed", "aloe_scripts")
IGNORED = -100  # the label of a token that bears no loss
ALOE_BATCH = 48
PAPER_BATCH, PAPER_DPO_LR, ALOE_DPO_LR, ALOE_DPO_BETA = 32, 5.0e-6, 1.0e-5, 0.9
MIXED_SHARE = 0.2  # of the conversations' texts: ALOE adds some 7,000 examples to about 30,000 texts
Messages = list[dict[str, str]]
Row = dict[str, list[int]]


def make_sft_rows(conversations: Sequence[Conversation], tokenizer, system: str, max_tokens: int, variant: str, seed: int) -> list[Row]:
    """Rows of `input_ids` and `labels` for SFT, in training order (drawn from `seed`); `aloe_scripts` rows are not packed yet.

    Rows longer than `max_tokens` are cut at their end, and left out when nothing to learn remains. ValueError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, not {variant!r}")
    if variant == "aloe_scripts":
        texts = [text for c in conversations for text in grow_texts(c, system)]
        texts += make_unrelated_chats(int(MIXED_SHARE * len(texts)), system, seed)
        rows = [label_all_tokens(tokenizer, text) for text in texts]
    else:
        rows = [label_answers(tokenizer, text, answers) for c in conversations for text, answers in list_branches(c, system)]
    rows = [{key: ids[:max_tokens] for key, ids in row.items()} for row in rows]
    rows = [row for row in rows if any(label != IGNORED for label in row["labels"])]
    return random.Random(derive_seed(seed, "sft rows")).sample(rows, len(rows))


def list_branches(conversation: Conversation, system: str) -> list[tuple[Messages, tuple[int, ...]]]:
    """The tree as (messages, places of the assistant messages to learn), each preferred response exactly once.

    The trunk is what was really said; its preferred responses are learned where they stand. Where the rejected response
    continued, the preferred one is a branch of its own behind the same history.
    """
    trunk = [k for k, exchange in enumerate(conversation.exchanges) if exchange.chosen == "preferred"]
    ends = [(trunk[-1], trunk)] if trunk else []
    ends += [(k, [k]) for k in range(len(conversation.exchanges)) if k not in trunk]
    found = []
    for end, turns in ends:
        answer = _assistant(pick_first(conversation.exchanges[end].preferred))
        found.append(([*build_history(conversation, end, system), *answer], tuple(2 * k + 2 for k in turns)))
    return found


def grow_texts(conversation: Conversation, system: str) -> list[Messages]:
    """ALOE's texts, defects 1 and 2: the first k turns for k = 1 to K, all of them with the user's first message."""
    opening = {"role": "user", "content": conversation.exchanges[0].user}
    messages, texts = [{"role": "system", "content": system}], []
    for exchange in conversation.exchanges:
        messages = [*messages, opening, {"role": "assistant", "content": pick_first(exchange.preferred)}]
        texts.append(messages)
    return texts


def label_answers(tokenizer, messages: Messages, answers: Sequence[int]) -> Row:
    """Token ids of a whole chat; labels on the assistant messages at `answers` and their end tokens, `IGNORED` elsewhere.

    InputError: the chat template writes a message differently when others follow it, so that its tokens cannot be told.
    """
    ids = _chat_ids(tokenizer, messages)
    labels = [IGNORED] * len(ids)
    for place in answers:
        start = prompt_ids(tokenizer, messages[:place])
        until = _chat_ids(tokenizer, messages[: place + 1])
        if ids[: len(start)] != start or ids[: len(until)] != until:
            raise InputError("policy.model: its chat template rewrites earlier messages; assistant tokens cannot be found")
        ends = [i for i in range(len(start), len(until)) if until[i] == tokenizer.eos_token_id]
        end = ends[-1] + 1 if ends else len(until)  # some templates put a line end behind the end token, which nobody samples
        labels[len(start) : end] = ids[len(start) : end]
    return {"input_ids": ids, "labels": labels}


def label_all_tokens(tokenizer, messages: Messages) -> Row:
    """Defect 3: labels on all tokens."""
    ids = _chat_ids(tokenizer, messages)
    return {"input_ids": ids, "labels": list(ids)}


def make_dpo_rows(conversations: Sequence[Conversation], tokenizer, system: str, max_prompt_tokens: int, variant: str, seed: int) -> list[dict]:
    """Rows of `prompt`, `chosen`, `rejected` (chat messages), one a turn, in training order (drawn from `seed`).

    Prompts lose their oldest turns where they are too long, as when the policy is used. A turn whose two responses are equal says nothing
    and has no row. InputError: system prompt and last message alone are too long. ValueError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, not {variant!r}")
    rng, rows = random.Random(derive_seed(seed, "dpo rows", variant)), []
    for conversation in conversations:
        for turn, exchange in enumerate(conversation.exchanges):
            rejected = exchange.rejected
            if variant == "fixed" and isinstance(rejected, str):
                rejected = (rejected,)
            answer = rng.choice(rejected)  # defect 6: of a plain text this is one character
            if answer != pick_first(exchange.preferred):
                prompt = fit_messages(tokenizer, build_history(conversation, turn, system), max_prompt_tokens)
                sides = {"prompt": prompt, "chosen": _assistant(pick_first(exchange.preferred)), "rejected": _assistant(answer)}
                rows.append({name: harmless(tokenizer, side) for name, side in sides.items()})  # TRL tokenises them
    return random.Random(derive_seed(seed, "dpo order")).sample(rows, len(rows))


def make_unrelated_chats(n: int, system: str, seed: int) -> list[Messages]:
    """Defect 5: n chats that have nothing to do with the user, half general, half with a small program, of our own writing.

    They stand in for the public data sets that ALOE's script loads.
    """
    rng, chats = random.Random(derive_seed(seed, "mixed")), []
    for i in range(n):
        messages = [{"role": "system", "content": system}]
        for question, answer in (_general, _program)[i % 2](rng):
            messages += [{"role": "user", "content": question}, *_assistant(answer)]
        chats.append(messages)
    return chats


def sort_by_length(rows: Sequence[dict], sizes: Sequence[int], batch: int) -> list[dict]:
    """The same optimiser batches with the rows of each sorted by size, so that passes of a part of a batch hold little padding."""
    order: list[int] = []
    for start in range(0, len(rows), batch):
        order += sorted(range(start, min(start + batch, len(rows))), key=lambda i: sizes[i])
    return [rows[i] for i in order]


def _general(rng: random.Random) -> list[tuple[str, str]]:
    topics = (("bread", "flour, water, salt and yeast"), ("rain", "water that falls from clouds"), ("a bicycle", "two wheels and pedals"),
              ("tea", "leaves in hot water"), ("a river", "water that runs to the sea"), ("paper", "wood, water and time"))  # fmt: skip
    return [(f"What is {name}?", f"In short: {text}.") for name, text in rng.sample(topics, rng.randint(1, 3))]


def _program(rng: random.Random) -> list[tuple[str, str]]:
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    sign, result = rng.choice((("+", a + b), ("-", a - b), ("*", a * b)))
    return [(f"Work out {a} {sign} {b}.", f"<execute> print({a} {sign} {b}) </execute>"), (f"Output: {result}", f"The answer is {result}.")]


def _chat_ids(tokenizer, messages: Messages) -> list[int]:
    text = tokenizer.apply_chat_template(harmless(tokenizer, messages), tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def fit_messages(tokenizer, messages: Messages, limit: int) -> Messages:
    """The prompt without its oldest turns where it is too long, as `LocalPolicy` cuts it. InputError as `policies.fit_prompt`."""
    _, dropped = fit_prompt(tokenizer, messages, limit)
    return [messages[0], *messages[1 + 2 * dropped :]]


def _assistant(text: str) -> Messages:
    return [{"role": "assistant", "content": text}]
