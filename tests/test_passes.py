"""Passes that the device's memory holds: split by hand, budgets, an injected out-of-memory error, and what
the backward pass keeps."""

import random

import pytest
import torch
from test_learner import GROUPS, make, make_full, turn_groups
from test_trainer import any_text_is_well_formed, quiet, trainer  # noqa: F401

from rlpa_lib import runs
from rlpa_lib.rlpa import memory, passes, ppo
from rlpa_lib.rlpa.experience import accumulate_minibatch, gather_experience, update
from rlpa_lib.rlpa.networks import CRITIC, POLICY
from rlpa_lib.rlpa.packing import pack_groups
from rlpa_lib.rlpa.passes import Bundle, count_tokens, split_bundles
from rlpa_lib.settings import config as settings
from rlpa_lib.settings.config import InputError

LONG, SHORT = GROUPS
BUNDLES = [Bundle((0, 1, 2), LONG), Bundle((3, 4, 5), SHORT)]


def indices(parts):
    return [[bundle.samples for bundle in part] for part in parts]


def test_tokens_by_hand():
    # a tree: the prompt, and all but the last token of each sample, which share nothing here; no padding
    assert [count_tokens([b], "tree") for b in BUNDLES] == [4 + 2 + 1 + 3, 2 + 1 + 0 + 2]
    assert count_tokens(BUNDLES, "tree") == 10 + 5
    assert count_tokens([BUNDLES[0]], "rows") == 3 * (4 + 3) and count_tokens(BUNDLES, "rows") == 6 * 7
    for packing in ("tree", "rows"):
        packed = pack_groups([LONG, SHORT], packing, torch.float32)
        assert packed.input_ids_BL.numel() == count_tokens(BUNDLES, packing)


def test_a_budget_of_tokens_by_hand():
    assert indices(split_bundles(BUNDLES, 6, None, "tree")) == [[(0, 1, 2), (3, 4, 5)]]
    assert indices(split_bundles(BUNDLES, 6, 14, "tree")) == [[(0, 1, 2)], [(3, 4, 5)]]
    assert indices(split_bundles(BUNDLES, 3, 100, "tree")) == [[(0, 1, 2)], [(3, 4, 5)]], "the cap stays"
    # 4 + 2 + 1 = 7 tokens hold two samples of the first prompt, the third needs the prompt once more
    assert indices(split_bundles(BUNDLES, 6, 7, "tree")) == [[(0, 1)], [(2,)], [(3, 4, 5)]]
    assert indices(split_bundles(BUNDLES, 6, 1, "rows")) == [[(i,)] for i in range(6)], (
        "one sample passes alone"
    )


@pytest.mark.parametrize("packing", ["tree", "rows"])
def test_any_budget_keeps_all_samples_in_order(packing):
    draw = random.Random(0)
    for _ in range(50):
        sizes, bundles, first = [draw.randint(1, 5) for _ in range(draw.randint(1, 6))], [], 0
        for size in sizes:
            completions = tuple((7,) * draw.randint(1, 30) for _ in range(size))
            samples, prompt = tuple(range(first, first + size)), (1,) * draw.randint(1, 30)
            bundles.append(Bundle(samples, (prompt, completions)))
            first += size
        unbound = indices(split_bundles(bundles, 5, None, packing))
        whole = [[bundles[g].samples for g in part] for part in ppo.split_groups(sizes, 5, range(len(sizes)))]
        assert unbound == whole, "without a budget groups stay whole, as before"
        tokens = draw.randint(1, 200)
        for part in (parts := split_bundles(bundles, 5, tokens, packing)):
            alone = len(part) == 1 and len(part[0].samples) == 1
            assert alone or count_tokens(part, packing) <= tokens
        assert [i for part in parts for bundle in part for i in bundle.samples] == list(range(first))


def gradients(learner):
    return {n: p.grad for role in (POLICY, CRITIC) for n, p in learner.parameters(role).items()}


