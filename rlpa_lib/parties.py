"""The parties of a run, made from its settings: users, judges, and the policy's model and tokenizer."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from rlpa_lib.config import Config, InputError
from rlpa_lib.judges import EvaluationJudge, Judge
from rlpa_lib.mini.judge import RuleEvaluationJudge, RuleJudge
from rlpa_lib.mini.model import WEIGHTS
from rlpa_lib.mini.user import AgendaUser
from rlpa_lib.users import SimulatedUser


def _offline_only(section: str, kind: str, offline: str) -> None:
    if kind != offline:
        raise InputError(f"{section}.kind: {kind!r} needs the endpoint client, which is not part of this version; use {offline!r}")


def simulated_user(cfg: Config, split: str, seed: int) -> SimulatedUser:
    """The user of a split: test users speak with sentence frames that no training user has."""
    _offline_only("user", cfg.user.kind, "agenda")
    return AgendaUser(seed, "user_train" if split == "train" else "user_test")


def reward_judge(cfg: Config) -> Judge:
    """The source of training rewards (sections 3.2 and 3.3)."""
    _offline_only("judge", cfg.judge.kind, "rule")
    return RuleJudge()


def evaluation_judge(cfg: Config) -> EvaluationJudge:
    """The source of evaluation scores (appendix C.3)."""
    _offline_only("evaluator", cfg.evaluator.kind, "rule")
    return RuleEvaluationJudge()


def with_adapter(model, folder: Path):
    """The model with a trained LoRA adapter (PEFT format). InputError: there is none in the folder."""
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: no adapter here; run 20_ppo with this run directory first")
    return PeftModel.from_pretrained(model, folder).eval()


def _tokenizer_class(source: str):
    """AutoTokenizer goes by the model's architecture and would read our own pieces as Qwen2's byte pairs, letter by letter;
    a folder whose tokenizer says that its file is complete is taken at its word."""
    settings = Path(source) / "tokenizer_config.json"
    complete = settings.is_file() and json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class") == "TokenizersBackend"
    return PreTrainedTokenizerFast if complete else AutoTokenizer


def load_model(cfg: Config):
    """(model, tokenizer) of `policy.model`: "tiny" ships with the package, a folder or a hub name goes to transformers.
    InputError: there is no such model."""
    name = cfg.policy.model
    if name == "smollm2":
        raise InputError("policy.model: 'smollm2' is not part of this version; use 'tiny', a folder or a hub name")
    source = str(WEIGHTS) if name == "tiny" else str(Path(name).expanduser()) if name.startswith((".", "/", "~")) else name
    try:
        tokenizer = _tokenizer_class(source).from_pretrained(source, revision=cfg.policy.revision)
        model = AutoModelForCausalLM.from_pretrained(source, revision=cfg.policy.revision, dtype=getattr(torch, cfg.policy.dtype))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"policy.model: {name!r} could not be loaded: {reason}") from error
    return model, tokenizer


def adapter_hash(folder: Path) -> str:
    """SHA-256 of an adapter's weights, to tell one training from another."""
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
