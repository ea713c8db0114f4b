"""Trees of tokens against the plain path, one sample a row: places by hand, who sees whom, losses and
gradients."""

import copy
from unittest.mock import patch

import pytest
import torch
from conftest import random_model
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st
from test_learner import settings
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from rlpa_lib.rlpa import tree as trees
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.rlpa.networks import CRITIC, POLICY, REFERENCE, _score_tokens
from rlpa_lib.rlpa.packing import feed, pack_groups
from rlpa_lib.rlpa.passes import Bundle, count_tokens

KINDS = st.sampled_from(["turns", "dialogues", "sliding"])


@st.composite
def talks(draw, letters=5):
    """Groups as rollouts give them: dialogues of K turns, N samples a turn, of so few different tokens that
    beginnings are alike; blocks that samples share, replies of one token, samples that are the same."""

    def run(low, high):
        return tuple(draw(st.lists(st.integers(3, 2 + letters), min_size=low, max_size=high)))

    kind, n, groups, system = draw(KINDS), draw(st.integers(1, 4)), [], run(1, 6)
    for _ in range(draw(st.integers(1, 3))):
        past, kept = [], ()
        for _ in range(draw(st.integers(1, 3)) if kind != "turns" else 1):
            past.append(run(1, 4))
            shown = past[-2:] if kind == "sliding" else past  # a window moves on
            prompt = (*system, *sum(shown, ()), *kept)
            blocks = [run(0, 5) for _ in range(2)]
            samples = tuple((*draw(st.sampled_from(blocks)), *run(0, 4), 2) for _ in range(n))
            groups.append((prompt, samples))
            kept = draw(st.sampled_from(samples))
    return groups


def fewest_places(sequences):
    return len({sequence[:end] for sequence in sequences for end in range(1, len(sequence) + 1)})


def who_sees_whom(blocks, length):
    seen, spans, first = torch.zeros(length, length, dtype=torch.bool), iter(blocks.spans), 0
    for queries, n_keys, mask in zip(blocks.queries, blocks.keys, blocks.masks, strict=True):
        keys = []
        while len(keys) < n_keys:
            keys += range(*next(spans))
        shown = torch.ones(queries, n_keys).tril() > 0 if mask is None else mask[0, 0] == 0
        assert mask is None or mask.stride(-2) % 8 == 0, "as a GPU's kernel wants it"
        seen[torch.arange(first, first + queries)[:, None], torch.tensor(keys)] = shown
        first += queries
    assert first == length
    return seen


def test_two_turns_by_hand():
    # S = 5, u1 = 6, p1 = 7 8, r1 = 9, r2 = 10; the second turn goes on with p1 r1 and u2 = 11
    groups = [((5, 6), ((7, 8, 9, 2), (7, 8, 10, 2))), ((5, 6, 7, 8, 9, 2, 11), ((12, 2), (13, 2)))]
    tree = trees.grow(feed(groups))
    assert tree.tokens == [5, 6, 7, 8, 9, 2, 11, 12, 13, 10]
    assert tree.positions == [0, 1, 2, 3, 4, 5, 6, 7, 7, 4]
    assert tree.chains == [(0, 4), (4, 7), (7, 8), (8, 9), (9, 10)] and tree.above == [-1, 0, 1, 1, 0]
    assert tree.subtrees() == [(0, 10), (4, 9), (7, 8), (8, 9), (9, 10)]
    packed = pack_groups(groups, "tree", torch.float32)
    assert packed.input_ids_BL.tolist() == [tree.tokens]
    # 7 and 8 are predicted once for both samples of turn 1; 9 and 10 from the same place
    assert packed.places_U.tolist() == [1, 2, 3, 4, 3, 9, 6, 7, 6, 8]
    assert packed.targets_U.tolist() == [7, 8, 9, 2, 10, 2, 12, 2, 13, 2]
    assert packed.steps_N.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6, 7, 8, 9]
    bundles = [Bundle((0, 1), groups[0]), Bundle((2, 3), groups[1])]
    assert count_tokens(bundles, "tree") == 10 and count_tokens(bundles, "rows") == 4 * 8


