"""From preference conversations to what SFT and DPO are trained on, in two variants.

`fixed` is how we read the method: each turn's preferred response is learned once, after what was really said.

`aloe_scripts` does what ALOE's own training scripts do, on which the paper builds (perhaps unchanged):
SFT  1. the *first* message of the user stands at *every* turn, so that no response answers its message;
     2. one growing text per turn: the response of turn 1 is learned K times, that of turn K once;
     3. the loss is on all tokens, the user's and the system prompt's too;
     4. texts are packed into blocks that run across conversations, each block one sample, 48 a step;
     5. general chat and code-action examples are mixed in.
DPO  6. the rejected answer is a random choice from the stored text: one character (or one text of a list);
     7. beta 0.9 and a learning rate of 1e-5 instead of the paper's 0.01 and 5e-6, 48 pairs a step.
"""

import random
from collections.abc import Sequence

from rlpa_lib.agents.prompt_tokens import find_end_ids, fit_prompt, harmless, prompt_ids
from rlpa_lib.methods.preferences import Conversation, Talks, build_history, pick_first
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import InputError

VARIANTS = ("fixed", "aloe_scripts")
IGNORED = -100  # the label of a token that bears no loss
ALOE_BATCH = 48
PAPER_BATCH, PAPER_DPO_LR, ALOE_DPO_LR, ALOE_DPO_BETA = 32, 5.0e-6, 1.0e-5, 0.9
MIXED_SHARE = 0.2  # of the conversations' texts: ALOE adds some 7,000 examples to about 30,000 texts
TOPICS = (
    ("bread", "flour, water, salt and yeast"), ("rain", "water that falls from clouds"),
    ("a bicycle", "two wheels and pedals"), ("tea", "leaves in hot water"),
    ("a river", "water that runs to the sea"), ("paper", "wood, water and time"),
)
Messages = list[dict[str, str]]
Row = dict[str, list[int]]


def make_sft_rows(talks: Talks, tokenizer, system: str, limit: int, variant: str, seed: int) -> list[Row]:
    """Rows of `input_ids` and `labels` for SFT, in seeded order; `aloe_scripts` rows are not packed yet.

    Rows longer than `limit` are cut, and left out when nothing is left to learn. ValueError: unknown variant.
    """
    if _check(variant) == "aloe_scripts":
        texts = [text for talk in talks for text in grow_texts(talk, system)]
        texts += make_unrelated_chats(int(MIXED_SHARE * len(texts)), system, seed)
        encoded = [_encode(tokenizer, text) for text in texts]
        rows = [{"input_ids": ids, "labels": list(ids)} for ids in encoded]  # defect 3
    else:
        branches = [branch for talk in talks for branch in list_branches(talk, system)]
        rows = [label_answers(tokenizer, messages, places) for messages, places in branches]
    rows = [{key: ids[:limit] for key, ids in row.items()} for row in rows]
    rows = [row for row in rows if any(label != IGNORED for label in row["labels"])]
    return random.Random(derive_seed(seed, "sft rows")).sample(rows, len(rows))


def list_branches(conversation: Conversation, system: str) -> list[tuple[Messages, tuple[int, ...]]]:
    """The tree as (messages, places of the assistant messages to learn), each preferred response once.

    The trunk is what was really said; its preferred responses are learned where they stand. Where the
    rejected one went on, the preferred one is a branch of its own behind the same history.
    """
    exchanges = conversation.exchanges
    trunk = [turn for turn, exchange in enumerate(exchanges) if exchange.chosen == "preferred"]
    ends = [(trunk[-1], trunk)] if trunk else []
    ends += [(turn, [turn]) for turn in range(len(exchanges)) if turn not in trunk]
    branches = []
    for end, turns in ends:
        answer = _answer(pick_first(exchanges[end].preferred))
        places = tuple(2 * turn + 2 for turn in turns)
        branches.append(([*build_history(conversation, end, system), answer], places))
    return branches


def grow_texts(conversation: Conversation, system: str) -> list[Messages]:
    """ALOE's texts, defects 1 and 2: the first k turns for k = 1 to K, all with the user's first message."""
    opening = {"role": "user", "content": conversation.exchanges[0].user}
    messages, texts = [{"role": "system", "content": system}], []
    for exchange in conversation.exchanges:
        messages = [*messages, opening, _answer(pick_first(exchange.preferred))]
        texts.append(messages)
    return texts


