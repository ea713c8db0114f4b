"""Policy, reference and critic on one frozen backbone: adapters in PEFT format, a value head, and their optimisers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from rlpa_lib import ppo
from rlpa_lib.config import Config, InputError
from rlpa_lib.packing import Group, Packed, pack
from rlpa_lib.policies import derive_seed

POLICY, CRITIC = "policy", "critic"


@dataclass(frozen=True)
class Pass:
    """What a forward pass says about each completion token, [S, T]; `features_STF` only for the critic's head."""

    logprobs_ST: torch.Tensor
    entropy_ST: torch.Tensor
    features_STF: torch.Tensor | None


class ValueHead(nn.Module):
    """Value of a state from hidden features F, fp32; starts at 0 everywhere."""

    def __init__(self, width: int, hidden: int = 256):
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features.float())[..., 0]


class Learner:
    """LoRA policy, reference = the same backbone with adapters off, critic = a head on the reference's features
    (`ppo.critic: head`) or on a second LoRA adapter (`lora`). No weight of the backbone exists twice.

    InputError when `policy.tuning` is not lora: full tuning would need a second copy as its reference.
    """

    def __init__(self, model, cfg: Config, *, seed: int, accelerator: Accelerator | None = None):
        if cfg.policy.tuning != "lora":
            raise InputError(f"policy.tuning: {cfg.policy.tuning!r} is not in this release, only lora")
        self.cfg, self.seed = cfg, seed
        self.accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
        torch.manual_seed(derive_seed(seed, "adapters"))
        model.requires_grad_(False)
        self.model: PeftModel = get_peft_model(model, _lora(cfg), adapter_name=POLICY)
        width = 2 * model.config.hidden_size
        if cfg.ppo.critic == "lora":
            self.model.add_adapter(CRITIC, _lora(cfg))
            width = model.config.hidden_size
        self.head = ValueHead(width)
        self.device, self.dtype = self.accelerator.device, model.dtype
        self.model.to(self.device)
        self.head.to(self.device)
        self._activate(POLICY)
        betas = {"betas": tuple(cfg.ppo.adam_betas), "weight_decay": 0.0}
        self.optimizers = {
            POLICY: torch.optim.AdamW(self.parameters(POLICY).values(), lr=cfg.ppo.lr, **betas),
            CRITIC: torch.optim.AdamW(self.parameters(CRITIC).values(), lr=cfg.ppo.critic_lr, **betas),
        }

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """Name -> trainable weights of the policy, or of the critic (its head, and its adapter if there is one)."""
        named = {name: p for name, p in self.model.named_parameters() if f".{role}." in name}
        if role == CRITIC:
            named |= {f"head.{name}": p for name, p in self.head.named_parameters()}
        return named

    def pack(self, groups: list[Group]) -> Packed:
        """The groups as `ppo.packing` says, on the learner's device."""
        return pack(groups, self.cfg.ppo.packing, self.dtype, self.device)

    def run(self, packed: Packed, role: str, features: bool = False) -> Pass:
        """Log-probabilities (at the sampling temperature) and entropies under "policy" or "reference"; head on completions only.

        `features` adds the last and the middle hidden state of each predicting token.
        """
        with self.model.disable_adapter() if role == "reference" else nullcontext():
            hidden, middle = self._hidden(packed, middle=features)
        keep = packed.keep_ST
        where = packed.rows_ST[keep], packed.places_ST[keep]
        logits = self.model.get_base_model().get_output_embeddings()(hidden[where]).float()
        logprobs = torch.log_softmax(logits / (self.cfg.rollout.temperature or 1.0), dim=-1)
        chosen = logprobs.gather(-1, packed.targets_ST[keep][:, None])[:, 0]
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        made = _spread(torch.cat([hidden[where], middle[where]], -1), keep) if features else None
        return Pass(_spread(chosen, keep), _spread(entropy, keep), made)

    def values(self, packed: Packed, features_STF: torch.Tensor | None) -> torch.Tensor:
        """Values [S, T] of the states before each completion token, from given features or from the critic's own adapter."""
        if self.cfg.ppo.critic == "head":
            return self.head(features_STF) * packed.keep_ST
        self._activate(CRITIC)
        hidden, _ = self._hidden(packed, middle=False)
        self._activate(POLICY)
        values = self.head(hidden[packed.rows_ST[packed.keep_ST], packed.places_ST[packed.keep_ST]])
        return _spread(values, packed.keep_ST)

    def step(self, scale: float) -> dict[str, float]:
        """Clip both gradients to `ppo.grad_norm`, take one step at `scale` times the learning rates; return the norms."""
        norms = {}
        rates = {POLICY: self.cfg.ppo.lr, CRITIC: self.cfg.ppo.critic_lr}
        for role, optimizer in self.optimizers.items():
            norm = self.accelerator.clip_grad_norm_(list(self.parameters(role).values()), self.cfg.ppo.grad_norm)
            norms[f"grad_norm_{role}"] = float(norm)
            for group in optimizer.param_groups:
                group["lr"] = rates[role] * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norms

    def _activate(self, role: str) -> None:
        self.model.set_adapter(role)
        # PEFT freezes the adapters that are not active, which would lose the gradients of a graph still to be run back
        for name in (POLICY, CRITIC):
            for parameter in self.parameters(name).values():
                parameter.requires_grad_(True)

    def _hidden(self, packed: Packed, middle: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        tree = packed.mask_B1LL is not None
        out = self.model.get_base_model().get_decoder()(
            input_ids=packed.input_ids_BL,
            position_ids=packed.position_ids_BL if tree else None,
            attention_mask=packed.mask_B1LL,
            use_cache=False,
            output_hidden_states=middle,
        )
        states = out.hidden_states
        return out.last_hidden_state, states[len(states) // 2] if middle else None


def _spread(flat: torch.Tensor, keep_ST: torch.Tensor) -> torch.Tensor:
    """Kept tokens back in their places [S, T, ...], zero elsewhere."""
    spread = flat.new_zeros(*keep_ST.shape, *flat.shape[1:])
    return spread.masked_scatter(keep_ST.view(*keep_ST.shape, *[1] * (flat.ndim - 1)), flat)


def _lora(cfg: Config) -> LoraConfig:
    targets = cfg.policy.lora_targets
    return LoraConfig(
        r=cfg.policy.lora_rank,
        lora_alpha=cfg.policy.lora_alpha,
        lora_dropout=cfg.policy.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )


def accumulate(learner: Learner, packed: Packed, batch: dict[str, torch.Tensor | None], total: float) -> dict[str, float]:
    """Add one forward pass's gradients of policy loss and value loss; means are over `total` tokens.

    `batch` holds old_logprobs, advantages, values, returns [S, T] and features [S, T, F] or None. Returns numbers for the
    log that add up over the passes of a minibatch.
    """
    settings, keep, old = learner.cfg.ppo, packed.keep_ST, batch["old_logprobs"]
    now = learner.run(packed, POLICY)
    loss, clipped = ppo.policy_loss(now.logprobs_ST, old, batch["advantages"], keep, settings.clip, total)
    learner.accelerator.backward(loss)
    values = learner.values(packed, batch["features"])
    error = ppo.value_loss(values, batch["values"], batch["returns"], keep, settings.value_clip, total)
    learner.accelerator.backward(error)
    with torch.no_grad():
        means = {
            "entropy": now.entropy_ST,
            "kl_old": ppo.kl_estimate(old, now.logprobs_ST, "k3"),
            "sampler_gap": (now.logprobs_ST - old).abs(),
        }
        logged = {name: float(ppo.masked_mean(x, keep, total)) for name, x in means.items()}
    return {"policy_loss": float(loss.detach()), "value_loss": float(error.detach()), "clip_fraction": float(clipped), **logged}
