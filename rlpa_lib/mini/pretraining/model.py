"""The tiny policy: a Qwen2 model with its own tokenizer and chat template, about four million parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

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
