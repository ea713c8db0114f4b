"""An update of Qwen2.5-3B-Instruct's shapes on a GPU that pretends: every operand on the device, dtypes as
meant, and peaks of memory as predicted."""

import gc
import inspect
import re
import types

import pretended_device
import pytest
import torch
from conftest import byte_tokenizer
from pretended_device import DEVICE, QWEN, make_learner

from rlpa_lib.agents import architecture, decoding, local_policy
from rlpa_lib.rlpa import memory
from rlpa_lib.rlpa.experience import Experience, accumulate_minibatch
from rlpa_lib.rlpa.networks import CRITIC, POLICY, REFERENCE
from rlpa_lib.settings.config import Config, load_config

PROMPT, COMPLETION, SAMPLES, LAYERS = 1100, 160, 4, 3
RANK, HEAD = 32, memory.HEAD_HIDDEN


def config(tuning="lora", packing="tree", checkpointing=True, critic="lora", dtype="bfloat16"):
    policy = {"tuning": tuning, "dtype": dtype, "lora_rank": RANK}
    return Config.model_validate({
        "policy": {**policy, "gradient_checkpointing": checkpointing},
        "rollout": {"users": 4, "samples": SAMPLES},
        "ppo": {"minibatch": SAMPLES, "critic": critic, "packing": packing},
    })


@pytest.fixture
def meter(monkeypatch):
    with pretended_device.pretended_device(monkeypatch) as made:
        yield made
    gc.collect()


def groups_of(prompt, completion):
    return [(tuple(range(prompt)), tuple(tuple(range(i, completion + i)) for i in range(SAMPLES)))]


GROUPS = groups_of(PROMPT, COMPLETION)


def experience(learner, groups=GROUPS):
    """An update's data, on the CPU, as the learner finds them."""
    shape, names = (SAMPLES, len(groups[0][1][0])), "old_logprobs reference values advantages returns"
    numbers = {name: torch.zeros(shape) for name in names.split()}
    marks = {name: torch.ones(shape, dtype=torch.bool) for name in ("keep", "taught")}
    features = None if learner.network.own_critic else torch.zeros(*shape, learner.network.head.width)
    return Experience(groups=groups, features=features, **numbers, **marks)


@pytest.mark.parametrize(
    ("tuning", "packing", "checkpointing", "critic"),
    [
        ("lora", "tree", True, "lora"), ("lora", "tree", False, "lora"), ("lora", "rows", True, "head"),
        ("lora", "rows", False, "lora"), ("full", "tree", True, "lora"), ("full", "rows", True, "lora"),
        ("full", "rows", False, "head"),
    ],
)
def test_an_update_stays_on_its_device_and_in_its_memory(meter, tuning, packing, checkpointing, critic):
    cfg = config(tuning, packing, checkpointing, critic)
    learner = make_learner(cfg, LAYERS)
    shape = memory.shape_from({**QWEN, "num_hidden_layers": LAYERS})
    told, weights = memory.predict(shape, cfg, PROMPT, COMPLETION), meter.now
    assert weights == pytest.approx(told["backbone"] + told["trained weights"], rel=0.01)
    data = experience(learner)
    learner.network.train()
    accumulate_minibatch(learner, data, [0])
    learner.step(1.0)  # now the moments are there, as from the second step on
    with torch.no_grad():
        network = learner.network.eval()
        for _, packed, _ in learner.passes(GROUPS, [0]):
            reference = network(packed, REFERENCE, features=critic == "head")
            assert reference.logprobs_ST.device == DEVICE and reference.logprobs_ST.dtype == torch.float32
            assert network(packed, CRITIC, reference.features_STF).dtype == torch.float32
        del packed, reference
    meter.peak = meter.now
    learner.network.train()
    accumulate_minibatch(learner, data, [0])
    print(f"{tuning} {packing} {checkpointing} {critic}: told {sum(told.values()) / 2**30:.2f} GiB, "
          f"counted {meter.peak / 2**30:.2f}, ratio {sum(told.values()) / meter.peak:.3f}")
    assert sum(told.values()) == pytest.approx(meter.peak, rel=0.1)
    trained = [p for role in (POLICY, CRITIC) for p in learner.parameters(role).values()]
    assert {p.grad.dtype for p in trained} == {torch.float32} and {p.grad.device for p in trained} == {DEVICE}
    assert torch.float64 not in meter.dtypes
    # in fp32 run adapters and value head alone, each with a short side
    assert {side for dtype, side in meter.products if dtype == torch.float32} <= {1, RANK, HEAD}


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "fits"), [("paper", 20), ("released", 75)])
def test_all_layers_at_the_longest_reply_fit_on_a_card(meter, scale, fits):
    """Passes of 36 layers, prompts and replies of 4,096 tokens, as the params of the scale set it."""
    cfg, longest = load_config(scale), 4096
    learner = make_learner(cfg)
    told = sum(memory.predict(memory.KNOWN[cfg.policy.model], cfg, longest, longest).values())
    groups = groups_of(longest, longest)
    data = experience(learner, groups)
    learner.network.train()
    for _ in range(2):  # the second with gradients and moments in place
        meter.peak = meter.now
        accumulate_minibatch(learner, data, [0])
        peak = meter.peak
        learner.step(1.0)
    print(f"{scale}: told {told / 2**30:.1f} GiB, counted {peak / 2**30:.1f}, step {meter.peak / 2**30:.1f}")
    assert told == pytest.approx(peak, rel=0.1) and meter.peak < fits * 2**30


