"""The offline-optimisation baselines SFT and DPO (appendices D.2, E.2) by TRL's trainers, with LoRA.

Both rows answer like Base: they see the plain system prompt `base` and write no profile block, because that
is what preference data teach. What the paper leaves open and we chose: linear decay of the learning rate
without warm-up (the trainers' default), AdamW without weight decay, LoRA where the paper may have tuned all
weights (and LoRA too where `policy.tuning: full` makes PPO tune all), and where DPO starts from.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from transformers import PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from rlpa_lib.agents import devices
from rlpa_lib.agents.adapters import load_adapter
from rlpa_lib.agents.prompt_tokens import prompt_ids
from rlpa_lib.agents.trained import load_trained
from rlpa_lib.methods import training_data
from rlpa_lib.methods.plain_state import MetricsLog, PlainState, find_newest
from rlpa_lib.methods.table import Parts
from rlpa_lib.methods.training_data import ALOE_BATCH, ALOE_DPO_BETA, ALOE_DPO_LR, PAPER_BATCH, PAPER_DPO_LR
from rlpa_lib.personas.conversations import Talks
from rlpa_lib.rlpa.networks import lora_config
from rlpa_lib.rlpa.processes import Processes
from rlpa_lib.runs import storage
from rlpa_lib.runs.run import Run
from rlpa_lib.runs.seeds import derive_seed
from rlpa_lib.settings.config import Config, InputError

Say = Callable[[str], None]
Facts = dict[str, Any]


class PlainSFT(PlainState, SFTTrainer):
    """TRL's SFTTrainer with checkpoints that are no pickles."""


class PlainDPO(PlainState, DPOTrainer):
    """TRL's DPOTrainer with checkpoints that are no pickles."""


def name_row(method: str, variant: str) -> str:
    """A table row and its adapter: sft, dpo, or sft_aloe, dpo_aloe for the variant `aloe_scripts`."""
    return f"{method}_aloe" if variant == "aloe_scripts" else method


def train_sft(
    run: Run, model, tokenizer, talks: Talks, variant: str = "fixed", say: Say = print,
    processes: Processes | None = None,
) -> list[dict]:
    """Supervised fine-tuning on the preferred responses; adapters/sft (or sft_aloe), and every step's
    metrics.

    One sample is a trunk or a branch of a conversation (`training_data.list_branches`), and the loss is a
    mean over the tokens of a batch. The model is changed in place: load a new one for the next training. A
    killed run goes on from its checkpoint and ends with the same adapter. Several processes share each batch;
    where rows do not fill the last one, accelerate fills it up with the first rows.
    """
    processes = processes or Processes()
    trainer, facts = make_sft_trainer(run, model, tokenizer, talks, variant, processes.world)
    return fit(trainer, run, name_row("sft", variant), facts, say, processes=processes)


def train_dpo(
    run: Run, model, tokenizer, talks: Talks, variant: str = "fixed", say: Say = print,
    processes: Processes | None = None,
) -> list[dict]:
    """Direct preference optimisation on the two responses of a turn; adapters/dpo (or dpo_aloe), and metrics.

    `dpo.start: base` trains a new adapter with the base model as reference, `sft` goes on with the run's SFT
    adapter and has that adapter, frozen, as reference. The paper does not say which; ALOE's own script starts
    from the base model. Resume and processes as in `train_sft`. InputError: the SFT adapter is not there.
    """
    processes = processes or Processes()
    trainer, facts = make_dpo_trainer(run, model, tokenizer, talks, variant, processes.world)
    return fit(trainer, run, name_row("dpo", variant), facts, say, processes=processes)


