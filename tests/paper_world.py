"""What `params/paper.yaml` needs around it, at the size of a test: a tiny Qwen2.5 model, ALOE files, and a
server that answers by the schema.

As a command it trains one cohort under unchanged params (only the model, the data's paths and a sampler in
process are set): `python tests/paper_world.py FOLDER`.
"""

import hashlib
import json
import os
import random
import sys
import time
from pathlib import Path

import torch
from conftest import byte_tokenizer
from scripted_server import ScriptedServer
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlpa_lib import runs
from rlpa_lib.rlpa import training
from rlpa_lib.settings import config

OPEN, CLOSE = "<profile>\n- Interests: 爬山\n</profile>\n\n<response>\n", "\n</response>"
WORDS = ["你好。", "真好！", "再说说吧？", "我也喜欢爬山。"]


def tiny_qwen(folder, dtype=torch.bfloat16):
    """A folder with a Qwen2 model of width 64 and random weights, but for what follows what: a reply's tokens
    come in the reply's order."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([OPEN, CLOSE, *WORDS])
    torch.manual_seed(0)
    shape = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    special = {"vocab_size": len(tokenizer), "eos_token_id": 2, "pad_token_id": 0}
    settings = Qwen2Config(max_position_embeddings=16384, tie_word_embeddings=False, **special, **shape)
    model = Qwen2ForCausalLM(settings)
    seen, said = model.get_input_embeddings().weight.data, model.get_output_embeddings().weight.data
    seen.normal_()
    seen[:, 0] = 4.0  # a constant, by which every token may be followed by the end
    said[2, 0] += 1.0
    number = {text: tokenizer.convert_tokens_to_ids(text) for text in (OPEN, CLOSE, *WORDS)}
    line_end = tokenizer("\n")["input_ids"][0]
    follows = [(line_end, number[OPEN]), (number[CLOSE], 2), *((number[OPEN], number[w]) for w in WORDS)]
    follows += [
        (number[w], other) for w in WORDS for other in [number[CLOSE], *(number[v] for v in WORDS[:2])]
    ]
    for before, after in follows:
        said[after, 1:] += 10 / 64 * seen[before, 1:]
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def aloe_folder(folder, n):
    """n descriptions of different words in ALOE's form, and two personalities."""
    folder.mkdir(parents=True)
    draw = random.Random(0)
    words = [
        "".join(draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(3)) for _ in range(4000)
    ]
    texts = [
        f"{draw.choice(['She', 'He'])} is {draw.randint(20, 70)}, "
        f"works with {' and '.join(draw.sample(words, 6))}."
        for _ in range(n)
    ]
    (folder / "profile.jsonl").write_text("\n".join(map(json.dumps, texts)) + "\n")
    (folder / "personality.jsonl").write_text(
        "\n".join(map(json.dumps, ["Calm and curious.", "Quick and cheerful."])) + "\n"
    )
    return folder


def answer(body):
    """An answer to a chat request that fits its schema, drawn from the request's text."""
    text = json.dumps([body["messages"], body.get("seed")])
    schema = body["response_format"]["json_schema"]["schema"]
    return json.dumps(
        _fitting(schema, schema, random.Random(hashlib.sha256(text.encode()).hexdigest())), ensure_ascii=False
    )


def _fitting(schema, root, draw):
    if "$ref" in schema:
        return _fitting(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root, draw)
    if "const" in schema or "enum" in schema:
        return draw.choice(schema.get("enum") or [schema["const"]])
    if "anyOf" in schema:
        return _fitting(schema["anyOf"][0], root, draw)
    kind = schema["type"]
    if kind == "object":
        return {name: _fitting(part, root, draw) for name, part in schema["properties"].items()}
    if kind == "array":
        return [_fitting(schema["items"], root, draw) for _ in range(draw.randint(0, 1))]
    if kind == "boolean":
        return draw.random() < 0.7
    return draw.randint(1, 3) if kind == "integer" else draw.choice(["爬山", "看书", "唱歌"])


def run_of(folder, scale, model, aloe, *more):
    """A run under a params file with nothing set but the model, the data, who samples, and `more`."""
    keys = [f"policy.model={model}", "policy.kind=local", f"personas.path={aloe}", *more]
    return runs.claim(config.load_config(scale, keys), 0, folder, f"params/{scale}.yaml")


def work():
    """The command line."""
    folder = Path(sys.argv[1])
    model, aloe = tiny_qwen(folder / "model"), aloe_folder(folder / "aloe", 3995)
    with ScriptedServer(answer) as server:
        # tens of thousands are not to be kept
        server.bodies = type("Nothing", (), {"append": lambda *_: None})()
        os.environ |= {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "none"}
        started = time.perf_counter()
        rows = training.prepare(run_of(folder / "run", "paper", model, aloe)).train(until=1)
        print(json.dumps(rows, indent=1), f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    work()
