"""The device path against the CPU path on the tiny model, then the configured model: one step at its longest
allowed reply, tokens a second, memory beside the plan's prediction, and the gap between trainer and vLLM."""

import copy
import os
import time
from pathlib import Path

import pytest
import torch
import work
from conftest import DEVICE

from rlpa_lib.agents import models, vllm_server
from rlpa_lib.agents.vllm_policy import VLLMPolicy
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.rlpa import experience, memory
from rlpa_lib.rlpa.rewards import Reward
from rlpa_lib.rlpa.rollout import Sample, TurnGroup
from rlpa_lib.settings import config

# Between a card and the CPU. In fp32 sums are added up in another order. In bf16 it is twice what lies
# between bf16 and fp32 on one CPU (tests/test_gpu_checks.py): each of two devices is that far from the truth.
TOLERANCES = {
    "float32": {
        "logprobs": 1e-3, "reference": 1e-3, "values": 1e-3, "policy_loss": 1e-4, "value_loss": 1e-4,
        "gradient": 1e-3,
    },
    "bfloat16": {
        "logprobs": 0.3, "reference": 0.3, "values": 0.02, "policy_loss": 1e-3, "value_loss": 1e-3,
        "gradient": 0.05,
    },
}
MAX_GAP = 0.05  # nats a token, mean, between vLLM and the trainer, both in the configured precision
TINY = ["ppo.minibatch=8", "ppo.micro_batch=4", "policy.lora_rank=8", "rollout.samples=4"]