def make_sft_trainer(
    run: Run, model, tokenizer, talks: Talks, variant: str, world: int = 1
) -> tuple[PlainSFT, Facts]:
    """The trainer ready to go as one of `world`, and what its model card says."""
    cfg, rollout, settings, aloe = run.cfg, run.cfg.rollout, run.cfg.sft, variant == "aloe_scripts"
    longest, batch = rollout.max_prompt_tokens + rollout.max_new_tokens, choose_batch(cfg, "sft", variant)
    seed, digest = derive_seed(run.seed, "sft") % 2**32, _hash(talks)
    system = Parts("sft", cfg).prompt("base")
    rows = training_data.make_sft_rows(talks, tokenizer, system, longest, variant, seed)
    if not aloe:
        rows = training_data.sort_by_length(rows, [len(row["input_ids"]) for row in rows], batch)
    micro = 1 if aloe else settings.micro_batch or batch
    args = SFTConfig(
        **make_arguments(run, name_row("sft", variant), settings, batch, micro, seed, digest, world),
        learning_rate=settings.lr,  # ALOE's script and the paper agree on 1e-5
        max_length=longest, packing=aloe, packing_strategy="wrapped",
        dataset_kwargs=None if aloe else {"skip_prepare_dataset": True},
    )
    trainer = make_quiet_trainer(PlainSFT, model, args, tokenizer, rows, peft_config=lora_config(cfg))
    return trainer, {
        "variant": variant, "samples": len(trainer.train_dataset), "batch": batch,
        "learning rate": settings.lr, "conversations": len(talks), "data": digest, "epochs": settings.epochs,
    }


def make_dpo_trainer(
    run: Run, model, tokenizer, talks: Talks, variant: str, world: int = 1
) -> tuple[PlainDPO, Facts]:
    """The trainer ready to go as one of `world`, and what its model card says."""
    cfg, settings, aloe = run.cfg, run.cfg.dpo, variant == "aloe_scripts"
    seed, digest = derive_seed(run.seed, "dpo") % 2**32, _hash(talks)
    longest, batch = cfg.rollout.max_prompt_tokens, choose_batch(cfg, "dpo", variant)
    system = Parts("dpo", cfg).prompt("base")
    rows = training_data.make_dpo_rows(talks, tokenizer, system, longest, variant, seed)
    rows = training_data.sort_by_length(rows, [len(prompt_ids(tokenizer, r["prompt"])) for r in rows], batch)
    rate = settings.lr * (ALOE_DPO_LR / PAPER_DPO_LR if aloe else 1)
    beta = ALOE_DPO_BETA if aloe else settings.beta
    made_from, start = digest, {"peft_config": lora_config(cfg)}
    if settings.start == "sft":
        wanted, start = "dpo.start is sft; run 11_sft with this run directory first", {}
        trained = load_trained(run.dir, name_row("sft", variant), wanted)
        model = load_adapter(model, trained.as_adapter(), trainable=True)
        made_from += trained.hash()
    micro = math.gcd(batch, settings.micro_batch or batch)
    args = DPOConfig(
        **make_arguments(run, name_row("dpo", variant), settings, batch, micro, seed, made_from, world),
        learning_rate=rate, beta=beta, max_length=None,  # prompts are cut already
    )
    trainer = make_quiet_trainer(PlainDPO, model, args, tokenizer, rows, **start)
    return trainer, {
        "variant": variant, "pairs": len(rows), "batch": batch, "learning rate": rate, "beta": beta,
        "start": settings.start, "conversations": len(talks), "data": digest, "epochs": settings.epochs,
    }


def fit(
    trainer, run: Run, name: str, facts: Facts, say: Say, offset: int = 0, processes: Processes | None = None
) -> list[dict]:
    """Train from the newest whole checkpoint, or from the start; save the adapter in PEFT format with its
    card, in one step; all metrics. Of several processes the main one writes."""
    processes = processes or Processes()
    trainer.remove_callback(PrinterCallback)
    if processes.main:
        trainer.add_callback(MetricsLog(run, name, say, offset))
    checkpoint = processes.on_main(lambda: find_newest(Path(trainer.args.output_dir)))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def save() -> list[dict]:
        folder = run.path(f"adapters/{name}")
        staged = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(staged, ignore_errors=True)
        trainer.model.save_pretrained(staged, selected_adapters=["default"], save_embedding_layers=False)
        storage.write_bytes(staged / "README.md", render_card(name, run, facts).encode())
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)
        return run.read_metrics(name)

    return processes.on_main(save)


