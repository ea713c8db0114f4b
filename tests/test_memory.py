"""Predicted peak memory against what the allocator gives out during a real update, on three sizes of
Qwen2."""

import json
from dataclasses import astuple

import pytest
import torch
import transformers
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.protocols import Completion
from rlpa_lib.mini.world import WEIGHTS
from rlpa_lib.plan import gpu, layouts
from rlpa_lib.rlpa import experience, memory, passes
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.rlpa.rewards import Reward
from rlpa_lib.rlpa.rollout import Sample, TurnGroup
from rlpa_lib.settings import config
from rlpa_lib.settings.config import Config, InputError

SIZES = {
    "small": memory.Shape(layers=3, hidden=128, heads=4, kv_heads=2, intermediate=352, vocabulary=6000),
    "middle": memory.Shape(layers=4, hidden=192, heads=6, kv_heads=2, intermediate=576, vocabulary=4000),
    "large": memory.Shape(
        layers=6, hidden=256, heads=4, kv_heads=4, intermediate=1024, vocabulary=3000, tied=False
    ),
    "wide heads": memory.Shape(  # as Qwen3's, twice hidden / heads
        layers=3, hidden=128, heads=4, kv_heads=2, intermediate=352, vocabulary=6000, head=64
    ),
}
PROMPT, COMPLETION = 120, 40


def model(shape, dtype):
    torch.manual_seed(0)
    layers, hidden, heads, kv_heads, intermediate, vocabulary, tied, head = astuple(shape)
    made = Qwen2Config(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=intermediate, vocab_size=vocabulary, tie_word_embeddings=tied,
        head_dim=head or hidden // heads,
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


@pytest.mark.parametrize("tied", [True, False])
def test_heads_of_a_width_of_their_own_are_counted(tmp_path, tied):
    """Qwen3's are wider than hidden / heads; its norms of queries and keys stand where Qwen2 has biases."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": tied}
    made = transformers.Qwen3Config(**sizes, **heads)
    made.save_pretrained(tmp_path)
    shape, model = memory.shape_of(str(tmp_path)), AutoModelForCausalLM.from_config(made)
    assert (shape.width, shape.kv_width) == (64, 32)
    small = sum(p.numel() for name, p in model.named_parameters() if "q_norm" in name or "k_norm" in name)
    biases = 2 * (64 + 2 * 32)
    assert shape.weights() - biases == sum(p.numel() for p in model.parameters()) - small


@pytest.mark.parametrize("kind", ["GPT2", "Qwen3Moe", "Mixtral"])
def test_a_model_of_another_shape_is_not_known(tmp_path, kind):
    """Told as such by the plan, and by whoever asks for passes of a GPU's size."""
    made = getattr(transformers, f"{kind}Config")()
    made.save_pretrained(tmp_path)
    assert memory.shape_of(str(tmp_path)) is None
    with pytest.raises(InputError, match="ppo.pass_tokens: .*set a number"):
        passes._shape(made)
    with pytest.raises(InputError, match="no shape of a model"):
        cfg = config.load_config("paper", [f"policy.model={tmp_path}"])
        layouts.describe(cfg, "8xA100-80", "paper", [f"policy.model={tmp_path}"], None, 500.0, 2e6)


def test_a_model_with_a_part_for_text_has_that_parts_shape(tmp_path):
    text = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 64}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {**text, "num_attention_heads": 4}}))
    assert memory.shape_of(str(tmp_path)) == memory.Shape(2, 32, 4, 4, 48, 64, tied=False)
