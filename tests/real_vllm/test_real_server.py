"""The policy against real servers of the tiny model, and against the same model in this process."""

import re
import threading
import time
import urllib.request
from collections import Counter
from typing import Literal

import openai
import pydantic
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from rlpa_lib.agents import vllm_server
from rlpa_lib.agents.prompt_tokens import prompt_ids
from rlpa_lib.agents.vllm_place import Place
from rlpa_lib.agents.vllm_policy import NoServerLeft, VLLMPolicy
from rlpa_lib.mini.world import WEIGHTS
from rlpa_lib.rlpa import ppo
from rlpa_lib.settings.config import InputError


def talk(*texts):
    roles = ("user", "assistant")
    return [{"role": "system", "content": "Be kind."}] + [
        {"role": roles[i % 2], "content": text} for i, text in enumerate(texts)
    ]


PROMPTS = [
    talk("Hello"), talk("I work as a teacher.", "Do you like it?", "Yes, very much."), talk("Hello"),
    talk("What now?"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return PreTrainedTokenizerFast.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters in PEFT format that change the model a lot, and the models with them."""
    made, parent = [], tmp_path_factory.mktemp("adapters")
    for seed in (1, 2):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32)
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, lora).eval()
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
        folder = parent / f"a{seed}"
        model.save_pretrained(folder, save_embedding_layers=False)
        made.append((folder, model))
    return made


@pytest.fixture
def policy(tokenizer, vllm_server_tiny):
    return VLLMPolicy(tokenizer, [vllm_server_tiny.base_url])


@pytest.fixture(scope="module")
def client(vllm_server_tiny):
    return openai.OpenAI(base_url=vllm_server_tiny.base_url, api_key="none", max_retries=0, timeout=600)


def sample(policy, prompts=PROMPTS, n=3, seed=1, temperature=1.0, length=24):
    return policy.generate(prompts, n, seed=seed, temperature=temperature, max_new_tokens=length)


def ids(groups):
    return [[c.token_ids for c in group] for group in groups]


def local_logprobs(model, completion, temperature=1.0):
    with torch.no_grad():
        logits = model(torch.tensor([[*completion.prompt_ids, *completion.token_ids]])).logits[0]
    logprobs = torch.log_softmax(logits[len(completion.prompt_ids) - 1 : -1] / temperature, -1)
    return logprobs.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]


def gap(model, groups, temperature=1.0):
    """Largest and mean |difference| between the server's log-probabilities and those of the model here."""
    flat = [c for group in groups for c in group]
    here = torch.cat([local_logprobs(model, c, temperature) for c in flat])
    there = torch.cat([torch.tensor(c.logprobs) for c in flat])
    found = ppo.sampler_gap(here, there, torch.ones_like(here, dtype=torch.bool))
    print(f"\nserver against local log-probabilities, {len(here)} tokens: {found}")
    return float((here - there).abs().max())


def once_busy(server, action):
    """A thread that acts as soon as the server is in the middle of requests."""

    def watch():
        for _ in range(6000):
            with urllib.request.urlopen(server.base_url.removesuffix("/v1") + "/metrics", timeout=60) as page:
                running = re.search(r"^vllm:num_requests_running{.*} (.+)$", page.read().decode(), re.M)
            if running and float(running[1]) > 0:
                return action()
            time.sleep(0.02)
        raise TimeoutError("the server never had a request")

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_chat_reads_the_tokenizer_right(client, tokenizer):
    answer = client.chat.completions.create(
        model="tiny", messages=talk("Hello"), temperature=0, max_tokens=20
    )
    assert answer.usage.prompt_tokens == len(prompt_ids(tokenizer, talk("Hello")))
    assert answer.choices[0].message.content.strip()


def test_chat_gives_distinct_samples_and_seeds_repeat(client):
    def ask(seed):
        answer = client.chat.completions.create(
            model="tiny", messages=talk("Hello"), n=4, seed=seed, max_tokens=16, temperature=2
        )
        return [choice.message.content for choice in answer.choices]

    assert len(set(ask(1))) > 1
    assert ask(1) == ask(1) != ask(2)


class Verdict(pydantic.BaseModel):
    natural: bool
    reason: Literal["short", "long"]


def test_chat_keeps_to_a_schema_and_gives_logprobs(client):
    wanted = {
        "type": "json_schema",
        "json_schema": {"name": "verdict", "schema": Verdict.model_json_schema(), "strict": True},
    }
    answer = client.chat.completions.create(
        model="tiny", messages=talk("Hello"), max_tokens=200, temperature=0, logprobs=True,
        response_format=wanted,
    )
    Verdict.model_validate_json(answer.choices[0].message.content)
    assert all(token.logprob <= 0 for token in answer.choices[0].logprobs.content)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_ids_and_logprobs_are_those_of_the_model(policy, model, tokenizer, temperature):
    groups = sample(policy, temperature=temperature)
    assert [g[0].prompt_ids for g in groups] == [tuple(prompt_ids(tokenizer, m)) for m in PROMPTS]
    assert gap(model, groups, temperature) < 1e-3
    flat = [c for g in groups for c in g]
    assert all(
        c.finished == (c.token_ids[-1] == tokenizer.eos_token_id) and len(c.token_ids) <= 24 for c in flat
    )
    [[whole]] = sample(policy, PROMPTS[:1], n=1, length=300, temperature=0)
    assert (
        whole.finished
        and whole.text == tokenizer.decode(whole.token_ids[:-1])
        and "<|end|>" not in whole.text
    )


def test_greedy_equals_transformers(policy, model, tokenizer):
    for messages, [completion] in zip(PROMPTS, sample(policy, n=1, temperature=0), strict=True):
        start = torch.tensor([prompt_ids(tokenizer, messages)])
        want = model.generate(
            start, attention_mask=torch.ones_like(start), do_sample=False, max_new_tokens=24
        )
        assert list(completion.token_ids) == want[0, start.shape[1] :].tolist()


def test_seeds_repeat_and_samples_differ(policy):
    def draw(prompts=PROMPTS, seed=1):
        return ids(sample(policy, prompts, seed=seed, temperature=2.0))

    first = draw()
    assert draw() == first != draw(seed=2)
    assert len({tokens for group in first for tokens in group}) == 12, (
        "equal prompts and samples are drawn apart"
    )
    assert draw(PROMPTS[1:2] + PROMPTS[3:]) == [first[1], first[3]], (
        "a sample does not depend on the batch around it"
    )


def test_frequencies_are_the_models(policy, model, tokenizer):
    """Of the first word of a response, of which the tiny model is not sure."""
    begun = talk("Hello", "<profile>\n</profile>\n\n<response>\n")
    groups = sample(policy, [begun] * 4, n=250, length=1, temperature=2.0)
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids(tokenizer, begun)])).logits[0, -1]
    probabilities = torch.softmax(logits / 2.0, -1)
    counts = Counter(c.token_ids[0] for g in groups for c in g)
    top = probabilities.topk(3).indices.tolist()
    assert 0.01 < float(probabilities[top[0]]) < 0.99
    for token in top:
        p = float(probabilities[token])
        assert abs(counts[token] / 1000 - p) < 4 * (p * (1 - p) / 1000) ** 0.5


