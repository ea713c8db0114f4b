"""A model folder in the form of Qwen2.5-3B-Instruct's, small enough for a test, that writes the reply format.

What is Qwen's: the architecture with tied embeddings and biases of queries, keys and values, the chat
template with its own system prompt and its branch for tools, the tokenizer's class, normaliser and word
pattern, the special tokens (at their own places where the output is as wide as Qwen's: 151,936, of which the
tokenizer knows fewer), two end tokens in `generation_config.json`, weights in bfloat16.

What is not: the weights are random, but for the last layer, which is a table. A random model never writes
the format, and none trained in a minute would write it after a prompt of a thousand tokens; so each unit
of the last layer's network stands for one piece of a reply, and writes what may follow it. All else that the
model says ends at once: a constant in the attention's values adds a little of the end token. The pieces are
drawn by the model's own probabilities, which training changes like those of any other weights.
"""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from rlpa_lib.dialogue import prompt_files

PROMPTS = Path(prompt_files.__file__).parent / "prompts"
WIDE = 151936  # of Qwen2.5-3B-Instruct's output
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEMPLATE = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\nYou may call one or more functions to assist with the user query." }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {{- '\n<tool_call>\n' + (tool_call | tojson) + '\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""  # noqa: E501
OPEN, MIDDLE, CLOSE, END = "<profile>\n", "</profile>\n\n<response>\n", "\n</response>", "<|im_end|>"
AGES = ("- Age: 34岁\n", "- Age: 三十岁左右\n")
GENDER, PLACE = "- Gender: 女\n", "- Location: 成都\n"
HOBBIES = ("- Interests: 爬山\n", "- Interests: 看书、做陶艺\n")
JOBS = ("- Occupation: 儿科护士\n", "- Occupation: 小学老师\n")
FIRST = ("你好，很高兴认识你。", "听起来真不错！", "我也喜欢周末去爬山。")
THEN = ("山里的空气特别好，", "忙了一天，读几页书最放松，", "成都的小吃我一直想尝尝，")
LAST = ("你最近一次去是什么时候？", "你平时都和谁一起去？", "再多说说你的工作吧？")
FOLLOWS = {  # at most three each, so that one is as likely as another
    "\n": (OPEN,), OPEN: (*AGES, HOBBIES[0]), **dict.fromkeys(AGES, (GENDER, *HOBBIES)),
    GENDER: (*HOBBIES, MIDDLE), **dict.fromkeys(HOBBIES, (*JOBS, MIDDLE)),
    **dict.fromkeys(JOBS, (PLACE, MIDDLE)), PLACE: (MIDDLE,), MIDDLE: FIRST, **dict.fromkeys(FIRST, THEN),
    **dict.fromkeys(THEN, LAST), **dict.fromkeys(LAST, (CLOSE,)), CLOSE: (END,),
}  # fmt: skip


def make_tokenizer(wide: bool) -> Qwen2Tokenizer:
    """Qwen2's tokenizer with words learned from the prompts of this project; `wide`: as many as Qwen has."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.NFC()
    learner.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    texts = [file.read_text(encoding="utf-8") for file in sorted(PROMPTS.rglob("*.txt"))]
    signs = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2000, initial_alphabet=signs))
    learned = json.loads(learner.to_str())["model"]
    vocabulary = dict(learned["vocab"])
    if wide:  # Qwen's special tokens come after 151,643 others
        vocabulary |= {f"<|unused {i}|>": i for i in range(len(vocabulary), 151643)}
    vocabulary |= {special: len(vocabulary) + i for i, special in enumerate(SPECIALS)}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=[tuple(pair) for pair in learned["merges"]], eos_token="<|im_end|>",
        pad_token="<|endoftext|>", extra_special_tokens=["<|im_start|>"], chat_template=TEMPLATE,
        model_max_length=131072,
    )  # fmt: skip
    pieces = {piece for before, after in FOLLOWS.items() for piece in (before, *after)} - {"\n", END}
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in sorted(pieces)])
    return tokenizer


def make_model(tokenizer, wide: bool, dtype=torch.bfloat16) -> Qwen2ForCausalLM:
    """The model described above: width 128, two layers."""
    torch.manual_seed(0)
    number = {piece: tokenizer.convert_tokens_to_ids(piece) for piece in FOLLOWS if piece != "\n"}
    number |= {"\n": tokenizer("\n")["input_ids"][0], END: tokenizer.eos_token_id}
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=WIDE if wide else len(tokenizer) + 7, hidden_size=128, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32768,
        tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id, rope_theta=1000000.0,
    ))  # fmt: skip
    table, [*_, last] = model.get_input_embeddings().weight.data, model.model.layers
    own = torch.linalg.qr(torch.randn(128, 128))[0]  # a direction a piece, each at right angles to the others
    place = {piece: own[i] for i, piece in enumerate(number)}
    table.normal_(std=0.1)
    for piece, i in number.items():
        table[i] = 4 * place[piece]
    for name in ("q_proj", "k_proj"):
        getattr(last.self_attn, name).weight.data.normal_(std=0.05)
    last.self_attn.v_proj.weight.data.normal_(std=0.1)
    last.self_attn.o_proj.weight.data.normal_(std=0.4)  # what is likelier depends a little on all before
    # A little of the end token, whatever was read: what no piece follows ends.
    last.self_attn.v_proj.bias.data.fill_(1.0)
    out = last.self_attn.o_proj.weight.data
    out += (2.0 * place[END] - out.sum(1))[:, None] / out.shape[1]
    for matrix in (last.mlp.gate_proj, last.mlp.up_proj, last.mlp.down_proj):
        matrix.weight.data.zero_()
    for unit, (before, after) in enumerate(FOLLOWS.items()):
        last.mlp.gate_proj.weight.data[unit] = place[before]
        last.mlp.up_proj.weight.data[unit] = place[before]
        last.mlp.down_proj.weight.data[:, unit] = 0.5 * sum(place[piece] for piece in after)
        last.mlp.down_proj.weight.data[:, unit] -= 0.05 * place[before]
    return model.to(dtype).eval()


def write_folder(folder: Path, *, wide: bool = False, dtype=torch.bfloat16) -> Path:
    """The folder, with `generation_config.json` as Qwen2.5-Instruct has it."""
    tokenizer = make_tokenizer(wide)
    model = make_model(tokenizer, wide, dtype)
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.pad_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id,
        do_sample=True, repetition_penalty=1.05, temperature=0.7, top_p=0.8, top_k=20,
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