def fail_at(learner, wanted):
    """The learner's forward passes of these numbers (from 1) find no memory; how many tokens each had."""
    forward, sizes = learner.network.forward, []

    def run(packed, role, *rest, **options):
        sizes.append(packed.input_ids_BL.numel())
        if len(sizes) in wanted:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(packed, role, *rest, **options)

    learner.network.forward = run
    return sizes


@pytest.mark.parametrize("packing", ["tree", "rows"])
@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_out_of_memory_halves_the_budget_and_gives_the_same_gradients(tiny_random_model, packing, failing):
    found = []
    for fails in ((), (failing,)):
        learner = make(tiny_random_model[0], critic="lora", packing=packing, micro_batch=4)
        data = gather_experience(learner, turn_groups())
        sizes = fail_at(learner, fails)  # two passes, each of policy and critic
        logged = accumulate_minibatch(learner, data, [0, 1])
        found.append((logged, gradients(learner)))
    (plain, want), (again, got) = found
    assert again == pytest.approx(plain, abs=1e-5)
    for name, gradient in want.items():
        assert torch.allclose(gradient, got[name], atol=1e-5), name
    assert learner.budget.halved == sizes[failing - 1] // 2 and len(sizes) > failing + 4, "in smaller passes"
    assert update(learner, data, seed=0, scales=[1.0])["out_of_memory"] == 1


def test_memory_that_runs_out_before_the_update(tiny_random_model):
    plain, learner = (make(tiny_random_model[0], critic="lora") for _ in range(2))
    fail_at(learner, (2,))
    want, got = gather_experience(plain, turn_groups()), gather_experience(learner, turn_groups())
    assert torch.allclose(want.values, got.values, atol=1e-5) and learner.budget.halved
    assert torch.allclose(want.reference, got.reference, atol=1e-5)


def test_memory_that_runs_out_twice_is_an_error_with_a_remedy(tiny_random_model):
    learner = make(tiny_random_model[0])
    data = gather_experience(learner, turn_groups())
    fail_at(learner, (1, 2))
    message = r"ppo.pass_tokens: a pass of \d+ tokens does not fit .* set it lower"
    with pytest.raises(MemoryError, match=message):
        accumulate_minibatch(learner, data, [0, 1])


def test_out_of_memory_is_in_the_metrics_and_the_record(tmp_path):
    made = trainer(tmp_path)
    fail_at(made.learner, (5,))
    rows = made.train(until=1, say=quiet)
    assert rows[0]["out_of_memory"] == 1 and rows[0]["pass_tokens"] == made.learner.budget.halved
    assert made.run.record["out_of_memory_ppo"] == {"pass_tokens": rows[0]["pass_tokens"]}
    plain = trainer(tmp_path / "plain").train(until=1, say=quiet)
    assert "out_of_memory" not in plain[0] and "pass_tokens" not in plain[0], "a CPU has no bound"


def test_a_set_budget_bounds_every_pass(tiny_random_model):
    learner, free = make(tiny_random_model[0], pass_tokens=7, packing="tree"), make(tiny_random_model[0])
    sizes = fail_at(learner, ())
    data = gather_experience(learner, turn_groups())
    assert max(sizes) <= 7
    logged = update(learner, data, seed=0, scales=[1.0])
    assert logged["pass_tokens"] == 7 and logged["out_of_memory"] == 0
    other = update(free, gather_experience(free, turn_groups()), seed=0, scales=[1.0])
    assert logged["policy_loss"] == pytest.approx(other["policy_loss"], abs=1e-5)


def test_the_budget_follows_from_free_memory(tiny_random_model, monkeypatch):
    cfg = settings.load_config("paper")
    shape = memory.KNOWN["Qwen/Qwen2.5-3B-Instruct"]

    replies = tuple((i,) * cfg.rollout.max_new_tokens for i in range(4))
    longest = (9,) * cfg.rollout.max_prompt_tokens, replies
    load = memory.weigh([longest], "tree")

    def needs(tokens):
        return sum(memory.predict_pass(shape, cfg, load.resize(tokens)).values())

    for gib in (10, 40):
        tokens = memory.fit_tokens(shape, cfg, gib * 2**30)
        assert needs(tokens) <= memory.MARGIN * gib * 2**30 < needs(tokens + 1)
    assert memory.fit_tokens(shape, cfg, -1) == 1
    monkeypatch.setattr(passes, "free_bytes", lambda device: 40 * 2**20)
    learner = make(tiny_random_model[0])
    gather_experience(learner, turn_groups())
    own = memory.shape_from(learner.model.config.to_dict())
    left = 40 * 2**20 - learner._bytes_to_come()
    assert learner.budget.tokens == memory.fit_tokens(own, learner.cfg, left) > 1