def test_more_prompts_at_once_than_one_step_computes(policy, model):
    """vLLM's own way, which cuts a prompt in two where a step is full, ends the CPU build's engine when the
    request has a seed."""
    many = [talk(f"I have {i} cats and {i + 1} dogs. " * 20) for i in range(40)]
    groups = sample(policy, many, n=2, length=4)
    assert sum(len(g[0].prompt_ids) for g in groups) > 2 * 4096 and policy.n_redone == 0
    assert gap(model, groups) < 1e-3


def test_an_adapter_is_swapped_in_and_tells_its_version(policy, model, adapters, client):
    base = sample(policy)
    assert {c.version for g in base for c in g} == {0}
    for version, (folder, adapted) in enumerate(adapters, start=1):
        started = time.perf_counter()
        policy.load_weights(folder, version)
        print(f"\nswap: {time.perf_counter() - started:.2f} s")
        groups = sample(policy)
        assert {c.version for g in groups for c in g} == {version} and ids(groups) != ids(base)
        assert gap(adapted, groups) < 1e-3 < gap(model, groups)
    held = [card.id for card in client.models.list() if card.id.startswith(policy.newest.owner)]
    assert held == [policy.newest.name], "the one before is given back"


def test_prefixes_of_old_weights_are_not_reused(policy, adapters):
    """The same long prompt under adapter 1, 2 and 1 again: key-value blocks of other weights would show in
    the log-probabilities."""
    long = [talk("I like old maps and long walks by the sea. " * 20)]
    for version, (folder, adapted) in enumerate([*adapters, adapters[0]], start=1):
        policy.load_weights(folder, version)
        assert gap(adapted, sample(policy, long)) < 1e-3


