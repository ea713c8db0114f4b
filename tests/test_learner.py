"""Packing, and the three roles on one backbone."""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from rlpa_lib.agents.local_policy import LocalPolicy
from rlpa_lib.dialogue.judging import JudgeFailed
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.protocols import Completion
from rlpa_lib.rlpa import ppo
from rlpa_lib.rlpa.experience import accumulate_minibatch, gather_experience, update
from rlpa_lib.rlpa.learner import Learner, sample_indices
from rlpa_lib.rlpa.networks import CRITIC, POLICY
from rlpa_lib.rlpa.packing import pack_groups, spread
from rlpa_lib.rlpa.rewards import Reward
from rlpa_lib.rlpa.rollout import Sample, TurnGroup
from rlpa_lib.settings.config import Config, InputError

GROUPS = [
    ((5, 6, 7, 8), ((9, 10, 2), (11, 2), (12, 13, 14, 15))),
    ((20, 21), ((22, 2), (2,), (23, 24, 25))),
]


def settings(**changes):
    """A config for the tiny model; `ppo` keys by name, `lora_dropout` apart."""
    ppo_keys = {"minibatch": 8, "lr": 1e-2, "critic_lr": 1e-2, "packing": "rows", **changes}
    return Config.model_validate(
        {"policy": {"lora_rank": 4, "lora_alpha": 8}, "rollout": {"users": 8, "samples": 4}, "ppo": ppo_keys}
    )


def make(model, **changes):
    learner = Learner(copy.deepcopy(model), settings(**changes), seed=3)
    torch.manual_seed(7)
    for role in (POLICY, CRITIC):  # as if already trained: adapters that do something
        for parameter in learner.parameters(role).values():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return learner


def turn_groups(groups=GROUPS):
    made = []
    for number, (prompt, completions) in enumerate(groups):
        samples = []
        for i, tokens in enumerate(completions):
            reward = Reward(format_ok=True, total=0.5 * i)
            completion = Completion(
                prompt, tokens, tuple(-2.0 - 0.1 * t for t in range(len(tokens))), "", True
            )
            samples.append(Sample(completion, Reply(Profile(), "x", True), reward))
        made.append(TurnGroup(f"d{number}", 1, prompt, tuple(samples), 0))
    return made


def test_tree_packing_by_hand():
    packed = pack_groups([((5, 6), ((7, 8, 2), (9, 2)))], "tree", torch.float32)
    # the last token of a completion is only predicted
    assert packed.input_ids_BL.tolist() == [[5, 6, 7, 8, 9]]
    assert packed.position_ids_BL.tolist() == [[0, 1, 2, 3, 2]]
    assert packed.rows_U.tolist() == [0] * 5 and packed.places_U.tolist() == [1, 2, 3, 1, 4]
    assert packed.targets_U.tolist() == [7, 8, 2, 9, 2] and packed.kept_N.tolist() == [0, 1, 2, 3, 4]
    assert packed.steps_N.tolist() == [0, 1, 2, 3, 4]
    assert packed.keep_ST.tolist() == [[True, True, True], [True, True, False]]
    (mask,) = packed.tree.masks
    seen = (mask[0, 0] == 0).int().tolist()
    assert seen == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]


def test_row_packing_by_hand():
    packed = pack_groups([((5, 6), ((7, 8, 2), (9, 2)))], "rows", torch.float32)
    assert packed.input_ids_BL.tolist() == [[5, 6, 7, 8], [5, 6, 9, 0]] and packed.tree is None
    assert packed.rows_U.tolist() == [0, 0, 0, 1, 1] and packed.places_U.tolist() == [1, 2, 3, 1, 2]


def test_a_short_sample_before_a_long_one_is_put_in_its_places():
    packed = pack_groups([((5, 6), ((9, 2), (7, 8, 2)))], "rows", torch.float32)
    assert packed.kept_N.tolist() == [0, 1, 3, 4, 5]
    assert spread(torch.arange(1.0, 6.0), packed).tolist() == [[1, 2, 0], [3, 4, 5]]


