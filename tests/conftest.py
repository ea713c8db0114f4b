"""Fixtures shared by tests: a random two-layer model with a byte-level tokenizer, made in memory."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SPECIALS = ("<|pad|>", "<|start|>", "<|end|>")
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_tokenizer():
    """One token a byte, with a chat template."""
    signs = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(signs)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>",
        additional_special_tokens=["<|start|>"], chat_template=TEMPLATE,
    )


def random_model(seed=0):
    """Qwen2 architecture, 2 layers of width 32, fp32; larger initial weights than usual, so that outputs
    differ."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(SPECIALS) + 256, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.2,
        tie_word_embeddings=True, eos_token_id=2, pad_token_id=0,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture
def tiny_random_model():
    """(model, tokenizer), the same weights in every test."""
    torch.set_num_threads(1)
    return random_model(), byte_tokenizer()
