"""Policy, reference and critic on one backbone, and the batches that go through them.

Axes: S samples, T tokens of the longest completion, F features; B packed rows, L tokens of a packed row.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rlpa_lib.settings.config import Config, InputError

POLICY, REFERENCE, CRITIC = "policy", "reference", "critic"
ROLES = (POLICY, CRITIC)  # those that are trained
ADAPTER_FILE = "adapter_config.json"
ROWS = 64  # tokens that go through the output layer at once
Group = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]  # token ids of a prompt and of its completions


@dataclass(frozen=True)
class Packed:
    """Model input, and where completion tokens are predicted: state (row, place) predicts `targets_ST`.

    `mask_B1LL` is additive (0 or -inf), or None where plain causal attention is right. `keep_ST` marks real
    tokens.
    """

    input_ids_BL: Tensor
    position_ids_BL: Tensor
    mask_B1LL: Tensor | None
    rows_ST: Tensor
    places_ST: Tensor
    targets_ST: Tensor
    keep_ST: Tensor


def pack_groups(
    groups: Sequence[Group], packing: str, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Packed:
    """All samples of a prompt behind one copy of it ("tree"), or one copy each ("rows"), in the given order.

    The last token of a sample is only a target.
    """
    if packing == "rows":
        groups = [(prompt, (completion,)) for prompt, completions in groups for completion in completions]
    ids, positions, segments, places, in_rows = [], [], [], [], []
    for row, (prompt, completions) in enumerate(groups):
        ids.append(list(prompt))
        positions.append(list(range(len(prompt))))
        segments.append([0] * len(prompt))
        for segment, completion in enumerate(completions, start=1):
            fed, start = completion[:-1], len(ids[row])
            in_rows.append(row)
            places.append([len(prompt) - 1, *range(start, start + len(fed))])
            ids[row] += fed
            positions[row] += range(len(prompt), len(prompt) + len(fed))
            segments[row] += [segment] * len(fed)
    targets = [completion for _, completions in groups for completion in completions]
    tensors = {
        "input_ids_BL": pad_rows(ids), "position_ids_BL": pad_rows(positions),
        "mask_B1LL": tree_mask(pad_rows(segments, -1), dtype) if packing == "tree" else None,
        "rows_ST": torch.tensor(in_rows)[:, None].expand(-1, max(map(len, targets))),
        "places_ST": pad_rows(places), "targets_ST": pad_rows(targets),
        "keep_ST": pad_rows([[1] * len(c) for c in targets]).bool(),
    }
    return Packed(**{name: x if x is None else x.to(device) for name, x in tensors.items()})


def tree_mask(segments_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, L, L]: a token sees the prompt (0) and its sample so far; padding (-1) itself."""
    length = segments_BL.shape[1]
    query, key = segments_BL[:, :, None], segments_BL[:, None, :]
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = earlier & ((key == 0) | (key == query)) & (query >= 0)
    allowed |= torch.eye(length, dtype=torch.bool)
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, -torch.inf)[:, None]