@pytest.mark.parametrize(("call", "ways"), [(0, 4), (10**9, 1)])
def test_blocks_by_hand(call, ways):
    """A prompt of 3 tokens and samples of 2: where beginning costs nothing no score is wasted."""
    tree = trees.grow([(1, 1, 1, 2, 2), (1, 1, 1, 3, 3), (1, 1, 1, 4, 4)])
    with patch.multiple(trees, CALL=call, KEY=0):
        blocks = trees.cut(tree)
    assert len(blocks) == ways and sum(block.size[0] for block in blocks) == 9
    assert [block.causal for block in blocks] == [ways > 1] + [False] * (ways - 1)
    if ways > 1:
        assert [block.keys for block in blocks] == [[(0, 3)], [(0, 5)], [(0, 3), (5, 7)], [(0, 3), (7, 9)]]


@given(talks(letters=3), st.sampled_from([0, 40, 4096]))
@tries(max_examples=80, deadline=None)
def test_each_token_sees_its_own_sequence_so_far(groups, call):
    fed = feed(groups)
    with patch.object(trees, "CALL", call):
        tree = trees.grow(fed)
        blocks = trees.plan_attention(tree, torch.float32, "cpu")
    assert len(tree.tokens) == trees.count_places(fed) == fewest_places(fed)
    wanted = torch.zeros(len(tree.tokens), len(tree.tokens), dtype=torch.bool)
    for sequence, path in zip(fed, tree.paths, strict=True):
        assert [tree.tokens[place] for place in path] == list(sequence)
        assert [tree.positions[place] for place in path] == list(range(len(sequence)))
        for i, place in enumerate(path):
            wanted[place, path[: i + 1]] = True
    assert torch.equal(who_sees_whom(blocks, len(tree.tokens)), wanted)


def plain(learner, role, samples):
    """Log-probabilities or values [S, T] by a plain causal forward pass, a padded row a sample."""
    rows = pad_sequence([torch.tensor([*p, *c]) for p, c in samples], batch_first=True)
    longest = max(len(completion) for _, completion in samples)
    with learner.network.activate(role) as model:
        states = model.get_decoder()(input_ids=rows, use_cache=False).last_hidden_state
        if role == CRITIC:
            found = learner.network.head(states)
        else:
            logits = model.get_output_embeddings()(states[:, :-1]) / learner.network.temperature
            found = torch.log_softmax(logits, -1).gather(-1, rows[:, 1:, None])[..., 0]
    cut = [found[i, len(p) - 1 : len(p) + len(c) - 1] for i, (p, c) in enumerate(samples)]
    return torch.stack([functional.pad(row, (0, longest - len(row))) for row in cut])


def gradient(learner, role):
    parts = [p.grad.flatten() for p in learner.parameters(role).values()]
    for optimizer in learner.optimizers.values():
        optimizer.zero_grad()
    return torch.cat(parts).double()


def disturbed():
    torch.set_num_threads(1)
    made = Learner(random_model(), settings(critic="lora", packing="tree"), seed=3)
    made.network.temperature = 0.9
    torch.manual_seed(7)
    for role in (POLICY, CRITIC):
        for parameter in made.parameters(role).values():
            parameter.data += 0.05 * torch.randn_like(parameter)
    made.network.train()
    return made


@pytest.fixture(scope="module", params=[True, False], ids=["checkpointed", "kept"])
def learners(request):
    """One for trees and, with the same weights, one for plain rows."""
    ours, other = disturbed(), disturbed()
    if request.param:
        ours.network._checkpoint_layers()
    return ours, other


