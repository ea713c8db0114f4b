"""The offline-optimisation baselines SFT and DPO (appendices D.2, E.2) through TRL's trainers, with LoRA adapters.

Both rows answer like Base: they see the plain system prompt `base` and write no profile block, because that is what preference data teach.
What the paper leaves open and we chose: linear decay of the learning rate without warm-up (the trainers' default), AdamW without weight
decay, LoRA where the paper may have tuned all weights (and LoRA too where `policy.tuning: full` makes PPO tune all), and where DPO starts from.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig, PeftModel
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from rlpa_lib.agents import parties
from rlpa_lib.agents.prompt_tokens import prompt_ids
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.methods import training_data
from rlpa_lib.methods.plain_state import MetricsLog, PlainState, find_newest
from rlpa_lib.methods.preferences import Conversation
from rlpa_lib.methods.training_data import ALOE_BATCH, ALOE_DPO_BETA, ALOE_DPO_LR, PAPER_BATCH, PAPER_DPO_LR
from rlpa_lib.runs import storage
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import Config, InputError


class PlainSFT(PlainState, SFTTrainer):
    """TRL's SFTTrainer with checkpoints that are no pickles."""


class PlainDPO(PlainState, DPOTrainer):
    """TRL's DPOTrainer with checkpoints that are no pickles."""


def name_row(method: str, variant: str) -> str:
    """Name of a table row and of its adapter: sft, dpo, or sft_aloe, dpo_aloe for the variant `aloe_scripts`."""
    return f"{method}_aloe" if variant == "aloe_scripts" else method


def train_sft(
    run: Run, model, tokenizer, conversations: Sequence[Conversation], variant: str = "fixed", say: Callable[[str], None] = print
) -> list[dict]:
    """Supervised fine-tuning on the preferred responses; adapters/sft (or sft_aloe), and the metrics of every step.

    One sample is a trunk or a branch of a conversation (`training_data.list_branches`), and the loss is a mean over the tokens of a batch. The
    model is changed in place: load a new one for the next training. A killed run goes on from its checkpoint and ends with the same adapter.
    """
    trainer, card = make_sft_trainer(run, model, tokenizer, conversations, variant)
    return fit(trainer, run, name_row("sft", variant), card, say)


def train_dpo(
    run: Run, model, tokenizer, conversations: Sequence[Conversation], variant: str = "fixed", say: Callable[[str], None] = print
) -> list[dict]:
    """Direct preference optimisation on the two responses of each turn; adapters/dpo (or dpo_aloe), and the metrics of every step.

    `dpo.start: base` trains a new adapter with the base model as reference, `sft` goes on with the run's SFT adapter and has that adapter,
    frozen, as reference. The paper does not say which; ALOE's own script starts from the base model. Resume as in `train_sft`.
    InputError: the SFT adapter is not there.
    """
    trainer, card = make_dpo_trainer(run, model, tokenizer, conversations, variant)
    return fit(trainer, run, name_row("dpo", variant), card, say)


def make_sft_trainer(run: Run, model, tokenizer, conversations: Sequence[Conversation], variant: str) -> tuple[PlainSFT, dict[str, Any]]:
    """The trainer ready to go, and what its model card says."""
    cfg, settings, aloe = run.cfg, run.cfg.sft, variant == "aloe_scripts"
    longest, seed = cfg.rollout.max_prompt_tokens + cfg.rollout.max_new_tokens, _seed(run, "sft")
    rows = training_data.make_sft_rows(conversations, tokenizer, _system(cfg), longest, variant, seed)
    batch = _aloe_batch(settings.batch) if aloe else settings.batch
    if not aloe:
        rows = training_data.sort_by_length(rows, [len(row["input_ids"]) for row in rows], batch)
    micro = 1 if aloe else settings.micro_batch or batch
    args = SFTConfig(
        **make_arguments(run, name_row("sft", variant), settings, batch, micro, seed, _digest(conversations)),
        learning_rate=settings.lr,  # ALOE's script and the paper agree on 1e-5
        max_length=longest,
        packing=aloe,
        packing_strategy="wrapped",
        dataset_kwargs=None if aloe else {"skip_prepare_dataset": True},
    )
    trainer = make_quiet_trainer(PlainSFT, model=model, args=args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer,
                     peft_config=adapter_config(cfg))  # fmt: skip
    facts = {"variant": variant, "samples": len(trainer.train_dataset), "batch": batch, "learning rate": settings.lr}
    return trainer, {**facts, "conversations": len(conversations), "data": _digest(conversations), "epochs": settings.epochs}


