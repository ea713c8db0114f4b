"""The gradients of one update against a slow, plain reference: one sample at a time, one whole forward pass
each, loops over tokens, fp32.

The reference shares no code with the library beyond the transformers model: low-rank weights are multiplied
out by hand, advantages are sums written out from their definitions. Axes: none, everything is a list.
"""

import copy

import pytest
import torch
from conftest import random_model
from torch.func import functional_call
from torch.nn import functional

from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.protocols import Completion
from rlpa_lib.rlpa import experience
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.rlpa.networks import CRITIC, POLICY
from rlpa_lib.rlpa.rewards import Reward
from rlpa_lib.rlpa.rollout import Sample, TurnGroup
from rlpa_lib.settings.config import Config

GAMMA, LAM, TURN_DISCOUNT, TURN_LAM, KL, CLIP, VALUE_CLIP = 0.97, 0.9, 0.8, 0.6, 0.05, 0.2, 0.02
# dialogue, turn, prompt, completions with their rewards (None: no readable verdict), the one that went on
TALK = [
    ("a", 1, (5, 6, 7, 8), [((9, 10, 2), 0.3), ((11, 2), 1.0), ((12, 13, 14, 15), 0.0)], 1),
    ("b", 1, (5, 6, 7, 8), [((20, 2), 0.8), ((21, 22, 23), 0.1), ((24, 25, 26, 2), 0.5)], 2),
    ("a", 2, (30, 31), [((32, 2), 1.4), ((2,), 0.2), ((33, 34, 35), 0.6)], 0),
    ("b", 2, (40, 41, 42, 43, 44), [((45, 46, 2), 0.9), ((47, 2), None), ((48, 49, 50, 2), 1.7)], 2),
]


def config(scheme, tuning, critic, packing, limit):
    linked = {
        "turn_discount": TURN_DISCOUNT, "turn_lam": TURN_LAM, "update_every": "dialogue", "turn_limit": limit,
    }
    keys = {
        "gamma": GAMMA, "lam": LAM, "kl_coef": KL, "kl_estimator": "k3", "clip": CLIP,
        "value_clip": VALUE_CLIP, "minibatch": 12,
    }
    return Config.model_validate(
        {
            "policy": {"tuning": tuning, "lora_rank": 3, "lora_alpha": 6},
            "rollout": {"users": 8, "turns": 2, "samples": 3, "continuation": "random", "temperature": 0.9},
            "ppo": {
                **keys, "micro_batch": 6, "advantage_norm": "cohort", "packing": packing, "critic": critic,
            }
            | (linked if scheme == "discounted" else {}),
        }
    )


def disturbed(learner, size, seed):
    """Random steps in all trained weights, as if an update had come between."""
    torch.manual_seed(seed)
    for role in (POLICY, CRITIC):
        for parameter in learner.parameters(role).values():
            parameter.data += size * torch.randn_like(parameter)


def groups(logprobs):
    """The talk as rollouts give it; `logprobs` of every sample in order, the unjudged one too."""
    made, given = [], iter(logprobs)
    for dialogue, turn, prompt, samples, chosen in TALK:
        rows = []
        for tokens, total in samples:
            completion = Completion(prompt, tokens, tuple(next(given)), "", True)
            reward = None if total is None else Reward(format_ok=True, total=total)
            rows.append(Sample(completion, Reply(Profile(), "x", True), reward))
        made.append(TurnGroup(dialogue, turn, prompt, tuple(rows), chosen))
    return made