def test_a_server_that_lost_its_adapter_gets_it_again(policy, adapters, client):
    folder, adapted = adapters[0]
    policy.load_weights(folder, 1)
    client.post("/unload_lora_adapter", cast_to=str, body={"lora_name": policy.newest.name})
    groups = sample(policy)
    assert {c.version for g in groups for c in g} == {1} and gap(adapted, groups) < 1e-3
    assert policy.n_redone > 0


@pytest.mark.parametrize(("lag", "versions"), [(0, {2}), (1, {1, 2})])
def test_samples_that_became_too_old_are_drawn_again(policy, adapters, vllm_server_tiny, lag, versions):
    """The adapter changes while the first samples are drawn."""
    (old, _), (new, adapted) = adapters
    policy.max_policy_lag, policy.concurrency = lag, 8
    policy.load_weights(old, 1)
    swap = once_busy(vllm_server_tiny, lambda: policy.load_weights(new, 2))
    groups = sample(policy, PROMPTS * 6, length=40)
    swap.join()
    assert {c.version for g in groups for c in g} == versions
    assert gap(adapted, [g for g in groups if g[0].version == 2]) < 1e-3
    assert (policy.n_redone > 0) == (lag == 0)


def test_an_adapter_that_no_server_takes_is_an_error_with_the_reason(policy, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32)
    big = get_peft_model(base, LoraConfig(r=64, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    big.save_pretrained(tmp_path / "big", save_embedding_layers=False)
    with pytest.warns(UserWarning, match="rank"), pytest.raises(NoServerLeft, match="rank"):
        policy.load_weights(tmp_path / "big", 1)


def test_impossible_requests_are_the_users_fault(policy):
    with pytest.raises(InputError, match="policy.servers.*400"):
        sample(policy, length=100_000)
    assert sample(policy, n=1, length=1), "and the server is still in use"


def test_a_dead_server_is_dropped_and_none_left_is_an_error(
    policy, tokenizer, vllm_launch, vllm_server_tiny, vllm_venv, adapters
):
    folder, adapted = adapters[0]
    prompts = [talk("Hello", "Hi!", f"I have {i} cats.") for i in range(24)]
    policy.load_weights(folder, 1)
    alone = sample(policy, prompts, n=4, length=60)
    second = vllm_launch()
    both = VLLMPolicy(tokenizer, [vllm_server_tiny.base_url, second.base_url])
    both.load_weights(folder, 1)
    kill = once_busy(second, lambda: vllm_server.stop(second, vllm_venv, 0.0))
    with pytest.warns(UserWarning, match="dropped"):
        groups = sample(both, prompts, n=4, length=60)
    kill.join()
    assert both.n_redone > 0 and {c.version for g in groups for c in g} == {1}
    assert ids(groups) == ids(alone), "which server drew a sample does not matter"
    gone = VLLMPolicy(tokenizer, [second.base_url])
    with pytest.warns(UserWarning, match="dropped"), pytest.raises(NoServerLeft, match="none is left"):
        sample(gone, prompts)


def test_whole_models_are_read_in_place_and_take_turns_with_adapters(
    vllm_launch, tokenizer, model, adapters, tmp_path
):
    """What `policy.tuning: full` asks of a server, and then the rows of its evaluation. Sleep needs CUDA."""
    policy = VLLMPolicy(tokenizer, [vllm_launch(place=Place(updates=True)).base_url])
    assert gap(model, sample(policy)) < 1e-3
    for version in (1, 2):
        torch.manual_seed(version)
        other = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32).eval()
        for weight in other.parameters():
            weight.data += 0.02 * torch.randn_like(weight)
        other.save_pretrained(tmp_path / f"v{version}")
        policy.load_weights(tmp_path / f"v{version}", version)
        assert gap(other, groups := sample(policy)) < 1e-3 < gap(model, groups), "prompts seen before"
    folder, with_adapter = adapters[0]
    policy.load_weights(folder, 3)
    assert gap(with_adapter, sample(policy)) < 1e-3, "an adapter is put on the base, not on the last model"
