"""The tiny policy, a Qwen2 model of about four million parameters with its own tokenizer, and its training:
`python -m rlpa_lib.mini.pretraining.train` (make tiny-model)."""

import argparse
import hashlib
import json
import math
import random
import time
import timeit
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.mini.play import list_known_words
from rlpa_lib.mini.pretraining.corpus import LAST_WEIGHTS, Example, make_copy_example, make_corpus
from rlpa_lib.mini.world import WEIGHTS

BATCH_TOKENS = 3000
Row = tuple[list[int], list[bool]]  # token ids, and which of them are learned
PAD, END = "<|pad|>", "<|end|>"
SPECIAL = [PAD, END, "<|system|>", "<|user|>", "<|assistant|>"]
TAGS = ("<profile>", "</profile>", "<response>", "</response>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HIDDEN, LAYERS, HEADS, COMMON_PIECES = 192, 6, 3, 1200


def make_tokenizer(texts: Sequence[str], words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level unigram pieces: any text can be written, every word of the world is one token (so that
    copying a value takes one step a word), other words fall into common pieces; digits stand one by one, tags
    and roles are tokens."""
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytewise])
    counts = Counter(piece for text in texts for piece, _ in split.pre_tokenize_str(text))
    known = {piece for word in words for piece, _ in split.pre_tokenize_str(f" {word}")}
    known |= {piece for piece, n in counts.items() if n >= 20}
    # Frequent parts of words, for words that the world does not have.
    parts = Tokenizer(models.BPE())
    parts.pre_tokenizer = bytewise
    parts.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=COMMON_PIECES, show_progress=False))
    vocabulary = [*SPECIAL, *sorted(bytewise.alphabet())]
    vocabulary += sorted((known | set(parts.get_vocab())) - set(vocabulary))
    raw = Tokenizer(models.Unigram([(piece, -10.0) for piece in vocabulary], None, False))
    raw.pre_tokenizer, raw.decoder = split, decoders.ByteLevel()
    raw.add_special_tokens(SPECIAL)
    # The tags are ordinary text to a reader of the output, so they must survive skip_special_tokens.
    raw.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END, pad_token=PAD)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    """A fresh model; set torch's seed before. Word vectors start at length one, far apart; as many key-value
    heads as query heads, so that an attention layer can carry a whole word from one place to another."""
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=LAYERS, intermediate_size=3 * HIDDEN,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=4096,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=HIDDEN ** -0.5)
    for layer in model.model.layers[:2]:
        _look_back(layer.self_attn, config.rope_parameters["rope_theta"])
    return model


@torch.no_grad()
def _look_back(attention, theta: float, strength: float = 4.0) -> None:
    """Start the heads by looking one or two tokens back, which copying needs and training finds late: with
    rotary positions two constant biases whose rotations agree at that distance do it."""
    width = attention.head_dim
    angles = theta ** (-torch.arange(0, width, 2).float() / width)
    key = torch.full((width,), strength ** 0.5)
    low, high = key.chunk(2)
    for head in range(attention.config.num_attention_heads):
        turn = -(1 + head % 2) * angles
        query = torch.cat([low * turn.cos() - high * turn.sin(), high * turn.cos() + low * turn.sin()])
        attention.k_proj.bias[head * width : (head + 1) * width] = key
        attention.q_proj.bias[head * width : (head + 1) * width] = query


def encode(tokenizer, example: Example) -> Row:
    """Learned is everything that the assistant says but its slips, end tokens included. Where the answer
    begins with a profile, older turns have lost theirs, so that their first token would teach the wrong
    beginning."""
    messages = [*example.messages, {"role": "assistant", "content": example.completion}]
    with_profile, ids, learned = example.completion.startswith("<profile>"), [], []
    for i, message in enumerate(messages):
        body = tokenizer(message["content"], add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        ids += tokenizer.convert_tokens_to_ids([f"<|{message['role']}|>"]) + body
        speaks = message["role"] == "assistant" and i not in example.slips
        older = with_profile and i < len(messages) - 1 and not message["content"].startswith("<profile>")
        learned += [False, speaks and not older] + [speaks] * (len(body) - 1)
    return ids, learned


def draw_batches(rows: list[Row], steps: int, rng: random.Random) -> Iterator[list[Row]]:
    """`steps` batches of rows of similar length in random order, as many passes over the rows as that takes.
    Widths are multiples of 32 and row counts follow from them: the CPU's matrix kernels are compiled once per
    shape, so there must be few shapes."""
    while steps > 0:
        by_width, groups = defaultdict(list), []
        for row in sorted(rows, key=lambda row: len(row[0]) + rng.random()):
            by_width[-(-len(row[0]) // 32) * 32].append(row)
        for width, members in by_width.items():
            size = max(1, BATCH_TOKENS // width)
            groups += [members[i : i + size] for i in range(0, len(members) - size + 1, size)]
        rng.shuffle(groups)
        yield from groups[:steps]
        steps -= len(groups[:steps])


@cache
def is_bf16_faster() -> bool:
    """Measured: with AMX bf16 matrix products take a sixth of the time of fp32, elsewhere twice as long."""

    def measure(dtype: torch.dtype) -> float:
        square = torch.ones(1024, 1024, dtype=dtype)
        return min(timeit.repeat(lambda: square @ square, number=1, repeat=4)[1:])  # the first one compiles

    return measure(torch.bfloat16) < measure(torch.float32)


def compute_loss(model, rows: list[Row], pad: int) -> torch.Tensor:
    """Mean cross-entropy over the learned tokens; the head is computed for those alone."""
    width = -(-max(len(ids) for ids, _ in rows) // 32) * 32
    ids = torch.tensor([r + [pad] * (width - len(r)) for r, _ in rows])
    keep = torch.tensor([k + [False] * (width - len(k)) for _, k in rows])[:, 1:]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_bf16_faster()):
        # Padding stands behind the text, where causal attention never looks: faster without a mask.
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[keep])
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][keep])


def train(model, tokenizer, stages: list[tuple[str, list, int]], *, lr: float, seed: int, log: list) -> None:
    """AdamW over stages of (name, rows, steps): linear warm-up over 3 % of all steps, then a cosine to 5 % of
    the rate. The loss goes into the log."""
    model.set_attn_implementation("eager")  # 1.4 x faster than sdpa in training at these lengths on a CPU
    table = model.get_input_embeddings().weight
    # The vectors of tokens that occur less than once in thirty rows stay as they were drawn: training would
    # push all rare words the same way, until the model knows where a word stands and no longer which it is.
    last = stages[-1][1]
    counts = Counter(token for ids, _ in last for token in ids)
    rare = torch.tensor([30 * counts[token] < len(last) for token in range(len(table))])
    table.register_hook(lambda gradient: gradient.masked_fill(rare[:, None], 0.0))
    others = [p for p in model.parameters() if p is not table]
    groups = [{"params": others, "weight_decay": 0.05}, {"params": [table], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    rng, start, total, step = random.Random(seed), time.monotonic(), sum(steps for _, _, steps in stages), 0
    for name, rows, steps in stages:
        for batch in draw_batches(rows, steps, rng):
            done = step / total
            rate = lr * min(1.0, done / 0.03 + 0.02) * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate
            loss = compute_loss(model, batch, tokenizer.pad_token_id)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step % 50 == 0:
                seconds = round(time.monotonic() - start)
                log.append({"stage": name, "step": step, "loss": round(loss.item(), 4), "seconds": seconds})
                print(log[-1], flush=True)


def main(argv: list[str] | None = None) -> None:
    """First copying alone, with values that mean nothing, then dialogues of all modes: a model that can
    recite does not learn to copy. The last stage, at a third of the rate, has other dialogues, more of them
    with or without a reminder."""
    args = _arguments(argv)
    torch.manual_seed(args.seed)
    rng, log, examples = random.Random(args.seed), [], []
    copies = [make_copy_example(rng) for _ in range(args.copies)]
    if args.start:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start)
        model = Qwen2ForCausalLM.from_pretrained(args.start, dtype=torch.float32)
        model.model.norm.weight.data.mul_(1 / args.sharpen)
    else:
        people = builtin_personas("train", args.personas, args.seed)
        examples = list(make_corpus(people, args.seed))
        texts = [m["content"] for e in examples[::5] for m in e.messages]
        texts += [e.completion for e in examples[::5]]
        tokenizer = make_tokenizer(texts, list_known_words())
        model = make_model(tokenizer)
    copying = [encode(tokenizer, e) for e in copies]

    def mix(some: Iterable[Example]) -> list[Row]:
        talking = [encode(tokenizer, e) for e in some]
        return [*talking, *copying[: len(talking) // 5]]

    if not args.start:
        stages = [("copy", copying, args.steps[0]), ("dialogues", mix(examples), args.steps[1])]
        train(model, tokenizer, stages, lr=2e-3, seed=args.seed, log=log)
    people = builtin_personas("train", args.personas // 2, args.seed + 1)
    last = make_corpus(people, args.seed + 1, LAST_WEIGHTS)
    train(model, tokenizer, [("modes", mix(last), args.steps[2])], lr=6e-4, seed=args.seed + 1, log=log)
    model.model.norm.weight.data.mul_(args.sharpen)
    save(model, tokenizer, args, log)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=WEIGHTS)
    add("--start", type=Path, help="a folder with weights: only the last stage is trained, from there on")
    add("--seed", type=int, default=0)
    add("--steps", type=int, nargs=3, default=[600, 3900, 600], help="of copying, dialogues, the last stage")
    add("--copies", type=int, default=30000, help="examples of copying")
    add("--personas", type=int, default=13000, help="personas whose dialogues are played")
    factor = "factor on all logits at the end: fewer wrong rare words at temperature 1"
    add("--sharpen", type=float, default=1.25, help=factor)
    return parser.parse_args(argv)


def save(model, tokenizer, args, log: list) -> None:
    """bf16 safetensors, tokenizer, and the record with the hash of the weights."""
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    given = {k: v for k, v in vars(args).items() if k not in ("out", "start")}
    settings = {"batch_tokens": BATCH_TOKENS, **given, "start": args.start and _digest(args.start)}
    size = sum(p.numel() for p in model.parameters())
    record = {"settings": settings, "parameters": size, "sha256": _digest(args.out)}
    record |= {"torch": torch.__version__, "log": log}
    if args.start:  # what those weights had come from
        record["before"] = json.loads((args.start / "training_record.json").read_text(encoding="utf-8"))
    (args.out / "training_record.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
