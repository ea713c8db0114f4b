"""Prompt texts: one file per prompt and set (en, zh, mini), all ours, each naming the paper's section."""
from functools import cache
from importlib import resources
from pathlib import Path

from rlpa_lib.settings.config import InputError


@cache
def load_prompt(name: str, prompt_set: str = "en", prompt_dir: str | Path | None = None) -> str:
    """A prompt without its '#' comments; files in `prompt_dir` win. InputError: no such prompt or folder."""
    own = Path(prompt_dir) / f"{name}.txt" if prompt_dir else None
    if prompt_dir and not Path(prompt_dir).is_dir():
        raise InputError(f"run.prompt_dir: no such folder: {prompt_dir}")
    shipped = resources.files("rlpa_lib.dialogue") / "prompts" / prompt_set / f"{name}.txt"
    source = own if own and own.is_file() else shipped
    if not source.is_file():
        raise InputError(f"no prompt {name!r} in the set {prompt_set!r}")
    lines = source.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#")).strip()