def sample(meter, monkeypatch, tuning="lora", dtype="bfloat16", running=1):
    """Two calls of the sampler in process, the second with longer dialogues; the completions of both.
    `running`: what it reads back as the number of rows without an end."""
    meter.told = {float: 0.0, int: running}
    monkeypatch.setattr(architecture, "PROBE", 2)
    model, options = make_learner(config(tuning, dtype=dtype), 1).model, {"portion": 40, "reuse": True}
    policy = local_policy.LocalPolicy(model, byte_tokenizer(), **options)
    request = {"n": 2, "seed": 0, "temperature": 1.0, "max_new_tokens": 2}
    begun = [[("system", "Chat."), ("user", said)] for said in ("Hi!", "A longer sentence")]
    longer = [[*talk, ("assistant", "Who are you?"), ("user", "Ann")] for talk in begun]
    return [
        policy.generate([[{"role": r, "content": c} for r, c in talk] for talk in talks], **request)
        for talks in (begun, longer)
    ]


@pytest.mark.parametrize(
    ("tuning", "dtype", "running"),
    [
        ("lora", "bfloat16", 1), ("lora", "bfloat16", 100), ("full", "bfloat16", 1), ("lora", "float32", 100)
    ],
)
def test_sampling_stays_on_its_device(meter, monkeypatch, tuning, dtype, running):
    """With one running row of four, rows leave the batch; with 100 none does."""
    for answers in sample(meter, monkeypatch, tuning, dtype, running):
        assert [[len(c.token_ids) for c in samples] for samples in answers] == [[2, 2]] * 2
    assert torch.float64 not in meter.dtypes


SAMPLER = inspect.getsource(decoding)
MOVES = list(re.finditer(r"\.to\(device\)|, device=(lengths_P\.)?device", SAMPLER))
QUICK = range(0, len(MOVES), 6)


@pytest.mark.parametrize(
    "place", [pytest.param(i, marks=() if i in QUICK else pytest.mark.slow) for i in range(len(MOVES))]
)
def test_any_tensor_that_sampling_leaves_on_the_cpu_is_caught(meter, monkeypatch, place):
    """The sampler without one of its moves to the device."""
    move, changed = MOVES[place], types.ModuleType("changed")
    exec(SAMPLER[: move.start()] + SAMPLER[move.end() :], changed.__dict__)
    for name in ("decode", "run_prompts", "PromptMemory"):
        monkeypatch.setattr(local_policy, name, getattr(changed, name))
    with pytest.raises(Exception, match="device"):
        sample(meter, monkeypatch)


def test_a_tensor_left_on_the_cpu_is_caught(meter, monkeypatch):
    learner = make_learner(config(), 1)
    there = learner.pack
    monkeypatch.setattr(learner, "device", torch.device("cpu"))
    with pytest.raises(Exception, match="device"):
        learner.network(there(GROUPS), POLICY)


def test_an_updates_data_left_on_the_cpu_are_caught(meter, monkeypatch):
    learner, cut = make_learner(config(), 1), Experience.cut
    here = torch.device("cpu")
    monkeypatch.setattr(Experience, "cut", lambda self, some, longest, _: cut(self, some, longest, here))
    with pytest.raises(Exception, match="device"):
        accumulate_minibatch(learner, experience(learner), [0])


def test_one_number_left_on_the_cpu_is_caught(meter):
    learner = make_learner(config(), 1)
    packed = learner.pack(GROUPS)
    learner.network.train()
    logprobs = learner.network(packed, POLICY).logprobs_ST
    with pytest.raises(Exception, match="device"):
        logprobs * torch.ones(SAMPLES, COMPLETION)


def test_forward_and_backward_read_nothing_back(meter):
    learner = make_learner(config(), 1)
    packed = learner.pack([(GROUPS[0][0][:-1], GROUPS[0][1])])  # a length that is no multiple of 8
    assert all(mask is None or mask.stride(-2) % 8 == 0 for mask in packed.tree.masks)
    meter.reads = 0
    learner.network.train()
    learner.network(packed, POLICY).logprobs_ST.sum().backward()
    assert meter.reads == 0, "the CPU would wait for the device"
