"""LoRA adapters from their folders: whole on the model that they were trained for, or refused by name."""

import json
from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from peft.utils.other import AuxiliaryTrainingWrapper

from rlpa_lib.settings.config import InputError

FILE = "adapter_config.json"
MISFITS = (AttributeError, KeyError, RuntimeError, TypeError, ValueError)  # what PEFT raises


def load_adapter(model, folder: Path | str, name: str = "default", *, trainable: bool = False) -> PeftModel:
    """The model with a trained LoRA adapter (PEFT format; DoRA, rsLoRA and the like are LoRA, too).

    InputError: the folder holds none, one of another kind, or one that does not fit this model whole: PEFT
    itself leaves out what it finds no place for.
    """
    settings = read_settings(folder)
    if (found := settings.get("peft_type")) != "LORA":
        raise InputError(f"{folder}: an adapter of peft_type {found}; only LORA can be sampled here")
    if settings.get("alora_invocation_tokens"):
        why = "works only behind its alora_invocation_tokens, which no prompt here holds"
        raise InputError(f"{folder}: this adapter {why}")
    told = f"{folder}: this adapter does not fit policy.model"
    base = settings.get("base_model_name_or_path")
    told += f" (it names {base} as its model)" if base else ""
    try:
        made = PeftModel.from_pretrained(model, folder, name, is_trainable=trainable)
    except MISFITS as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(f"{told}: {' '.join(lines[:2])[:300]}") from error
    saved = {key for key in load_peft_weights(str(folder), device="cpu") if "lora_" in key}
    own = {
        key
        for key in get_peft_model_state_dict(made, adapter_name=name, save_embedding_layers=False)
        if "lora_" in key
    }
    if missing := sorted(saved ^ own):
        whose = "no such weights" if missing[0] in saved else "weights that it lacks"
        raise InputError(f"{told}: the model has {whose}, as {missing[0]}")
    return made


def merge_adapter(model, folder: Path | str):
    """The model with an adapter's weights in its own. InputError: as in `load_adapter`; or input and output
    layer are one, which after merging they would not be."""
    made = load_adapter(model, folder)
    base = made.get_base_model()
    tables = base.get_input_embeddings(), base.get_output_embeddings()
    changed = any(isinstance(table, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for table in tables)
    if changed and base.config.get_text_config(decoder=True).tie_word_embeddings:
        why = "changes the input or the output layer, and in policy.model these are one (tie_word_embeddings)"
        raise InputError(f"{folder}: this adapter {why}; it cannot be merged for policy.tuning=full")
    return made.merge_and_unload()


def read_settings(folder: Path | str) -> dict:
    """adapter_config.json of a folder. InputError: it is not there."""
    file = Path(folder) / FILE
    if not file.is_file():
        raise InputError(f"{folder}: no adapter here ({FILE}); run 20_ppo with this run directory first")
    return json.loads(file.read_text(encoding="utf-8"))