def render_card(name: str, run: Run, facts: Facts) -> str:
    """README.md of an adapter: what it is, what made it, and what it is not."""
    policy, record = run.cfg.policy, run.record
    warning = "It was trained for one comparison and tested for nothing else."
    if policy.model == "tiny":
        tiny = "a miniature of a few million weights that knows one small made-up world"
        warning = f"The base model is {tiny}: this adapter says nothing about real models."
    listed = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    return f"""---
library_name: peft
---
# Adapter `{name}`

A LoRA adapter of rank {policy.lora_rank} for `{policy.model}`, trained as a baseline for RLPA.

{listed}
- seed: {run.seed}
- settings: `{record["params_name"]}`, sha256 {record["params_sha256"][:12]}; code: {record["code"]["commit"]}

{warning}
What the paper's authors trained, and with which of ALOE's scripts, is not published.
"""


def make_arguments(
    run: Run, name: str, settings, batch: int, micro: int, seed: int, made_from: str, world: int = 1
) -> Facts:
    """What SFT, DPO and GRPO have in common. Each of `world` processes has its share of the `batch` rows of a
    step, at most `micro` of them at once.

    Checkpoints of other settings, data or code lie in other folders, so none is taken up by mistake.
    """
    if batch % world:
        raise InputError(f"{name}: {batch} samples a step cannot be shared evenly by {world} processes")
    fingerprint, cuda = run.fingerprint(name, made_from)[:12], devices.choose_device().type == "cuda"
    share = batch // world
    micro = math.gcd(share, micro)
    return {
        "output_dir": str(run.path(f"checkpoints/{name}/{fingerprint}")),
        "num_train_epochs": getattr(settings, "epochs", 1),
        "per_device_train_batch_size": micro, "gradient_accumulation_steps": share // micro,
        "train_sampling_strategy": "sequential",  # our rows come in their order
        "seed": seed, "weight_decay": 0.0,
        "gradient_checkpointing": run.cfg.policy.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": run.cfg.policy.dtype == "bfloat16", "use_cpu": not cuda, "dataloader_pin_memory": cuda,
        "save_strategy": "steps", "save_steps": settings.checkpoint_every, "save_total_limit": 1,
        "logging_steps": 1, "report_to": "none", "push_to_hub": False, "disable_tqdm": True,
    }


def make_quiet_trainer(make: Callable, model, args, tokenizer, rows: list[dict], **options):
    """A TRL trainer made without the progress bars of its data preparation, on the one device of this
    process: of several GPUs in sight the Trainer would take all by DataParallel, which TRL refuses."""
    args._n_gpu = min(args.n_gpu, 1)
    enabled = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        data = datasets.Dataset.from_list(rows)
        return make(model=model, args=args, processing_class=tokenizer, train_dataset=data, **options)
    finally:
        if enabled:
            datasets.enable_progress_bars()


def choose_batch(cfg: Config, stage: str, variant: str = "fixed") -> int:
    """Samples of one optimiser step of "sft", "dpo" or "grpo": for ALOE's scripts their 48 for the paper's
    32, and in that proportion at other scales."""
    if stage == "grpo":
        return cfg.grpo.batch * cfg.grpo.samples
    batch = getattr(cfg, stage).batch
    return max(1, batch * ALOE_BATCH // PAPER_BATCH) if variant == "aloe_scripts" else batch


def _hash(talks: Talks) -> str:
    return f"sha256 {storage.hash_json([talk.to_json() for talk in talks])[:12]}"
