"""The policy's model and tokenizer, and the in-process policy made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpa_lib.agents import smollm2, world
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import POLICIES

if TYPE_CHECKING:
    from rlpa_lib.agents.local_policy import LocalPolicy
    from rlpa_lib.runs.run import Run


def load_model(cfg: Config):
    """(model, tokenizer) of `policy.model`: "tiny" ships with this package, "smollm2" with its own;
    transformers loads a folder or hub name. InputError: there is no such model, or it has no weights here."""
    import torch
    from transformers import AutoModelForCausalLM

    options = {"revision": cfg.policy.revision, "dtype": getattr(torch, cfg.policy.dtype)}
    tokenizer = load_tokenizer(cfg)
    return _load(cfg, lambda source: AutoModelForCausalLM.from_pretrained(source, **options)), tokenizer


def load_tokenizer(cfg: Config):
    """The tokenizer of `policy.model`. InputError as in `load_model`."""
    options = {"revision": cfg.policy.revision}
    return _load(cfg, lambda source: _tokenizer_class(source).from_pretrained(source, **options))


def attach_adapter(model, folder: Path):
    """The model with a trained LoRA adapter (PEFT format). InputError: the folder holds none."""
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder}: no adapter here; run 20_ppo with this run directory first")
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder).eval()


def hash_adapter(folder: Path) -> str:
    """SHA-256 of an adapter's weights, to tell trainings apart."""
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def make_local_policy(
    model, tokenizer, cfg: Config, *, portion: int | None = None, reuse: bool = False
) -> LocalPolicy:
    """A model in this process as a policy, with the run's limits; `portion`, `reuse`: see `LocalPolicy`."""
    from rlpa_lib.agents.local_policy import LocalPolicy

    sizes = {"max_prompt_tokens": cfg.rollout.max_prompt_tokens, "batch_prompts": cfg.rollout.micro_batch}
    return LocalPolicy(model, tokenizer, **sizes, portion=portion, reuse=reuse)


def make_policy(cfg: Config, run: Run | Path | None, adapter: Path | None = None) -> LocalPolicy:
    """The policy of a row, loaded into this process."""
    model, tokenizer = load_model(cfg)
    return make_local_policy(model if adapter is None else attach_adapter(model, adapter), tokenizer, cfg)


def _load(cfg: Config, load: Callable[[str], Any]) -> Any:
    name, kind = cfg.policy.model, cfg.policy.kind
    if not POLICIES[kind].trainable:
        why = f"{name!r} has no weights here, it can be evaluated but not trained"
        raise InputError(f"policy.kind: {kind}: {why}; use local or vllm to train")
    try:
        return load(_find(name))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"policy.model: {name!r} could not be loaded: {reason}") from error


def _find(name: str) -> str:
    """Folder or hub name of a model's weights."""
    if name == "smollm2":
        return str(smollm2.unpack_model())
    if name == "tiny":
        return str(world.WEIGHTS)
    return str(Path(name).expanduser()) if name.startswith((".", "/", "~")) else name


def _tokenizer_class(source: str):
    """AutoTokenizer would read our tokenizer as Qwen2's; one whose file is complete is read as it is."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = Path(source) / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    complete = settings.get("tokenizer_class") == "TokenizersBackend"
    return PreTrainedTokenizerFast if complete else AutoTokenizer
