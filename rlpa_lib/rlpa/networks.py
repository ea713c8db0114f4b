"""Policy, reference and critic on one backbone.

Axes: S samples, T tokens of the longest completion, N completion tokens, F features.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlpa_lib.agents import adapters
from rlpa_lib.agents.architecture import use_attention
from rlpa_lib.rlpa.packing import Packed, spread
from rlpa_lib.rlpa.tree import KERNEL, Blocks, attend
from rlpa_lib.settings.config import Config, InputError

POLICY, REFERENCE, CRITIC = "policy", "reference", "critic"
ROLES = (POLICY, CRITIC)  # those that are trained
ROWS = 64  # tokens that go through the output layer at once


def lora_config(cfg: Config) -> LoraConfig:
    """LoRA as `policy.lora_*` says, whatever `policy.tuning` is: critic and baselines are adapters too."""
    targets = cfg.policy.lora_targets
    return LoraConfig(
        r=cfg.policy.lora_rank, lora_alpha=cfg.policy.lora_alpha, lora_dropout=cfg.policy.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets), task_type="CAUSAL_LM",
    )


class Pass(NamedTuple):
    """What a forward pass says about completion tokens, [S, T]; `features_STF` only for the critic's head."""

    logprobs_ST: Tensor
    entropy_ST: Tensor
    features_STF: Tensor | None


class ValueHead(nn.Module):
    """Value of a state from hidden features F, fp32; starts at 0 everywhere."""

    def __init__(self, width: int, hidden: int = 256):
        super().__init__()
        self.width = width
        layers = nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1)
        self.layers = nn.Sequential(*layers)
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features.float())[..., 0]


