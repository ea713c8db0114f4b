"""Work that is done on a card and on the CPU alike: learners, samples of any length, and one update whose
gradients are kept."""

import random
from dataclasses import dataclass

import torch

from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.dialogue.protocols import Completion
from rlpa_lib.rlpa import experience
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.rlpa.networks import ROLES
from rlpa_lib.rlpa.processes import Processes
from rlpa_lib.rlpa.rewards import Reward
from rlpa_lib.rlpa.rollout import Sample, TurnGroup


def make_learner(model, cfg, device, noise=0.0):
    """The learner of one process on `device`; `noise` moves what is trained away from its start, the same
    way on every device."""
    processes = Processes()
    processes.device = torch.device(device)
    learner = Learner(model, cfg, seed=0, processes=processes)
    if noise:
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for role in ROLES:
                for weight in learner.parameters(role).values():
                    weight += noise * torch.randn(weight.shape, generator=draw).to(weight)
    return learner


def make_groups(prompts, samples, prompt_tokens, reply_tokens, vocabulary, seed=0):
    """Scored turns with random token ids: `prompts` prompts of `prompt_tokens`, each with `samples` replies
    of up to `reply_tokens`, the first one as long as that."""
    draw, made = random.Random(seed), []
    for number in range(prompts):
        prompt = tuple(draw.randrange(vocabulary) for _ in range(prompt_tokens))
        scored = []
        for i in range(samples):
            length = reply_tokens if i == 0 else draw.randint(max(1, reply_tokens // 2), reply_tokens)
            ids = tuple(draw.randrange(vocabulary) for _ in range(length))
            said, reward = Completion(prompt, ids, (-2.0,) * length, "", True), draw.random()
            scored.append(Sample(said, Reply(Profile(), "x", True), Reward(format_ok=True, total=reward)))
        made.append(TurnGroup(f"d{number}", 1, prompt, tuple(scored), 0))
    return made


@dataclass
class Outcome:
    """Numbers of one update: log-probabilities and values by place, gradients by weight, on the CPU."""

    logprobs: torch.Tensor
    reference: torch.Tensor
    values: torch.Tensor
    gradients: dict[str, torch.Tensor]
    metrics: dict[str, float]


def run_update(learner, groups):
    """One update over these turns, the old log-probabilities computed by the trainer."""
    gradients, step = {}, learner.step

    def keep_and_step(scale):
        for role in ROLES:
            for name, weight in learner.parameters(role).items():
                gradients[f"{role}|{name}"] = weight.grad.detach().float().cpu().clone()
        return step(scale)

    learner.step = keep_and_step
    try:
        data = experience.gather_experience(learner, groups, elsewhere=True)
        metrics = experience.update(learner, data, seed=0, scales=[1.0])
    finally:
        learner.step = step
    return Outcome(data.old_logprobs, data.reference, data.values, gradients, metrics)


def compare(one, other):
    """How far apart two outcomes are: largest difference of log-probabilities (nats) and values, of the
    losses, and the length of the gradients' difference as a share of the gradient's."""
    most = {
        name: float((getattr(one, name) - getattr(other, name)).abs().max())
        for name in ("logprobs", "reference", "values")
    }
    losses = {name: abs(one.metrics[name] - other.metrics[name]) for name in ("policy_loss", "value_loss")}
    lengths = [
        sum(float((x[name] if y is None else x[name] - y[name]).square().sum()) for name in x) ** 0.5
        for x, y in ((one.gradients, other.gradients), (one.gradients, None))
    ]
    return {**most, **losses, "gradient": lengths[0] / lengths[1]}
