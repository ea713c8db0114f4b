"""Which models can be sampled by `decoding` and trained by `rlpa.networks`: both compute attention and logits
themselves, and what they do not compute is refused by name."""

import inspect
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from rlpa_lib.settings.config import InputError

# Settings under which logits or attention scores are more than a product.
SCALES = re.compile(r"logits?_(scal|(soft)?cap|mult)|(lm_head|output)_mult")
PLAIN_LAYERS = {"full_attention", "sliding_attention", "attention"}
COMPARED = 64  # tokens of a completion
# Mean difference allowed between the sampler's log-probabilities and the model's own, nats a token.
MAX_GAP = {torch.float32: 1e-3}
MAX_GAP_HALF = 0.3  # bfloat16, float16: other orders of the same sums (SmolLM2-135M in bfloat16: 0.03 to 0.1)
PROBE, PROBED = 8, weakref.WeakSet()  # tokens of a trial; models that have passed it
TROUBLE = (
    AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def check(model, tokens: int) -> None:
    """InputError: the model computes what sampling and training here do not, or its attention does not see
    all of `tokens` tokens, the longest prompt and reply."""
    config = model.config.get_text_config(decoder=True)
    for problem in () if model in PROBED else _find_problems(model, config):
        raise InputError(f"policy.model: {config.model_type}: {problem}, which is not computed here")
    window = _find_window(config)
    if window is not None and tokens > window:
        remedy = "lower rollout.max_prompt_tokens and rollout.max_new_tokens"
        told = f"its attention sees {window} tokens, but prompt and reply may take {tokens}"
        raise InputError(f"policy.model: {config.model_type}: {told}; {remedy}")


def probe(model, sample: Callable) -> None:
    """Once for each model: two completions of a few tokens, by `sample(prompts, n, draws)`, against the
    model's own forward pass. InputError: it cannot be sampled here, or comes out otherwise."""
    if model in PROBED:
        return
    vocabulary = model.get_input_embeddings().weight.shape[0]
    prompt = tuple(7 * i % vocabulary for i in range(1, PROBE + 1))
    draws = torch.linspace(0.05, 0.95, 2 * PROBE).view(2, PROBE)
    try:
        for token_ids, logprobs, _ in sample([prompt], 2, draws):
            compare_with_model(model, prompt, token_ids, logprobs, 1.0)
    except InputError:
        raise
    except TROUBLE as error:
        kind = model.config.get_text_config(decoder=True).model_type
        why = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise InputError(f"policy.model: {kind}: cannot be sampled in process ({why})") from error
    PROBED.add(model)


def compare_with_model(
    model, prompt, token_ids, logprobs, temperature: float, done: str = "sampled"
) -> None:
    """InputError: what was sampled (or `done` here otherwise) has other log-probabilities than in the model's
    own forward pass, by more than `MAX_GAP` nats a token on average. `model` may have adapters, which are
    applied as PEFT does."""
    kept = token_ids[:COMPARED]
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[*prompt, *kept]], device=device)
    own = model.get_base_model() if hasattr(model, "get_base_model") else model
    only_last = "logits_to_keep" in inspect.signature(own.forward).parameters
    options = {"logits_to_keep": len(kept) + 1} if only_last else {}
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False, **options).logits[0, -len(kept) - 1 : -1].float()
    expected = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
    expected = expected.gather(-1, ids[0, -len(kept) :, None])[:, 0]
    gap = float((expected - torch.tensor(logprobs[: len(kept)], device=device)).abs().mean())
    limit = MAX_GAP.get(model.dtype, MAX_GAP_HALF)
    if not gap <= limit:
        told = f"differ from its own forward pass by {gap:.3g} nats a token (allowed: {limit})"
        raise InputError(
            f"policy.model: {own.config.model_type}: log-probabilities as {done} here {told}; this model or "
            "adapter is not computed rightly"
        )


@contextmanager
def use_attention(model, name: str, attend: Callable) -> Iterator[None]:
    """Within the context the model's layers compute attention by `attend`, which transformers knows as `name`
    and makes no mask for."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(name, attend)
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _find_problems(model, config) -> Iterator[str]:
    if config.is_encoder_decoder:
        yield "an encoder"
    for name, value in config.to_dict().items():
        if SCALES.search(name) and value not in (None, 1, False):
            yield f"{name} = {value}"
    for kind in sorted({*(getattr(config, "layer_types", None) or ())} - PLAIN_LAYERS):
        yield f"layers of kind {kind}"
    if not getattr(model, "_supports_attention_backend", False):
        yield "attention of its own (transformers cannot swap its kernel)"
    if getattr(config, "alibi", False):
        yield "ALiBi"
    if any(name.rpartition(".")[2] == "sinks" for name, _ in model.named_parameters()):
        yield "attention sinks"
    if getattr(config, "kv_lora_rank", None):
        yield "latent attention (kv_lora_rank)"


def _find_window(config) -> int | None:
    """How many tokens the narrowest layer sees; None: all."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and "sliding_attention" not in kinds:
        return None
    return getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