class Plain:
    """The reference's networks: whole weights by name, those that are trained as leaves of the graph."""

    def __init__(self, learner, start, tuning):
        self.model, self.temperature = copy.deepcopy(start), learner.cfg.rollout.temperature
        self.start = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.leaves = {
            role: {n: p.detach().clone().requires_grad_() for n, p in learner.parameters(role).items()}
            for role in (POLICY, CRITIC)
        }
        self.full = tuning == "full"
        self.scale = learner.cfg.policy.lora_alpha / learner.cfg.policy.lora_rank

    def weights(self, role):
        """All weights of a role: the starting ones, plus scale * B A where there is an adapter."""
        if role == POLICY and self.full:
            return self.leaves[POLICY]
        leaves, weights = self.leaves.get(role, {}), dict(self.start)
        for name, down in leaves.items():
            if f".lora_A.{role}." in name:
                up, plain = (
                    leaves[name.replace("lora_A", "lora_B")],
                    name.replace("base_model.model.", "").split(".lora_A")[0] + ".weight",
                )
                weights[plain] = weights[plain] + self.scale * up @ down
        return weights

    def states(self, role, ids):
        """Logits at all places, last hidden states, middle hidden states of one sequence."""
        out = functional_call(
            self.model, self.weights(role), (torch.tensor([ids]),), {"output_hidden_states": True}
        )
        return out.logits[0], out.hidden_states[-1][0], out.hidden_states[len(out.hidden_states) // 2][0]

    def logprobs(self, role, prompt, tokens):
        logits, _, _ = self.states(role, prompt + tokens)
        return [
            torch.log_softmax(logits[len(prompt) + i - 1] / self.temperature, -1)[t]
            for i, t in enumerate(tokens)
        ]

    def values(self, prompt, tokens):
        """Value before each token, and after the last."""
        head, adapter = self.leaves[CRITIC], any("lora" in name for name in self.leaves[CRITIC])
        with torch.set_grad_enabled(adapter):
            _, last, middle = self.states(CRITIC if adapter else "reference", prompt + tokens)
        made = []
        for i in range(len(tokens) + 1):
            x = (
                last[len(prompt) + i - 1]
                if adapter
                else torch.cat([last[len(prompt) + i - 1], middle[len(prompt) + i - 1]])
            )
            x = functional.layer_norm(x, x.shape, head["head.layers.0.weight"], head["head.layers.0.bias"])
            x = functional.gelu(head["head.layers.1.weight"] @ x + head["head.layers.1.bias"])
            made.append((head["head.layers.3.weight"] @ x + head["head.layers.3.bias"])[0])
        return made


def samples():
    """(dialogue, turn, prompt, tokens, reward, went on) of every sample with a reward."""
    return [
        (d, t, p, c, r, i == chosen)
        for d, t, p, rows, chosen in TALK
        for i, (c, r) in enumerate(rows)
        if r is not None
    ]


def plain_credit(rewards, values, scheme, limit):
    """Advantages, value targets and the target of the state after each sample's turn, by sums over what comes
    later."""
    rows, futures, worths = samples(), [], []
    chain = {(d, t): i for i, (d, t, _, _, _, went_on) in enumerate(rows) if went_on}

    def turn_advantage(i):
        span = GAMMA ** (len(rewards[i]) - 1)
        earned = sum(GAMMA**k * r for k, r in enumerate(rewards[i]))
        return earned + span * TURN_DISCOUNT * worth(i) - values[i][0]

    def worth(i):
        dialogue, turn, _, _, _, went_on = rows[i]
        following = chain.get((dialogue, turn + 1))
        if went_on and following is not None:
            return values[following][0] + TURN_LAM * turn_advantage(following)
        return 0.0 if turn == 2 and limit == "end" else values[i][-1]

    advantages = []
    for i, (dialogue, turn, _, tokens, _, went_on) in enumerate(rows):
        linked = scheme == "discounted"
        futures.append(TURN_DISCOUNT * worth(i) if linked else 0.0)
        worths.append(worth(i) if linked and went_on and (dialogue, turn + 1) in chain else None)
        n = len(tokens)
        r = rewards[i][:-1] + [rewards[i][-1] + futures[-1]]
        delta = [r[k] + (GAMMA * values[i][k + 1] if k + 1 < n else 0.0) - values[i][k] for k in range(n)]
        advantages.append([sum((GAMMA * LAM) ** (m - k) * delta[m] for m in range(k, n)) for k in range(n)])
    targets = [
        [a + v for a, v in zip(advantage, value, strict=False)]
        for advantage, value in zip(advantages, values, strict=True)
    ]
    return advantages, targets, worths


def plain_data(plain, scheme, limit):
    """Before the update: old log-probabilities, values, normalised advantages, targets."""
    with torch.no_grad():
        old = [[float(x) for x in plain.logprobs(POLICY, p, c)] for _, _, p, c, _, _ in samples()]
        reference = [[float(x) for x in plain.logprobs("reference", p, c)] for _, _, p, c, _, _ in samples()]
        values = [[float(x) for x in plain.values(p, c)] for _, _, p, c, _, _ in samples()]
    rewards = []
    for (_, _, _, _, total, _), now, ref in zip(samples(), old, reference, strict=True):
        gone = [n - r for n, r in zip(now, ref, strict=True)]
        k3 = [float(torch.exp(torch.tensor(-d, dtype=torch.float64))) - 1 + d for d in gone]
        rewards.append([-KL * k for k in k3])
        rewards[-1][-1] += total
    advantages, targets, worths = plain_credit(rewards, values, scheme, limit)
    flat = [a for row in advantages for a in row]
    mean = sum(flat) / len(flat)
    spread = (sum((a - mean) ** 2 for a in flat) / len(flat)) ** 0.5
    return old, values, [[(a - mean) / (spread + 1e-8) for a in row] for row in advantages], targets, worths


def plain_gradients(plain, before, scheme, limit):
    """Gradients of policy loss (eq. 7) plus value loss, summed sample by sample; `before` are the networks
    that sampled."""
    old, old_values, advantages, targets, worths = plain_data(before, scheme, limit)
    n_tokens = sum(map(len, old))
    n_values = n_tokens + sum(w is not None for w in worths)
    for i, (_, _, prompt, tokens, _, _) in enumerate(samples()):
        now, values = plain.logprobs(POLICY, prompt, tokens), plain.values(prompt, tokens)
        loss = 0.0
        for k in range(len(tokens)):
            ratio = torch.exp(now[k] - old[i][k])
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            loss = loss - torch.minimum(ratio * advantages[i][k], clipped * advantages[i][k]) / n_tokens
        wanted = [*targets[i], *([worths[i]] if worths[i] is not None else [])]
        for k, target in enumerate(wanted):
            near = old_values[i][k] + (values[k] - old_values[i][k]).clamp(-VALUE_CLIP, VALUE_CLIP)
            loss = loss + 0.5 * torch.maximum((values[k] - target) ** 2, (near - target) ** 2) / n_values
        loss.backward()
    return {role: {n: p.grad for n, p in leaves.items()} for role, leaves in plain.leaves.items()}


CASES = [
    (scheme, tuning, critic, packing, limit)
    for scheme, limit in (("bandit", "cut"), ("discounted", "cut"), ("discounted", "end"))
    for tuning, critic, packing in (
        ("lora", "head", "tree"), ("lora", "lora", "rows"), ("full", "head", "rows"),
        ("full", "lora", "tree"),
    )
]


@pytest.mark.parametrize(("scheme", "tuning", "critic", "packing", "limit"), CASES)
def test_gradients_of_one_update(scheme, tuning, critic, packing, limit):
    torch.set_num_threads(1)
    start = random_model()
    learner = Learner(copy.deepcopy(start), config(scheme, tuning, critic, packing, limit), seed=3)
    disturbed(learner, 0.05, seed=7)
    before = Plain(learner, start, tuning)
    with torch.no_grad():
        sampled = [
            [float(x) for x in before.logprobs(POLICY, p, c)] for _, _, p, rows, _ in TALK for c, _ in rows
        ]
    data = experience.gather_experience(learner, groups(sampled))
    disturbed(learner, 0.02, seed=8)
    want = plain_gradients(Plain(learner, start, tuning), before, scheme, limit)
    learner.network.train()
    logged = experience.accumulate_minibatch(learner, data, list(range(len(TALK))))
    assert 0 < logged["clip_fraction"] < 1, "some ratios are cut, some are not"
    for role in (POLICY, CRITIC):
        found = {n: p.grad for n, p in learner.parameters(role).items()}
        assert found.keys() == want[role].keys()
        wrong = sum(float((found[n] - g).double().square().sum()) for n, g in want[role].items()) ** 0.5
        size = sum(float(g.double().square().sum()) for g in want[role].values()) ** 0.5
        assert size > 1e-3 and wrong / size <= 1e-5, f"{role}: relative error {wrong / size:.1e}"
