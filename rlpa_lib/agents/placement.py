"""On which device each role of a run lives, and whether what it needs fits there.

A process uses one device: the GPU of its number where there are GPUs, else the CPU. On it live policy,
reference and critic, the sampler where it is in process, and the sentence encoder of RAG.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlpa_lib.agents import devices, models, own_servers
from rlpa_lib.agents.trained import Trained
from rlpa_lib.runs import record
from rlpa_lib.runs.run import Run
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import POLICIES

if TYPE_CHECKING:
    import torch

    from rlpa_lib.agents.local_policy import LocalPolicy

PLAY, PPO, GRPO, SUPERVISED = "play", "ppo", "grpo", ("sft", "dpo")
TRAINED = 16  # bytes a trained weight: itself, its gradient and AdamW's two moments, in fp32
GIB = 2**30


@dataclass(frozen=True)
class Placement:
    """Where the roles of some work live: role -> device or servers, bytes that they need at least on
    `device` by role, and bytes that are `there`."""

    work: str
    device: torch.device
    roles: dict[str, str]
    needed: dict[str, int]
    there: int

    def note(self, run: Run) -> None:
        """Put it into record.json, under devices and the name of the work."""
        facts = {
            "device": str(self.device), "roles": self.roles, "memory_gib": round(self.there / GIB, 2),
            "needed_gib": {role: round(size / GIB, 3) for role, size in self.needed.items()},
        }
        record.amend(run.dir, lambda old: {"devices": {**old.get("devices", {}), self.work: facts}})


def place(
    cfg: Config, work: str, *, encoder: bool = False, sharded: bool = False, name: str = ""
) -> Placement:
    """Where the roles of `work` ("play", "ppo", "sft", "dpo", "grpo") live in this process. `encoder`: RAG's
    is needed too; `sharded`: PPO's weights are spread over the processes; `name` stands in the record.

    The bytes are a lower bound: weights, gradients, moments, and keys and values of one longest sample; what
    passes go through needs more. InputError: even that does not fit, on a GPU into what others leave free, on
    a CPU into the machine's memory. Nothing is loaded.
    """
    device, kind = devices.choose_device(), POLICIES[cfg.policy.kind]
    # GRPO samples by TRL's hook, in process whatever samples elsewhere
    in_process = kind.in_process or work == GRPO
    roles = dict.fromkeys(("policy", "reference") if work != PLAY else (), str(device))
    roles |= {"critic": str(device)} if work == PPO else {}
    if work not in SUPERVISED:
        started = "vLLM servers that this process starts" if own_servers.are_needed(cfg) else ""
        elsewhere = ", ".join(cfg.policy.servers) or started or "behind an endpoint"
        roles["sampler"] = str(device) if in_process else elsewhere
    roles |= {"encoder": str(device)} if encoder else {}
    loads = in_process or work != PLAY
    needed = _count_bytes(cfg, work, samples=in_process and "sampler" in roles) if loads else {}
    placed = Placement(name or work, device, roles, needed, devices.find_memory(device))
    _check_fit(cfg, placed, sharded)
    return placed


def make_policy(cfg: Config, run: Run | Path | None, adapter: Path | None = None) -> LocalPolicy:
    """The policy of a row, loaded into this process. InputError: as in `place`."""
    place(cfg, PLAY)
    model, tokenizer = models.load_model(cfg, None if adapter is None else Trained(adapter, whole=False))
    return models.make_local_policy(model, tokenizer, cfg)


def _count_bytes(cfg: Config, work: str, samples: bool) -> dict[str, int]:
    """Bytes by role, counted on a model that has shapes alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with models.locate(cfg) as source, torch.device("meta"):
        config = AutoConfig.from_pretrained(source, revision=cfg.policy.revision)
        model = AutoModelForCausalLM.from_config(config)
    size, weights = models.find_dtype(cfg).itemsize, sum(p.numel() for p in model.parameters())
    adapter = _count_adapter(cfg, model)
    if work == PLAY:
        needed = {"policy": size * weights}
    elif work == PPO and cfg.policy.tuning == "full":
        needed = {"policy": TRAINED * weights, "reference": size * weights}
    else:
        warm = 4 * adapter if work == PPO and cfg.policy.adapter else 0
        needed = {"policy": size * weights + TRAINED * adapter, "reference": warm}
    if work == PPO and cfg.ppo.critic == "lora":
        needed["critic"] = (TRAINED if cfg.ppo.baseline == "critic" else 4) * adapter
    if samples:
        shape = model.config.get_text_config()
        heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
        width = heads * (getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads)
        tokens = cfg.rollout.max_prompt_tokens + cfg.rollout.max_new_tokens
        needed["sampler"] = 2 * shape.num_hidden_layers * width * tokens * size
    return needed


def _count_adapter(cfg: Config, model) -> int:
    """Weights of a LoRA as `policy.lora_*` says."""
    from torch import nn

    targets, output = cfg.policy.lora_targets, model.get_output_embeddings()
    wanted = None if targets == "all-linear" else (targets,) if isinstance(targets, str) else tuple(targets)
    return sum(
        cfg.policy.lora_rank * (layer.in_features + layer.out_features)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer is not output
        and (wanted is None or name.endswith(wanted))
    )


def _check_fit(cfg: Config, placed: Placement, sharded: bool) -> None:
    """InputError when what is needed, by all processes of a machine where they share its memory, is not
    there."""
    together = sum(placed.needed.values())
    if sharded:  # every process loads the weights whole before it gives parts away
        whole = sum(placed.needed.values()) // int(os.environ.get("WORLD_SIZE", 1))
        together = max(whole, _count_bytes(cfg, PLAY, samples=False)["policy"])
    on_gpu = placed.device.type == "cuda"
    together *= 1 if on_gpu else int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if together <= placed.there:
        return
    parts = ", ".join(f"{role} {size / GIB:.2f}" for role, size in placed.needed.items() if size)
    where = f"the memory free on {placed.device}" if on_gpu else "this machine's memory"
    raise InputError(
        f"policy.model: {cfg.policy.model} does not fit into {where}: {placed.work} needs at least "
        f"{together / GIB:.2f} GiB ({parts}), {placed.there / GIB:.2f} are there; use a smaller model, "
        "policy.dtype=bfloat16, policy.tuning=lora or a larger device"
    )
