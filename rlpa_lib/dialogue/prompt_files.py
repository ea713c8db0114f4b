"""Prompt texts: one file per prompt and set (en, zh, mini), each ours, each naming the section that it
implements."""
from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

from rlpa_lib.settings.config import InputError


@cache
def load_prompt(name: str, prompt_set: str = "en", prompt_dir: str | Path | None = None) -> str:
    """The text of a prompt; lines starting with '#' are comments. A file in `prompt_dir` wins over the one
    that ships. InputError: there is no such prompt."""
    own = Path(prompt_dir) / f"{name}.txt" if prompt_dir else None
    if prompt_dir and not Path(prompt_dir).is_dir():
        raise InputError(f"run.prompt_dir: no such folder: {prompt_dir}")
    source = (
        own
        if own and own.is_file()
        else resources.files("rlpa_lib.dialogue") / "prompts" / prompt_set / f"{name}.txt"
    )
    if not source.is_file():
        raise InputError(f"no prompt {name!r} in the set {prompt_set!r}")
    lines = source.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#")).strip()