@given(groups=talks(), call=st.sampled_from([0, 4096]), seed=st.integers(0, 99))
@tries(max_examples=15, deadline=None)
def test_losses_and_gradients_are_those_of_plain_rows(learners, groups, call, seed):
    ours, other = learners
    samples = [(prompt, completion) for prompt, completions in groups for completion in completions]
    uneven = torch.randn(len(samples), 20, generator=torch.Generator().manual_seed(seed))
    with patch.object(trees, "CALL", call):
        packed = ours.pack(groups)
    for role in (POLICY, CRITIC, REFERENCE):
        with torch.set_grad_enabled(role != REFERENCE):
            found, wanted = ours.network(packed, role), plain(other, role, samples)
        found = found if role == CRITIC else found.logprobs_ST
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5), role
        if role == REFERENCE:
            continue
        # uneven weights and a curved loss, as credit and clipping make them
        got, want = (
            (uneven[:, : x.shape[1]] * x + x.square() / 9).sum() / len(samples) for x in (found, wanted)
        )
        assert got.item() == pytest.approx(want.item(), rel=1e-5, abs=1e-5)
        ours.network.backward(got, role)
        other.network.backward(want, role)
        got, want = gradient(ours, role), gradient(other, role)
        assert (got - want).norm() <= 1e-5 * want.norm() + 1e-7, role


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_frozen_output_layers_gradient(dtype):
    """Against autograd in fp64, also of a token that is all but certain; entropies, and nothing kept."""
    torch.manual_seed(0)
    output, targets = torch.nn.Linear(16, 300, bias=False), torch.randint(300, (150,))
    output.weight.data *= 5
    hidden, pulls = torch.randn(150, 16), torch.randn(150)
    hidden[0] = 3 * output.weight.data[targets[0]]
    output, hidden = output.requires_grad_(False).to(dtype), hidden.to(dtype).requires_grad_()
    exact = hidden.detach().double().requires_grad_()
    logprobs = functional.log_softmax(exact @ output.weight.double().T / 0.8, -1)
    want = logprobs.gather(1, targets[:, None])[:, 0]
    (want * pulls).sum().backward()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        got, entropy = _score_tokens(output, hidden, targets, 0.8, False)
    assert (150, 16) in kept and not any(300 in shape for shape in kept) and not entropy.requires_grad
    (got * pulls).sum().backward()
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.2}
    assert torch.allclose(got.double(), want, **close)
    assert torch.allclose(entropy.double(), -(logprobs.exp() * logprobs).sum(1), **close)
    wrong = (hidden.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert wrong < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_whole_dialogues_pass_together_before_the_update_and_minibatches_stay_theirs(tuning):
    model = copy.deepcopy(random_model())
    cfg = settings(packing="tree", minibatch=8)
    cfg = cfg.model_copy(update={
        "ppo": cfg.ppo.model_copy(update={"update_every": "dialogue"}),
        "policy": cfg.policy.model_copy(update={"tuning": tuning}),
        "rollout": cfg.rollout.model_copy(update={"turns": 3}),
    })
    made = Learner(model, cfg, seed=0)
    past, groups = {"a": (5, 6), "b": (5, 7)}, []
    for turn in range(3):  # the turns of two dialogues side by side, as a cohort plays them
        for name in past:
            past[name] = (*past[name], 10 + turn, 20)
            groups.append((past[name], tuple((30 + i, 2) for i in range(4))))
    passes = [samples for samples, _, _ in made.passes(groups, range(6), trained=False)]
    turns_of_a = [*range(4), *range(8, 12), *range(16, 20)]
    assert passes == [turns_of_a, [sample + 4 for sample in turns_of_a]]
    sizes = [packed.input_ids_BL.numel() for _, packed, _ in made.passes(groups, range(6), trained=False)]
    assert sizes == [8 + 3 * 4] * 2, "prompts are 8 tokens once, each sample one"
    trained = [samples for samples, _, _ in made.passes(groups, [5, 0])]
    assert trained == [[0, 1, 2, 3, 20, 21, 22, 23]], "what shares a step is what was asked for"