class Backbone(nn.Module):
    """The networks of a training run.

    `policy.tuning: lora`: policy and critic are adapters on one frozen backbone; the reference is that
    backbone, with the warm-start adapter `policy.adapter` if there is one. `full`: all weights are trained,
    in fp32 (a rate of 5e-7 would round away in bf16), beside a frozen copy of the start for reference and
    critic. The critic is a head on features of the reference's pass (`ppo.critic: head`) or has an adapter of
    its own (`lora`).
    """

    def __init__(self, model, cfg: Config):
        super().__init__()
        self.full, self.own_critic = cfg.policy.tuning == "full", cfg.ppo.critic == "lora"
        self.temperature, self.dtype = cfg.rollout.temperature or 1.0, model.dtype
        # fp32 weights that training passes in the model's own precision, and a sampler in process in fp32
        self.mixed = self.full and self.dtype != torch.float32
        adapter = _check_adapter(cfg) if cfg.policy.adapter else None
        self.warm = adapter is not None and not self.full
        model.requires_grad_(False)
        if self.full:
            started = adapters.merge_adapter(model, adapter) if adapter else model
            frozen = copy.deepcopy(started)
            self.start = get_peft_model(frozen, lora_config(cfg), CRITIC) if self.own_critic else frozen
            self.model = started.float().requires_grad_(True)
        elif adapter:  # the warm start twice: as policy and as reference
            self.model = adapters.load_adapter(model, adapter, POLICY, trainable=True)
            _check_trainable(self.model, adapter)
            self.model.load_adapter(adapter, REFERENCE, is_trainable=False)
            self.model.set_adapter(POLICY)
        else:
            self.model = get_peft_model(model, lora_config(cfg), POLICY)
        if self.own_critic and not self.full:
            self.model.add_adapter(CRITIC, lora_config(cfg))
        width = model.config.hidden_size
        self.head = ValueHead(width if self.own_critic else 2 * width)
        self.make_trainable()
        self._running: tuple[str, Blocks | None] = POLICY, None
        self._again = False
        if cfg.policy.gradient_checkpointing:
            self._checkpoint_layers()

    def _checkpoint_layers(self) -> None:
        """Keep only each layer's input for the backward pass, which then runs the layer once more: with the
        adapter and attention of the forward pass, whichever are active by then."""

        def contexts():
            return nullcontext(), self._prepare(*self._running)

        self._again = True  # so with the output layer
        for host in {self.model, self.frozen}:
            network = host.get_base_model() if isinstance(host, PeftModel) else host
            network.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
            network.disable_input_require_grads()  # only the reentrant kind needs inputs with gradients

    @property
    def frozen(self):
        """The model on which reference and critic run."""
        return self.start if self.full else self.model

    def parameters_of(self, role: str) -> dict[str, nn.Parameter]:
        """Name -> trainable weights of the policy, or of the critic (its head, and its adapter if any)."""
        if role == POLICY and self.full:
            return dict(self.model.named_parameters())
        host = self.frozen if role == CRITIC else self.model
        named = {name: p for name, p in host.named_parameters() if f".{role}." in name}
        if role == CRITIC:
            named |= {f"head.{name}": p for name, p in self.head.named_parameters()}
        return named

    def backward(self, loss: Tensor, role: str) -> None:
        """Add a loss's gradients. Checkpointed layers find the role's adapter active, instead of switching to
        it one by one."""
        with nullcontext() if role == CRITIC and not self.own_critic else self.activate(role):
            loss.backward()

    def forward(self, packed: Packed, role: str, features: bool | Tensor | None = False) -> Pass | Tensor:
        """POLICY and REFERENCE give a `Pass`, CRITIC values [S, T]; FSDP hooks in here.

        `features`: true asks for the last and the middle hidden state of each predicting token, which a
        critic without an adapter then takes. Log-probabilities are those at the sampling temperature.
        """
        keep = packed.keep_ST
        if role == CRITIC and not self.own_critic:
            return self.head(features) * keep
        where = packed.rows_U, packed.places_U
        mixed = self.mixed and role == POLICY
        # a cache would hold a second copy of all weights until the pass is over
        precision = {"dtype": self.dtype, "cache_enabled": False}
        cast = torch.autocast(keep.device.type, **precision) if mixed else nullcontext()
        branched = {"position_ids": packed.position_ids_BL, "tree": packed.tree} if packed.tree else {}
        with self._prepare(role, packed.tree) as network, cast:
            self._running = role, packed.tree
            out = network.get_decoder()(
                input_ids=packed.input_ids_BL, use_cache=False, output_hidden_states=features is True,
                **branched,
            )
            last = out.last_hidden_state[where]
            middle = out.hidden_states[len(out.hidden_states) // 2][where] if features is True else None
            del out  # the other layers' states are in the way of the logits
            if role == CRITIC:
                return spread(self.head(last), packed)
            output = network.get_output_embeddings()
            logprobs, entropy = _score_tokens(output, last, packed.targets_U, self.temperature, self._again)
        seen = spread(torch.cat([last, middle], -1), packed) if features is True else None
        return Pass(spread(logprobs, packed), spread(entropy, packed), seen)

    @contextmanager
    def _prepare(self, role: str, tree: Blocks | None) -> Iterator[nn.Module]:
        """`activate`, with attention as the tokens are packed."""
        attention = partial(use_attention, name=KERNEL, attend=attend) if tree else nullcontext
        with self.activate(role) as network, attention(network):
            yield network

    @contextmanager
    def activate(self, role: str) -> Iterator[nn.Module]:
        """The causal language model of a role, with that role's adapter active within the context."""
        host = self.model if role == POLICY else self.frozen
        if not isinstance(host, PeftModel):
            yield host
            return
        off, before = role == REFERENCE and not self.warm, host.active_adapter
        if not off and before != role:
            host.set_adapter(role)
            self.make_trainable()
        try:
            with host.disable_adapter() if off else nullcontext():
                yield host.get_base_model()
        finally:
            if host.active_adapter != before:
                host.set_adapter(before)
            if off or before != role:
                self.make_trainable()

    def make_trainable(self) -> None:
        """Let trained weights have gradients: PEFT freezes adapters that are not active, and a graph that has
        still to be run back would lose theirs."""
        for role in ROLES:
            for parameter in self.parameters_of(role).values():
                parameter.requires_grad_(True)
        if self.warm:
            for name, parameter in self.model.named_parameters():
                if f".{REFERENCE}." in name:
                    parameter.requires_grad_(False)


class _Frozen(torch.autograd.Function):
    """Log-probabilities of targets and entropies, [U], by an output layer that is not trained.

    The gradient by a hidden state is known before the loss is: (W_target - sum_v p_v W_v) / temperature,
    times what the log-probability's own gradient will be. That is all that is kept, D numbers a token and
    none of the vocabulary's size, and the backward pass has no work left. Entropies have no gradient.
    """

    @staticmethod
    def forward(ctx, hidden_UD: Tensor, targets_U: Tensor, output: nn.Linear, temperature: float):
        scored, directions = [], []
        for hidden, targets in zip(hidden_UD.split(ROWS), targets_U.split(ROWS), strict=True):
            logprobs, chosen, entropy = _score(output, hidden, targets, temperature)
            scored.append((chosen, entropy))
            if ctx.needs_input_grad[0]:
                ones_U1 = torch.ones_like(chosen)[:, None]
                by_logit = logprobs.exp_().neg_().scatter_add_(1, targets[:, None], ones_U1)
                directions.append(by_logit.to(output.weight.dtype) @ output.weight)
        ctx.temperature = temperature
        ctx.save_for_backward(*([torch.cat(directions)] if directions else []))
        chosen, entropies = (torch.cat(parts) for parts in zip(*scored, strict=True))
        ctx.mark_non_differentiable(entropies)
        return chosen, entropies

    @staticmethod
    def backward(ctx, gradient_U: Tensor, _):
        (directions_UD,) = ctx.saved_tensors
        scale_U1 = (gradient_U / ctx.temperature)[:, None]
        return directions_UD * scale_U1.to(directions_UD.dtype), None, None, None


def _score(
    output: nn.Module, hidden: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of all tokens, those of the targets, and entropies."""
    logits = output(hidden).float()
    logprobs = torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs, logprobs.gather(-1, targets[:, None])[:, 0], entropy


def _score_tokens(
    output: nn.Module, hidden_UD: Tensor, targets_U: Tensor, temperature: float, again: bool
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and the entropy of what it was drawn from, [U].

    The vocabulary is by far the largest dimension, so a few tokens at a time go through it: a CPU then finds
    them in its cache. A layer that is trained keeps what its gradient needs, or with `again` runs once more
    backward; of one that is not, nothing of that size is ever held for all tokens.
    """
    if type(output) is nn.Linear and not any(p.requires_grad for p in output.parameters()):
        return _Frozen.apply(hidden_UD, targets_U, output, temperature)

    def score(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return _score(output, hidden, targets, temperature)[1:]

    parts = zip(hidden_UD.split(ROWS), targets_U.split(ROWS), strict=True)
    twice = partial(checkpoint, score, use_reentrant=False, preserve_rng_state=False)
    scored = [(twice if again and torch.is_grad_enabled() else score)(*part) for part in parts]
    chosen, entropies = zip(*scored, strict=True)
    return torch.cat(chosen), torch.cat(entropies)


def _check_adapter(cfg: Config) -> str:
    """The folder `policy.adapter`. InputError: no adapter, or (LoRA tuning) one of another rank or alpha, or
    with biases of the model's own layers, which PEFT allows to one adapter alone."""
    folder = Path(cfg.policy.adapter)
    if not (folder / adapters.FILE).is_file():
        raise InputError(f"policy.adapter: {folder} holds no {adapters.FILE}")
    found = adapters.read_settings(folder)
    if cfg.policy.tuning == "full":
        return str(folder)
    for key, name in (("r", "lora_rank"), ("lora_alpha", "lora_alpha")):
        is_now, wanted = found.get(key), getattr(cfg.policy, name)
        if is_now != wanted:
            raise InputError(f"policy.adapter: {folder} has {key} {is_now}, but policy.{name} is {wanted}")
    if (bias := found.get("bias", "none")) != "none":
        why = "which policy and reference cannot have side by side"
        raise InputError(f"policy.adapter: {folder} has bias {bias}, {why}")
    return str(folder)


def _check_trainable(model: PeftModel, folder: str) -> None:
    """InputError: a warm start has weights that training here would leave as they are and not save."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and f".{POLICY}." not in name:
            why = "which is not trained on here; use an adapter of linear layers"
            raise InputError(f"policy.adapter: {folder} has {name}, {why}")