def test_policy_logprobs_are_those_of_a_plain_forward_pass(tiny_random_model):
    learner = make(tiny_random_model[0])
    for packing in ("tree", "rows"):
        packed = pack_groups(GROUPS, packing, torch.float32)
        with torch.no_grad():
            logprobs = learner.network(packed, POLICY).logprobs_ST
        row = 0
        for prompt, completions in GROUPS:
            for completion in completions:
                ids = torch.tensor([[*prompt, *completion]])
                with torch.no_grad():
                    full = torch.log_softmax(learner.model(ids).logits[0, len(prompt) - 1 : -1], -1)
                want = full.gather(-1, torch.tensor(completion)[:, None])[:, 0]
                assert torch.allclose(logprobs[row, : len(completion)], want, atol=1e-5)
                assert not logprobs[row, len(completion) :].any()
                row += 1


@pytest.mark.parametrize("critic", ["head", "lora"])
def test_tree_and_rows_give_the_same_losses_and_gradients(tiny_random_model, critic):
    found = []
    for packing in ("rows", "tree"):
        learner = make(tiny_random_model[0], critic=critic, packing=packing)
        data = gather_experience(learner, turn_groups())
        logged = accumulate_minibatch(learner, data, [0, 1])
        gradients = {n: p.grad for role in (POLICY, CRITIC) for n, p in learner.parameters(role).items()}
        found.append((logged, gradients))
    (rows, row_gradients), (tree, tree_gradients) = found
    assert rows == pytest.approx(tree, abs=1e-5)
    assert row_gradients.keys() == tree_gradients.keys() and all(
        g is not None for g in row_gradients.values()
    )
    for name, gradient in row_gradients.items():
        assert torch.allclose(gradient, tree_gradients[name], atol=1e-5), name
    assert any(g.abs().max() > 1e-3 for n, g in row_gradients.items() if POLICY in n)


def test_reference_is_the_model_as_it_came(tiny_random_model):
    model, _ = tiny_random_model
    untouched = copy.deepcopy(model)
    learner = make(model, critic="lora")
    packed = pack_groups(GROUPS, "tree", torch.float32)
    with torch.no_grad():
        reference, policy = learner.network(packed, "reference"), learner.network(packed, POLICY)
        ids = torch.tensor([[*GROUPS[0][0], *GROUPS[0][1][0]]])
        want = torch.log_softmax(untouched(ids).logits[0, 3:-1], -1).gather(-1, ids[0, 4:, None])[:, 0]
    assert torch.allclose(reference.logprobs_ST[0, :3], want, atol=1e-5)
    assert not torch.allclose(reference.logprobs_ST, policy.logprobs_ST, atol=1e-2)
    update(learner, gather_experience(learner, turn_groups()), seed=0, scales=[1.0])
    with torch.no_grad():
        assert torch.equal(learner.network(packed, "reference").logprobs_ST, reference.logprobs_ST)
        assert not torch.equal(learner.network(packed, POLICY).logprobs_ST, policy.logprobs_ST)


@pytest.mark.parametrize("critic", ["head", "lora"])
def test_there_is_one_backbone(tiny_random_model, critic):
    model, _ = tiny_random_model
    own = {p.data_ptr(): p.numel() for p in model.parameters()}
    learner = Learner(model, settings(critic=critic), seed=0)
    roles = {p.data_ptr() for role in (POLICY, CRITIC) for p in learner.parameters(role).values()}
    everything = {
        p.data_ptr(): p.numel() for p in [*learner.model.parameters(), *learner.network.head.parameters()]
    }
    assert everything.keys() - roles == own.keys(), (
        "every weight is the backbone's, an adapter's or the head's"
    )
    adapter = sum(p.numel() for n, p in learner.parameters(POLICY).items())
    copies = 2 if critic == "lora" else 1
    assert sum(everything.values()) == sum(own.values()) + copies * adapter + sum(
        p.numel() for p in learner.network.head.parameters()
    )
    assert roles.isdisjoint(own) and not any(
        p.requires_grad for p in model.parameters() if p.data_ptr() in own
    )


@pytest.mark.parametrize("critic", ["head", "lora"])
def test_an_update_trains_both_and_neither_the_other(tiny_random_model, critic):
    learner = make(tiny_random_model[0], critic=critic)
    before = {r: {n: p.clone() for n, p in learner.parameters(r).items()} for r in (POLICY, CRITIC)}
    logged = update(learner, gather_experience(learner, turn_groups()), seed=0, scales=[1.0])
    for role in (POLICY, CRITIC):
        assert all(not torch.equal(before[role][n], p) for n, p in learner.parameters(role).items()), role
    assert logged["optimizer_steps"] == 1 and logged["value_loss"] > 0 and logged["sampler_gap"] > 0