@pytest.fixture
def exact_matmul():
    """fp32 products are exact here, whatever the settings allow: TF32 keeps ten bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("tuning", "critic", "packing"),
    [("lora", "head", "tree"), ("lora", "lora", "rows"), ("full", "lora", "rows")],
)
def test_the_device_computes_what_the_cpu_computes(tell, exact_matmul, dtype, tuning, critic, packing):
    keys = [f"policy.dtype={dtype}", f"policy.tuning={tuning}", f"ppo.critic={critic}"]
    cfg = config.load_config("smoke", [*TINY, *keys, f"ppo.packing={packing}"])
    model, tokenizer = models.load_model(cfg)
    groups = work.make_groups(2, 4, 60, 30, len(tokenizer))
    outcomes = [
        work.run_update(work.make_learner(copy.deepcopy(model).to(device), cfg, device, noise=0.02), groups)
        for device in (DEVICE, "cpu")
    ]
    apart, allowed = work.compare(*outcomes), TOLERANCES[dtype]
    told = ", ".join(f"{name} {apart[name]:.0e} <= {most:g}" for name, most in allowed.items())
    tell(f"{DEVICE.type} - CPU, {dtype}, {tuning}, {packing}", told)
    assert all(apart[name] <= allowed[name] for name in allowed), apart


def test_the_device_samples_what_the_cpu_samples(tell, exact_matmul):
    cfg = config.load_config("smoke", [])
    model, tokenizer = models.load_model(cfg)
    talks = [[{"role": "user", "content": said}] for said in ("Hello", "I am a nurse in Lisbon.", "Hello")]
    options = {"seed": 1, "temperature": 1.0, "max_new_tokens": 24}
    copies = [copy.deepcopy(model).to(device) for device in (DEVICE, "cpu")]
    groups = [models.make_local_policy(own, tokenizer, cfg).generate(talks, 4, **options) for own in copies]
    pairs = [(a, b) for one, other in zip(*groups, strict=True) for a, b in zip(one, other, strict=True)]
    same = sum(a.token_ids == b.token_ids for a, b in pairs) / len(pairs)
    tell(f"{DEVICE.type} - CPU, same samples from the same seed", f"{same:.0%} >= 90%")
    assert same >= 0.9, "a rounding may tip a draw now and then, no more"


def test_one_step_at_the_longest_reply(tell, cfg):
    """As many samples as go through the model at once; prompts and first replies as long as allowed."""
    prompt, reply, n = cfg.rollout.max_prompt_tokens, cfg.rollout.max_new_tokens, cfg.rollout.samples
    at_once = cfg.ppo.micro_batch or cfg.ppo.minibatch
    samples = max(n, at_once)
    cfg = cfg.model_copy(update={"ppo": cfg.ppo.model_copy(update={"minibatch": samples})})
    model, tokenizer = models.load_model(cfg)
    learner = work.make_learner(model, cfg, DEVICE)
    groups = work.make_groups(samples // n, n, prompt, reply, len(tokenizer))
    tokens = sum(len(g.prompt_ids) + len(s.completion.token_ids) for g in groups for s in g.samples)
    started = _start()
    outcome = work.run_update(learner, groups)
    seconds = _stop(started)
    what = f"one step, {samples} samples of {prompt:,} + {reply:,} tokens"
    tell(what, f"{seconds:.1f} s, {tokens / seconds:,.0f} tokens a second")
    assert all(outcome.metrics[f"grad_norm_{role}"] > 0 for role in ("policy", "critic"))
    if DEVICE.type == "cuda":
        found, known = torch.cuda.max_memory_allocated() / 2**30, memory.shape_of(cfg.policy.model)
        predicted = sum(memory.predict(known, cfg, prompt, reply).values()) / 2**30 if known else float("nan")
        tell(f"{what}: memory", f"{found:.1f} GiB", f"{predicted:.1f} GiB predicted")
        assert found <= 1.1 * predicted or not known, "the plan promises less than a step takes"


def test_sampling_speed_in_process(tell, cfg):
    model, tokenizer = models.load_model(cfg)
    policy = models.make_local_policy(model.to(DEVICE), tokenizer, cfg)
    talks, length = _talks(cfg, cfg.rollout.micro_batch), min(64, cfg.rollout.max_new_tokens)
    options = {"seed": 1, "temperature": 1.0, "max_new_tokens": length}
    started = _start()
    said = policy.generate(talks, cfg.rollout.samples, **options)
    seconds, tokens = _stop(started), sum(len(c.token_ids) for group in said for c in group)
    tell("sampling in process", f"{tokens / seconds:,.0f} tokens a second", f"{len(talks)} prompts at once")
    assert tokens > 0


def test_vllm_samples_from_the_trainers_distribution(tell, cfg, tmp_path):
    """A server of the configured model under a trained adapter, and the trainer's own log-probabilities of
    what it sampled."""
    model, tokenizer = models.load_model(cfg)
    if cfg.policy.tuning != "lora":
        cfg = cfg.model_copy(update={"policy": cfg.policy.model_copy(update={"tuning": "lora"})})
    learner = work.make_learner(model, cfg, DEVICE, noise=0.005)
    adapter = learner.save_policy(tmp_path / "adapter", tokenizer)
    url, stop = _find_server(cfg)
    try:
        policy = VLLMPolicy(tokenizer, [url], max_prompt_tokens=cfg.rollout.max_prompt_tokens)
        policy.load_weights(adapter, 1)
        talks, length = _talks(cfg, 16), min(128, cfg.rollout.max_new_tokens)
        options = {"seed": 1, "temperature": cfg.rollout.temperature, "max_new_tokens": length}
        started = _start()
        said = policy.generate(talks, cfg.rollout.samples, **options)
        seconds, tokens = _stop(started), sum(len(c.token_ids) for group in said for c in group)
    finally:
        stop()
    reply = Reply(Profile(), "x", True)
    groups = [
        TurnGroup(f"d{i}", 1, group[0].prompt_ids, tuple(
            Sample(c, reply, Reward(format_ok=True, total=float(k))) for k, c in enumerate(group)
        ), 0)
        for i, group in enumerate(said)
    ]  # fmt: skip
    gap = experience.gather_experience(learner, groups, elsewhere=True).gap
    tell("sampling by vLLM", f"{tokens / seconds:,.0f} tokens a second", f"{len(talks)} prompts at once")
    told = f"{gap['sampler_gap']:.4f} nats a token, ratio at most {gap['sampler_max_ratio']:.2f}"
    tell("vLLM - trainer", told, f"{MAX_GAP:g} nats")
    assert gap["sampler_gap"] <= MAX_GAP


def _find_server(cfg):
    """(base URL, how to end it): the one that RLPA_GPU_SERVER names, or one started on this card."""
    if given := os.environ.get("RLPA_GPU_SERVER"):
        return given, lambda: None
    venv = Path(os.environ.get("RLPA_VLLM_VENV") or vllm_server.DEFAULT_VENV).resolve()
    if not (venv / vllm_server.PYTHON).exists():
        how = "python -m rlpa_lib.agents.vllm_server setup --gpu"
        pytest.skip(f"vLLM is not in {venv}; set it up ({how}) or name a server in RLPA_GPU_SERVER")
    half = ["--gpu-memory-utilization", "0.4"] if DEVICE.type == "cuda" else []
    options = {"venv": venv, "port": 0, "dtype": cfg.policy.dtype, "lora_rank": cfg.policy.lora_rank}
    server = vllm_server.start(cfg.policy.model, extra=half, **options)
    return server.base_url, lambda: vllm_server.stop(server, venv)


def _talks(cfg, n):
    """First turns of n dialogues, under the run's own prompt."""
    system = prompt_files.load_prompt("policy", cfg.run.prompt_set, cfg.run.prompt_dir)
    said = "你好" if cfg.run.prompt_set == "zh" else "Hello"
    first = {"role": "system", "content": system}
    return [[first, {"role": "user", "content": f"{said} {i}"}] for i in range(n)]


def _start():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    return time.perf_counter()


def _stop(started):
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