def test_a_model_of_unknown_shape_asks_for_a_number(tiny_random_model, monkeypatch):
    monkeypatch.setattr(passes, "free_bytes", lambda device: 40 * 2**20)
    learner = make(tiny_random_model[0])
    monkeypatch.setattr(learner.model.config, "to_dict", lambda: {"n_layer": 12})
    with pytest.raises(InputError, match="ppo.pass_tokens: .* a qwen2 model, .* has no .*; set a number"):
        gather_experience(learner, turn_groups())


def checkpointed(learner):
    learner.network._checkpoint_layers()
    learner.network.train()
    return learner


@pytest.mark.parametrize("critic", ["head", "lora"])
@pytest.mark.parametrize("new", [make, make_full])
def test_checkpointing_gives_the_same_gradients_with_each_roles_own_adapter(tiny_random_model, critic, new):
    plain, learner = (new(tiny_random_model[0], critic=critic, packing="tree") for _ in range(2))
    data = gather_experience(plain, turn_groups())
    checkpointed(learner)
    runs = []
    for layer in learner.network.modules():
        if type(layer).__name__ == "Qwen2DecoderLayer":
            layer.register_forward_pre_hook(lambda *_: runs.append(1))
    for one in (plain, learner):
        one.network.train()
        accumulate_minibatch(one, data, [0, 1])
    networks = 1 if critic == "head" else 2
    assert len(runs) == 2 * 2 * networks, "each of the two layers runs once more"
    for name, gradient in gradients(plain).items():
        assert torch.equal(gradient, gradients(learner)[name]), name


def test_a_critics_graph_is_run_back_with_its_own_adapter_whenever_that_is(tiny_random_model):
    plain, learner = (make(tiny_random_model[0], critic="lora") for _ in range(2))
    for one in (plain, checkpointed(learner)):
        values = one.network(one.pack(GROUPS), CRITIC)
        one.network(one.pack(GROUPS), POLICY)
        values.sum().backward()  # the policy's adapter is active by now
    for name, gradient in gradients(plain).items():
        other = gradients(learner)[name]
        assert (gradient is None and other is None) or torch.equal(gradient, other), name


def test_the_backward_pass_keeps_no_logits(tiny_random_model):
    learner, kept = checkpointed(make(tiny_random_model[0])), []
    vocabulary = learner.model.config.vocab_size
    groups = [((5, 6), (tuple(range(3, 200)),) * 3)]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        learner.network(learner.pack(groups), POLICY).logprobs_ST.sum().backward()
    assert kept and not any(shape[-1:] == (vocabulary,) for shape in kept)


def test_matmul_precision_is_a_setting(tmp_path):
    try:
        for precision in ("high", "highest"):
            runs.open_run("smoke", 0, tmp_path / precision, [f"run.matmul_precision={precision}"])
            assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
    assert settings.load_config("mini").run.matmul_precision == "highest"
    assert settings.load_config("paper").run.matmul_precision == "high"


@pytest.mark.parametrize("scale", ["paper", "released"])
def test_checkpointing_is_on_at_full_scale(scale):
    cfg = settings.load_config(scale)
    assert cfg.policy.gradient_checkpointing and cfg.ppo.pass_tokens is None
    off = settings.load_config(scale, ["policy.gradient_checkpointing=false"])
    shape = memory.KNOWN[cfg.policy.model]
    needs, without = (sum(memory.predict(shape, c, 4096, 4096).values()) for c in (cfg, off))
    assert needs < 0.5 * without