def test_experience_by_the_functions_it_is_made_of(tiny_random_model):
    learner = make(tiny_random_model[0], kl_coef=0.1, lam=0.9, gamma=0.8, advantage_norm="none")
    data = gather_experience(learner, turn_groups())
    assert data.groups == GROUPS and sample_indices(GROUPS, [1]) == [3, 4, 5]
    size = len(GROUPS[0][1][2])  # third sample of the first group: reward 1.0
    rewards = -0.1 * (data.old_logprobs[2, :size] - data.reference[2, :size])
    rewards[-1] += 1.0
    want = ppo.gae(rewards, data.values[2, :size], 0.8, 0.9)
    assert torch.allclose(data.advantages[2, :size], want, atol=1e-6)
    assert torch.allclose(data.returns[2, :size], want + data.values[2, :size], atol=1e-6)
    assert data.values[data.keep].abs().max() > 0


def test_normalising_by_turn_or_over_all(tiny_random_model):
    groups = turn_groups()
    groups[1] = TurnGroup(groups[1].dialogue_id, 2, groups[1].prompt_ids, groups[1].samples, 0)
    by_turn = gather_experience(make(tiny_random_model[0], advantage_norm="rollout"), groups)
    over_all = gather_experience(make(tiny_random_model[0], advantage_norm="cohort"), groups)
    for rows in (slice(0, 3), slice(3, 6)):
        assert abs(by_turn.advantages[rows][by_turn.keep[rows]].mean()) < 1e-5
        assert abs(over_all.advantages[rows][over_all.keep[rows]].mean()) > 1e-3
    assert abs(over_all.advantages[over_all.keep].mean()) < 1e-5


def test_samples_without_a_reward_do_not_train(tiny_random_model):
    groups = turn_groups()
    lost = Sample(groups[0].samples[1].completion, groups[0].samples[1].reply, None)
    kept = TurnGroup("d0", 1, groups[0].prompt_ids, (groups[0].samples[0], lost, groups[0].samples[2]), 0)
    empty = TurnGroup("d1", 1, groups[1].prompt_ids, (lost,), 0)
    data = gather_experience(make(tiny_random_model[0]), [kept, empty])
    assert data.groups == [(GROUPS[0][0], (GROUPS[0][1][0], GROUPS[0][1][2]))]


def test_an_update_without_a_reward_or_without_tokens_is_refused_by_name(tiny_random_model):
    learner, groups = make(tiny_random_model[0]), turn_groups()
    silent = [replace(g, samples=tuple(replace(s, reward=None) for s in g.samples)) for g in groups]
    with pytest.raises(JudgeFailed, match="no readable answer to any of the .* samples"):
        gather_experience(learner, silent)
    # as a chat endpoint gives it
    bare = replace(groups[0].samples[0], completion=Completion((), (), (), "Hi", True))
    with pytest.raises(InputError, match="policy.kind: .*no token ids"):
        gather_experience(learner, [replace(groups[0], samples=(bare, *groups[0].samples[1:])), *groups[1:]])


def test_small_forward_passes_give_the_same_step(tiny_random_model):
    weights = []
    for micro in (None, 4):
        learner = make(tiny_random_model[0], micro_batch=micro)
        update(learner, gather_experience(learner, turn_groups()), seed=0, scales=[1.0])
        weights.append(torch.cat([p.flatten() for p in learner.parameters(POLICY).values()]))
    assert torch.allclose(*weights, atol=1e-4)


@pytest.mark.parametrize("active", ["policy", "none"])
def test_sampling_with_merged_adapters_is_sampling_with_adapters(tiny_random_model, monkeypatch, active):
    model, tokenizer = tiny_random_model
    learner = make(model, critic="lora")
    before = {n: p.clone() for n, p in learner.model.named_parameters()}
    asked = {"seed": 0, "temperature": 1.0, "max_new_tokens": 20}
    talk = [[{"role": "user", "content": "Hello"}]]

    def sample():
        with learner.model.disable_adapter() if active == "none" else nullcontext():
            return LocalPolicy(learner.model, tokenizer).generate(talk, 4, **asked)[0]

    merged = sample()
    assert all(torch.equal(before[n], p) for n, p in learner.model.named_parameters())
    monkeypatch.setattr("rlpa_lib.agents.local_policy.merged_adapters", lambda _: nullcontext())
    for one, other in zip(merged, sample(), strict=True):
        assert one.token_ids == other.token_ids and one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    base = LocalPolicy(copy.deepcopy(model), tokenizer).generate(talk, 4, **asked)[0]
    assert ([c.token_ids for c in base] == [c.token_ids for c in merged]) == (active == "none")