def make_dpo_trainer(run: Run, model, tokenizer, conversations: Sequence[Conversation], variant: str) -> tuple[PlainDPO, dict[str, Any]]:
    """The trainer ready to go, and what its model card says."""
    cfg, settings, aloe = run.cfg, run.cfg.dpo, variant == "aloe_scripts"
    seed, name = _seed(run, "dpo"), name_row("dpo", variant)
    rows = training_data.make_dpo_rows(conversations, tokenizer, _system(cfg), cfg.rollout.max_prompt_tokens, variant, seed)
    batch = _aloe_batch(settings.batch) if aloe else settings.batch
    rows = training_data.sort_by_length(rows, [len(prompt_ids(tokenizer, row["prompt"])) for row in rows], batch)
    rate = settings.lr * (ALOE_DPO_LR / PAPER_DPO_LR if aloe else 1)
    beta = ALOE_DPO_BETA if aloe else settings.beta
    start = {"peft_config": adapter_config(cfg)} if settings.start == "base" else {}
    made_from = _digest(conversations)
    if settings.start == "sft":
        folder = run.path(f"adapters/{name_row('sft', variant)}")
        model, made_from = _continued(model, folder), made_from + parties.hash_adapter(folder)
    args = DPOConfig(
        **make_arguments(run, name, settings, batch, math.gcd(batch, settings.micro_batch or batch), seed, made_from),
        learning_rate=rate,
        beta=beta,
        max_length=None,  # prompts are fitted already
    )
    trainer = make_quiet_trainer(PlainDPO, model=model, args=args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer, **start)
    facts = {"variant": variant, "pairs": len(rows), "batch": batch, "learning rate": rate, "beta": beta, "start": settings.start}
    return trainer, {**facts, "conversations": len(conversations), "data": _digest(conversations), "epochs": settings.epochs}


def fit(trainer, run: Run, name: str, card: dict[str, Any], say: Callable[[str], None], offset: int = 0) -> list[dict]:
    """Train from the newest whole checkpoint, or from the start; save adapter and card; the metrics of all steps."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(MetricsLog(run, name, say, offset))
    checkpoint = find_newest(Path(trainer.args.output_dir))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    save_adapter(trainer.model, run.path(f"adapters/{name}"), lambda folder: write_card(folder, name, run, card))
    return run.read_metrics(name)


def save_adapter(model: PeftModel, folder: Path, finish: Callable[[Path], None]) -> None:
    """The trained adapter in PEFT format (safetensors); `finish` adds to it before it takes its place as a whole."""
    staged = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    model.save_pretrained(staged, selected_adapters=["default"], save_embedding_layers=False)
    finish(staged)
    shutil.rmtree(folder, ignore_errors=True)
    staged.rename(folder)


def write_card(folder: Path, name: str, run: Run, facts: dict[str, Any]) -> None:
    """README.md of an adapter: what it is, what made it, and what it is not."""
    cfg, record = run.cfg, run.record
    tiny = "The base model is a miniature of a few million weights that knows one small made-up world: this adapter says nothing about real models."
    lines = [
        "---", "library_name: peft", "---", f"# Adapter `{name}`", "",
        f"A LoRA adapter of rank {cfg.policy.lora_rank} for `{cfg.policy.model}`, trained as a baseline for RLPA.", "",
        *(f"- {key}: {value}" for key, value in facts.items()), f"- seed: {run.seed}",
        f"- settings: `{record['params_name']}`, sha256 {record['params_sha256'][:12]}; code: {record['code']['commit']}", "",
        tiny if cfg.policy.model == "tiny" else "It was trained for one comparison and tested for nothing else.",
        "What the paper's authors trained, and with which of ALOE's scripts, is not published.",
    ]  # fmt: skip
    storage.write_bytes(folder / "README.md", ("\n".join(lines) + "\n").encode())


def make_arguments(run: Run, name: str, settings, batch: int, micro: int, seed: int, made_from: str) -> dict[str, Any]:
    """What SFT, DPO and GRPO have in common. Checkpoints of other settings, data or code lie in other folders, so none is taken up by mistake."""
    fingerprint = run.fingerprint(name, made_from)[:12]
    return {
        "output_dir": str(run.path(f"checkpoints/{name}/{fingerprint}")),
        "num_train_epochs": getattr(settings, "epochs", 1),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": batch // micro,
        "train_sampling_strategy": "sequential",  # our rows come in their order
        "seed": seed,
        "bf16": run.cfg.policy.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "weight_decay": 0.0,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": settings.checkpoint_every,
        "save_total_limit": 1,
        "report_to": "none",
        "push_to_hub": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def make_quiet_trainer(make: Callable, **arguments):
    """A trainer made without the progress bars of its data preparation."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return make(**arguments)
    finally:
        if shown:
            datasets.enable_progress_bars()


def adapter_config(cfg: Config) -> LoraConfig:
    """LoRA as `policy.lora_*` says, whatever `policy.tuning` is: rows of the tables load adapters."""
    targets = cfg.policy.lora_targets
    return LoraConfig(
        r=cfg.policy.lora_rank,
        lora_alpha=cfg.policy.lora_alpha,
        lora_dropout=cfg.policy.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )


def _continued(model, folder: Path) -> PeftModel:
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: no adapter here, and dpo.start is sft; run 11_sft with this run directory first")
    return PeftModel.from_pretrained(model, folder, is_trainable=True)


def _aloe_batch(batch: int) -> int:
    """ALOE's 48 for the paper's 32, and in that proportion at other scales."""
    return max(1, batch * ALOE_BATCH // PAPER_BATCH)


def _seed(run: Run, name: str) -> int:
    return derive_seed(run.seed, name) % 2**32


def _system(cfg: Config) -> str:
    return prompt_files.load_prompt("base", cfg.run.prompt_set, cfg.run.prompt_dir)


def _digest(conversations: Sequence[Conversation]) -> str:
    return f"sha256 {storage.hash_json([c.to_json() for c in conversations])[:12]}"