def label_answers(tokenizer, messages: Messages, answers: Sequence[int]) -> Row:
    """Token ids of a chat; labels on the messages at `answers` with their end tokens, else `IGNORED`.

    InputError: the chat template changes a message when others follow it, so that its tokens are unknown.
    """
    ids = _encode(tokenizer, messages)
    labels, end_ids = [IGNORED] * len(ids), find_end_ids(tokenizer)
    for place in answers:
        start, until = prompt_ids(tokenizer, messages[:place]), _encode(tokenizer, messages[: place + 1])
        if ids[: len(start)] != start or ids[: len(until)] != until:
            why = "its chat template rewrites earlier messages; assistant tokens cannot be found"
            raise InputError(f"policy.model: {why}")
        ends = [i for i in range(len(start), len(until)) if until[i] in end_ids]
        end = ends[-1] + 1 if ends else len(until)  # a line end behind the end token is never sampled
        labels[len(start) : end] = ids[len(start) : end]
    return {"input_ids": ids, "labels": labels}


def make_dpo_rows(talks: Talks, tokenizer, system: str, limit: int, variant: str, seed: int) -> list[dict]:
    """Rows of `prompt`, `chosen`, `rejected` (chat messages), one a turn, in seeded training order.

    Prompts of more than `limit` tokens lose their oldest turns, as when the policy is used. A turn whose two
    responses are equal says nothing and has no row. InputError: system prompt and last message alone are too
    long. ValueError: unknown variant.
    """
    rng, rows = random.Random(derive_seed(seed, "dpo rows", _check(variant))), []
    for talk in talks:
        for turn, exchange in enumerate(talk.exchanges):
            rejected, preferred = exchange.rejected, pick_first(exchange.preferred)
            if variant == "fixed" and isinstance(rejected, str):
                rejected = (rejected,)
            answer = rng.choice(rejected)  # defect 6: of a plain text this is one character
            if answer != preferred:
                prompt = fit_messages(tokenizer, build_history(talk, turn, system), limit)
                sides = {"prompt": prompt, "chosen": [_answer(preferred)], "rejected": [_answer(answer)]}
                # harmless, as TRL encodes them
                rows.append({name: harmless(tokenizer, side) for name, side in sides.items()})
    return random.Random(derive_seed(seed, "dpo order")).sample(rows, len(rows))


def make_unrelated_chats(n: int, system: str, seed: int) -> list[Messages]:
    """Defect 5: n chats that have nothing to do with the user, half general, half with a small program.

    They are of our own writing and stand in for the public data sets that ALOE's script loads.
    """
    rng, chats = random.Random(derive_seed(seed, "mixed")), []
    for i in range(n):
        if i % 2 == 0:
            topics = rng.sample(TOPICS, rng.randint(1, 3))
            asked = [(f"What is {name}?", f"In short: {text}.") for name, text in topics]
        else:
            a, b = rng.randint(2, 99), rng.randint(2, 99)
            sign, result = rng.choice((("+", a + b), ("-", a - b), ("*", a * b)))
            asked = [(f"Work out {a} {sign} {b}.", f"<execute> print({a} {sign} {b}) </execute>")]
            asked.append((f"Output: {result}", f"The answer is {result}."))
        messages = [{"role": "system", "content": system}]
        for question, answer in asked:
            messages += [{"role": "user", "content": question}, _answer(answer)]
        chats.append(messages)
    return chats


def sort_by_length(rows: Sequence[dict], sizes: Sequence[int], batch: int) -> list[dict]:
    """The same optimiser batches, each sorted by size, so that parts of a batch hold little padding."""
    return [rows[i] for i in sorted(range(len(rows)), key=lambda i: (i // batch, sizes[i]))]


def fit_messages(tokenizer, messages: Messages, limit: int) -> Messages:
    """The prompt without its oldest turns where it is too long, as a policy cuts it. Errors: `fit_prompt`."""
    _, dropped = fit_prompt(tokenizer, messages, limit)
    return [messages[0], *messages[1 + 2 * dropped :]]


def _check(variant: str) -> str:
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, not {variant!r}")
    return variant


def _encode(tokenizer, messages: Messages) -> list[int]:
    text = tokenizer.apply_chat_template(harmless(tokenizer, messages), tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