def make_full(model, **changes):
    cfg = settings(**changes)
    return Learner(
        copy.deepcopy(model),
        cfg.model_copy(update={"policy": cfg.policy.model_copy(update={"tuning": "full"})}),
        seed=3,
    )


@pytest.mark.parametrize("critic", ["head", "lora"])
def test_full_tuning_moves_all_weights_and_keeps_its_start_as_the_reference(tiny_random_model, critic):
    model, _ = tiny_random_model
    learner = make_full(model, critic=critic, lr=1e-3)
    assert sum(p.numel() for p in learner.parameters(POLICY).values()) == sum(
        p.numel() for p in model.parameters()
    )
    packed = learner.pack(GROUPS)
    with torch.no_grad():
        start = learner.network(packed, "reference").logprobs_ST
        assert torch.equal(learner.network(packed, POLICY).logprobs_ST, start)
    before = {n: p.clone() for n, p in learner.parameters(POLICY).items()}
    update(learner, gather_experience(learner, turn_groups()), seed=0, scales=[1.0])
    assert all(not torch.equal(before[n], p) for n, p in learner.parameters(POLICY).items())
    with torch.no_grad():
        assert torch.equal(learner.network(packed, "reference").logprobs_ST, start)
        assert not torch.allclose(learner.network(packed, POLICY).logprobs_ST, start, atol=1e-3)


def test_full_tuning_keeps_small_steps_that_bf16_would_lose(tiny_random_model):
    model, _ = tiny_random_model
    learner = make_full(copy.deepcopy(model).bfloat16(), lr=1e-6)
    assert {p.dtype for p in learner.parameters(POLICY).values()} == {torch.float32}
    assert {p.dtype for p in learner.network.start.parameters()} == {torch.bfloat16}
    before = {n: p.clone() for n, p in learner.parameters(POLICY).items()}
    update(learner, gather_experience(learner, turn_groups()), seed=0, scales=[1.0])
    steps = torch.cat([(p - before[n]).abs().flatten() for n, p in learner.parameters(POLICY).items()])
    assert 0 < steps.max() < 2e-6 and (steps > 0).float().mean() > 0.2
    rounded = torch.cat(
        [(p.bfloat16() != before[n].bfloat16()).flatten() for n, p in learner.parameters(POLICY).items()]
    )
    assert rounded.float().mean() < 0.01


@pytest.fixture
def warm_adapter(tiny_random_model, tmp_path):
    """Folder of an adapter that does something."""
    learner = make(tiny_random_model[0])
    return learner.save_policy(tmp_path / "warm"), learner


@pytest.mark.parametrize(("tuning", "critic"), [("lora", "head"), ("lora", "lora"), ("full", "head")])
def test_a_warm_start_is_where_training_begins_and_the_reference(
    tiny_random_model, warm_adapter, tuning, critic
):
    model, _ = tiny_random_model
    folder, former = warm_adapter
    cfg = settings(critic=critic)
    cfg = cfg.model_copy(
        update={"policy": cfg.policy.model_copy(update={"adapter": str(folder), "tuning": tuning})}
    )
    learner = Learner(copy.deepcopy(model), cfg, seed=9)
    packed = learner.pack(GROUPS)
    with torch.no_grad():
        want, base = (former.network(packed, role).logprobs_ST for role in (POLICY, "reference"))
        for role in (POLICY, "reference"):
            assert torch.allclose(learner.network(packed, role).logprobs_ST, want, atol=1e-5)
    assert not torch.allclose(want, base, atol=1e-2)
    trained = {n for role in (POLICY, CRITIC) for n in learner.parameters(role)}
    assert not any(".reference." in n for n in trained)
    update(learner, gather_experience(learner, turn_groups()), seed=0, scales=[1.0])
    with torch.no_grad():
        assert torch.allclose(learner.network(packed, "reference").logprobs_ST, want, atol=1e-5)
        assert not torch.allclose(learner.network(packed, POLICY).logprobs_ST, want, atol=1e-3)
    if tuning == "lora":
        backbone = sum(p.numel() for p in model.parameters())
        adapters = {
            n.split(".lora_")[1].split(".")[1] for n, _ in learner.model.named_parameters() if ".lora_" in n
        }
        assert adapters == {"policy", "reference"} | ({"critic"} if critic == "lora" else set())
        assert sum(p.numel() for n, p in learner.model.named_parameters() if ".lora_" not in n) == backbone


