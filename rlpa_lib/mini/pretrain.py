"""How the tiny policy was trained from scratch: `python -m rlpa_lib.mini.pretrain` (make tiny-model)."""
from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import time
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from rlpa_lib.mini import corpus as world
from rlpa_lib.mini.model import WEIGHTS, make_model, make_tokenizer
from rlpa_lib.mini.personas import builtin_personas

BATCH_TOKENS = 3000


def encode(tokenizer, example: world.Example) -> tuple[list[int], list[bool]]:
    """(token ids, which of them are learned): everything that the assistant says, end tokens included. Where the answer
    begins with a profile, older turns have lost theirs, so that their first token would teach the wrong beginning."""
    messages = [*example.messages, {"role": "assistant", "content": example.completion}]
    with_profile, ids, learned = example.completion.startswith("<profile>"), [], []
    for i, message in enumerate(messages):
        body = tokenizer(message["content"], add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
        ids += tokenizer.convert_tokens_to_ids([f"<|{message['role']}|>"]) + body
        speaks = message["role"] == "assistant"
        older = with_profile and i < len(messages) - 1 and not message["content"].startswith("<profile>")
        learned += [False, speaks and not older] + [speaks] * (len(body) - 1)
    return ids, learned


def batches(rows: list[tuple[list[int], list[bool]]], tokens: int, rng: random.Random):
    """Batches of rows of similar length in random order. Widths are multiples of 32 and row counts follow from them:
    the CPU's matrix kernels are compiled once per shape, so there must be few shapes."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + rng.random())
    by_width: dict[int, list[int]] = {}
    for i in order:
        by_width.setdefault(-(-len(rows[i][0]) // 32) * 32, []).append(i)
    groups = []
    for width, members in by_width.items():
        size = max(1, tokens // width)
        groups += [members[i : i + size] for i in range(0, len(members) - size + 1, size)]
    rng.shuffle(groups)
    return groups


def loss_of(model, rows: list[tuple[list[int], list[bool]]], pad: int) -> torch.Tensor:
    """Mean cross-entropy over the learned tokens; the head is computed for those alone."""
    width = -(-max(len(ids) for ids, _ in rows) // 32) * 32
    ids = torch.tensor([r + [pad] * (width - len(r)) for r, _ in rows])
    keep = torch.tensor([k + [False] * (width - len(k)) for _, k in rows])[:, 1:]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=torch.backends.cpu.get_cpu_capability() == "AVX512"):
        # Padding stands behind the text, where causal attention never looks: no mask is needed, and none is much faster.
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[keep])
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][keep])


def train(model, tokenizer, rows, *, steps: int, lr: float, seed: int, log: list, stage: str) -> None:
    """AdamW, linear warm-up over 3 % of the steps, then cosine to 5 % of the rate; the loss goes into the log."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    rng, start, step = random.Random(seed), time.monotonic(), 0
    while step < steps:
        for group in batches(rows, BATCH_TOKENS, rng)[: steps - step]:
            done = step / steps
            rate = lr * min(1.0, done / 0.03 + 0.02) * (0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)
            for parameters in optimizer.param_groups:
                parameters["lr"] = rate
            loss = loss_of(model, [rows[i] for i in group], tokenizer.pad_token_id)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step % 50 == 0:
                log.append({"stage": stage, "step": step, "loss": round(loss.item(), 4), "seconds": round(time.monotonic() - start)})
                print(log[-1], flush=True)


def main(argv: list[str] | None = None) -> None:
    """Stages, each with a fresh optimiser: copying alone, dialogues, and then again both with values that mean nothing,
    so that nothing can be recited. Weights are rounded to bf16 in between, so that a stage can start from a saved one."""
    args = _arguments(argv)
    torch.manual_seed(args.seed)
    rng, pool, log = random.Random(args.seed), world.word_pool(), []
    if args.start:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start)
        model = Qwen2ForCausalLM.from_pretrained(args.start, dtype=torch.float32, attn_implementation="eager")
        log += json.loads((args.start / "training_record.json").read_text())["log"]
    else:
        copies = [world.copy_example(rng, pool) for _ in range(20000)]
        examples = list(world.corpus(builtin_personas("train", 14000, args.seed), args.seed, (0.0, 0.0, 0.6, 1.0)))
        texts = [m["content"] for e in examples[::5] for m in e.messages] + [e.completion for e in examples[::5]]
        tokenizer = make_tokenizer(texts, pool)
        model = make_model(tokenizer)
        model.set_attn_implementation("eager")  # 1.4 x faster than sdpa in training at these lengths on a CPU
        learn = partial(train, model, tokenizer, lr=2e-3, log=log)
        learn([encode(tokenizer, e) for e in copies], steps=args.steps[0], seed=args.seed, stage="copy")
        learn([encode(tokenizer, e) for e in [*examples, *copies[:4600]]], steps=args.steps[1], seed=args.seed + 1, stage="dialogues")
        save(model, tokenizer, args, log)
    for stage, steps in enumerate(args.steps[2:] if not args.start else args.steps, args.start_stage):
        rng = random.Random(f"{args.seed}|{stage}")
        copies = [world.copy_example(rng, pool, 0.85) for _ in range(40000 // (stage - 1))]
        examples = list(world.corpus(builtin_personas("train", 5000, args.seed + stage), args.seed + stage, (0.3, 0.8, 1.0)))
        train(model.float(), tokenizer, [encode(tokenizer, e) for e in [*copies, *examples]], steps=steps, lr=1.5e-3,
              seed=args.seed + stage, log=log, stage=f"nothing to recite {stage - 1}")
        save(model, tokenizer, args, log)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs="+", default=[500, 1500, 2200, 1500], help="optimiser steps of each stage")
    parser.add_argument("--start", type=Path, help="a folder saved after a stage: go on from there, with --steps of what is left")
    parser.add_argument("--start-stage", type=int, default=2, help="with --start: how many stages are done")
    return parser.parse_args(argv)


def save(model, tokenizer, args, log: list) -> None:
    """bf16 safetensors, tokenizer, and the record with the hash of the weights."""
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    digest = hashlib.sha256((args.out / "model.safetensors").read_bytes()).hexdigest()
    settings = {"seed": args.seed, "steps": args.steps, "batch_tokens": BATCH_TOKENS}
    record = {"settings": settings, "parameters": sum(p.numel() for p in model.parameters()), "sha256": digest,
              "torch": torch.__version__, "log": log}
    (args.out / "training_record.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
