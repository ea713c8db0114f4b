"""Predicted peak memory against what the allocator gives out during a real update, on three sizes of
Qwen2."""

from dataclasses import astuple

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2Config, Qwen2ForCausalLM

from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.protocols import Completion
from rlpa_lib.mini.world import WEIGHTS
from rlpa_lib.plan import gpu
from rlpa_lib.rlpa import experience, memory
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.rlpa.rewards import Reward
from rlpa_lib.rlpa.rollout import Sample, TurnGroup
from rlpa_lib.settings import config
from rlpa_lib.settings.config import Config

SIZES = {
    "small": memory.Shape(layers=3, hidden=128, heads=4, kv_heads=2, intermediate=352, vocabulary=6000),
    "middle": memory.Shape(layers=4, hidden=192, heads=6, kv_heads=2, intermediate=576, vocabulary=4000),
    "large": memory.Shape(
        layers=6, hidden=256, heads=4, kv_heads=4, intermediate=1024, vocabulary=3000, tied=False
    ),
}
PROMPT, COMPLETION = 120, 40


def model(shape, dtype):
    torch.manual_seed(0)
    layers, hidden, heads, kv_heads, intermediate, vocabulary, tied = astuple(shape)
    made = Qwen2Config(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=intermediate, vocab_size=vocabulary, tie_word_embeddings=tied,
    )  # fmt: skip
    return Qwen2ForCausalLM(made).to(dtype).eval()


def talk(n):
    """Two prompts that share nothing with n samples each, of the very lengths that the prediction is asked
    for."""

    def sample(prompt, i):
        completion = Completion(prompt, (i,) * COMPLETION, (-1.0,) * COMPLETION, "", True)
        return Sample(completion, Reply(Profile(), "x", True), Reward(format_ok=True, total=float(i)))

    prompts = {"a": tuple(range(PROMPT)), "b": tuple(range(PROMPT, 2 * PROMPT))}
    return [
        TurnGroup(name, 1, prompt, tuple(sample(prompt, i) for i in range(n)), 0)
        for name, prompt in prompts.items()
    ]


def measured(work):
    """Most bytes that `work` held at one time, as torch's allocator counts them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    held = most = 0
    for event in sorted(
        (e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"),
        key=lambda e: e.start_ns(),
    ):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("size", sorted(SIZES))
@pytest.mark.parametrize(
    ("dtype", "tuning", "critic", "packing"),
    [
        ("float32", "lora", "head", "tree"), ("bfloat16", "lora", "lora", "rows"),
        ("float32", "full", "head", "rows"),
    ],
)
def test_the_prediction_is_within_15_percent(size, dtype, tuning, critic, packing):
    torch.set_num_threads(1)
    shape, tree = (
        SIZES[size],
        {"rollout": {"samples": 3}, "policy": {"tuning": tuning, "dtype": dtype, "lora_rank": 8}},
    )
    cfg = Config.model_validate({**tree, "ppo": {"minibatch": 6, "critic": critic, "packing": packing}})
    learner = Learner(model(shape, getattr(torch, dtype)), cfg, seed=0)
    weights = sum(p.numel() * p.element_size() for p in learner.network.parameters())
    parts = memory.predict(shape, cfg, PROMPT, COMPLETION)
    assert parts["backbone"] + parts["trained weights"] == weights

    def two_updates():  # the second one with Adam's moments in place
        for _ in range(2):
            experience.update(learner, experience.gather_experience(learner, talk(3)), seed=0, scales=[1.0])

    most = weights + measured(two_updates)
    told = sum(parts.values())
    print(
        f"{size}, {dtype}, {tuning}: predicted {told / 2**20:.0f} MiB, "
        f"measured {most / 2**20:.0f} MiB, ratio {told / most:.3f}"
    )
    assert told == pytest.approx(most, rel=0.15)


def test_published_sizes():
    found = {name.split("/")[1]: round(memory.KNOWN[name].weights() / 1e9, 2) for name in memory.KNOWN}
    wanted = {
        "Qwen2.5-0.5B-Instruct": 0.49, "Qwen2.5-1.5B-Instruct": 1.54, "Qwen2.5-3B-Instruct": 3.09,
        "Qwen2.5-7B-Instruct": 7.62,
    }
    assert found == wanted


def test_the_plan_tells_what_an_update_needs():
    told = gpu.table(config.load_config("paper", []))
    assert "Qwen2.5-3B-Instruct" in told and "backbone 5.75" in told and told.count("\n") == 2
    assert memory.shape_of(str(WEIGHTS)).layers == 6 and gpu.table(config.load_config("mini", []))
    assert gpu.table(config.load_config("mini", ["policy.model=some/model"])) == "", (
        "an unknown shape is not guessed"
    )