def test_a_warm_start_that_does_not_fit_is_refused(tiny_random_model, warm_adapter, tmp_path):
    folder, _ = warm_adapter
    missing, other_rank = {"adapter": str(tmp_path / "none")}, {"adapter": str(folder), "lora_rank": 8}
    for changes, message in ((missing, "adapter_config.json"), (other_rank, "lora_rank is 8")):
        cfg = settings()
        cfg = cfg.model_copy(update={"policy": cfg.policy.model_copy(update=changes)})
        with pytest.raises(InputError, match=message):
            Learner(tiny_random_model[0], cfg, seed=0)


def test_a_warm_started_policy_is_saved_alone(tiny_random_model, warm_adapter, tmp_path):
    folder, _ = warm_adapter
    cfg = settings(critic="lora")
    cfg = cfg.model_copy(update={"policy": cfg.policy.model_copy(update={"adapter": str(folder)})})
    learner = Learner(copy.deepcopy(tiny_random_model[0]), cfg, seed=9)
    again = load_file(learner.save_policy(tmp_path / "again") / "adapter_model.safetensors")
    first = load_file(folder / "adapter_model.safetensors")
    assert again.keys() == first.keys() and all(torch.equal(again[n], first[n]) for n in first)


def test_the_critic_of_its_own_does_not_touch_the_policy(tiny_random_model):
    learner = make(tiny_random_model[0], critic="lora")
    packed = learner.pack(GROUPS)
    first = learner.network(packed, POLICY).logprobs_ST
    learner.network(packed, CRITIC).sum().backward()
    assert all(p.grad is None for p in learner.parameters(POLICY).values())
    assert all(p.grad is not None for p in learner.parameters(CRITIC).values())
    assert torch.equal(learner.network(packed, POLICY).logprobs_ST, first)
    first.sum().backward()  # the graph of a pass before the critic's can still be run back
    assert all(p.grad is not None for p in learner.parameters(POLICY).values())


def test_a_sampler_of_its_own_is_measured_and_corrected(tiny_random_model):
    learner = make(tiny_random_model[0], importance_cap=1.5, advantage_norm="none")
    packed = learner.pack(GROUPS)
    learner.network.eval()
    with torch.no_grad():
        own = learner.network(packed, POLICY).logprobs_ST
    # trainer minus sampler, by place in the reply
    groups, shifts = turn_groups(), torch.tensor([0.1, -0.2, 1.0, 0.0])
    told = []
    for g, group in enumerate(groups):
        rows = []
        for i, s in enumerate(group.samples):
            n = len(s.completion.token_ids)
            logprobs = tuple((own[3 * g + i, :n] - shifts[:n]).tolist())
            rows.append(replace(s, completion=replace(s.completion, logprobs=logprobs)))
        told.append(replace(group, samples=tuple(rows)))
    data = gather_experience(learner, told, elsewhere=True)
    assert torch.allclose(data.old_logprobs, own, atol=1e-5)
    assert data.weights[0, :3].tolist() == pytest.approx([math.exp(0.1), math.exp(-0.2), 1.5], abs=1e-4)
    n = data.keep.sum(0).tolist()
    assert data.gap["sampler_gap"] == pytest.approx((0.1 * n[0] + 0.2 * n[1] + 1.0 * n[2]) / sum(n), abs=1e-4)
    assert data.gap["sampler_max_ratio"] == pytest.approx(math.e, abs=1e-3)
    logged = update(learner, data, seed=0, scales=[0.0])
    assert logged["sampler_gap"] == data.gap["sampler_gap"]
    # at the first step every ratio to the old policy is 1, so the loss is the weighted mean advantage
    want = -float((data.weights * data.advantages)[data.keep].mean())
    assert logged["policy_loss"] == pytest.approx(want, abs=1e-4)