def pad_rows(rows: Sequence[Sequence[float]], value: int = 0) -> Tensor:
    """Rows of numbers as one tensor, filled up on the right."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


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
            started = PeftModel.from_pretrained(model, adapter).merge_and_unload() if adapter else model
            frozen = copy.deepcopy(started)
            self.start = get_peft_model(frozen, lora_config(cfg), CRITIC) if self.own_critic else frozen
            self.model = started.float().requires_grad_(True)
        elif adapter:  # the warm start twice: as policy and as reference
            self.model = PeftModel.from_pretrained(model, adapter, POLICY, is_trainable=True)
            self.model.load_adapter(adapter, REFERENCE, is_trainable=False)
            self.model.set_adapter(POLICY)
        else:
            self.model = get_peft_model(model, lora_config(cfg), POLICY)
        if self.own_critic and not self.full:
            self.model.add_adapter(CRITIC, lora_config(cfg))
        width = model.config.hidden_size
        self.head = ValueHead(width if self.own_critic else 2 * width)
        self.make_trainable()

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

    def forward(self, packed: Packed, role: str, features: bool | Tensor | None = False) -> Pass | Tensor:
        """POLICY and REFERENCE give a `Pass`, CRITIC values [S, T]; FSDP hooks in here.

        `features`: true asks for the last and the middle hidden state of each predicting token, which a
        critic without an adapter then takes. Log-probabilities are those at the sampling temperature.
        """
        keep = packed.keep_ST
        if role == CRITIC and not self.own_critic:
            return self.head(features) * keep
        where = packed.rows_ST[keep], packed.places_ST[keep]
        mixed = self.mixed and role == POLICY
        precision = torch.autocast(keep.device.type, dtype=self.dtype) if mixed else nullcontext()
        with self._activate(role) as network, precision:
            out = network.get_decoder()(
                input_ids=packed.input_ids_BL,
                position_ids=None if packed.mask_B1LL is None else packed.position_ids_BL,
                attention_mask=packed.mask_B1LL, use_cache=False, output_hidden_states=features is True,
            )
            last = out.last_hidden_state[where]
            middle = out.hidden_states[len(out.hidden_states) // 2][where] if features is True else None
            del out  # the other layers' states are in the way of the logits
            if role == CRITIC:
                return spread(self.head(last), keep)
            output, targets = network.get_output_embeddings(), packed.targets_ST[keep]
            logprobs, entropy = _score_tokens(output, last, targets, self.temperature)
        seen = spread(torch.cat([last, middle], -1), keep) if features is True else None
        return Pass(spread(logprobs, keep), spread(entropy, keep), seen)

    @contextmanager
    def _activate(self, role: str) -> Iterator[nn.Module]:
        """The causal language model of a role, with that role's adapter active."""
        host = self.model if role == POLICY else self.frozen
        if not isinstance(host, PeftModel):
            yield host
            return
        off = role == REFERENCE and not self.warm
        if not off and host.active_adapter != role:
            host.set_adapter(role)
            self.make_trainable()
        try:
            with host.disable_adapter() if off else nullcontext():
                yield host.get_base_model()
        finally:
            if host.active_adapter != POLICY and not self.full:
                host.set_adapter(POLICY)
            if role != POLICY:
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


def _score_tokens(output, hidden_ND: Tensor, targets_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and the entropy of what it was drawn from, [N].

    The vocabulary is by far the largest dimension, so a few tokens at a time go through it: a CPU then finds
    them in its cache, and the backward pass needs no second tensor of that size.
    """
    chosen, entropies = [], []
    for hidden, targets in zip(hidden_ND.split(ROWS), targets_N.split(ROWS), strict=True):
        logits = output(hidden).float()
        logprobs = torch.log_softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)
        chosen.append(logprobs.gather(-1, targets[:, None])[:, 0])
        with torch.no_grad():
            entropies.append(-(logprobs.exp() * logprobs).sum(-1))
    return torch.cat(chosen), torch.cat(entropies)


def spread(flat: Tensor, keep_ST: Tensor) -> Tensor:
    """Kept tokens back in their places [S, T, ...], zero elsewhere."""
    made = flat.new_zeros(*keep_ST.shape, *flat.shape[1:])
    return made.masked_scatter(keep_ST.view(*keep_ST.shape, *[1] * (flat.ndim - 1)), flat)


def _check_adapter(cfg: Config) -> str:
    """The folder `policy.adapter`. InputError: no adapter, or (LoRA tuning) one of another rank or alpha."""
    folder = Path(cfg.policy.adapter)
    if not (folder / ADAPTER_FILE).is_file():
        raise InputError(f"policy.adapter: {folder} holds no {ADAPTER_FILE}")
    found = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    for key, name in (("r", "lora_rank"), ("lora_alpha", "lora_alpha")):
        is_now, wanted = found.get(key), getattr(cfg.policy, name)
        if cfg.policy.tuning == "lora" and is_now != wanted:
            raise InputError(f"policy.adapter: {folder} has {key} {is_now}, but policy.{name} is {wanted}")
    return str(folder)
