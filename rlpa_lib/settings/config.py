"""Typed settings read from params/*.yaml: unknown keys, wrong types and impossible values are errors with an
address."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from rlpa_lib.settings.checks import problems
from rlpa_lib.settings.kinds import SOURCES
from rlpa_lib.settings.schema import Config

# The package is installed editable: params/ lies beside the package, in the repository.
PARAMS_DIR = Path(__file__).resolve().parents[2] / "params"

_PATH_KEYS = ("personas.path", "personas.personachat_path", "policy.adapter", "run.prompt_dir")
_NUMBER_AS_TEXT = re.compile(r"([+-]?\d+)[eE]([+-]?\d+)")


class InputError(ValueError):
    """Bad params, persona file or folder: one line that names file, line, key or slot. The command line exits
    with 2."""


def load_config(params: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Settings of a scale (`mini` finds params/mini.yaml) or of a YAML file, changed by `a.b=value`
    overrides.

    Relative paths count from the params file's folder, or from the working directory when an override names
    them. Raises InputError with file (or --set) and dotted key.
    """
    file, label = locate_params(params)
    tree = _read(file, label)
    origin = dict.fromkeys(_dotted(tree), label)
    _absolute_paths(tree, file.parent)
    for text in overrides:
        key, value = _parse_override(text)
        changed = _nest(key, value)
        _absolute_paths(changed, Path.cwd())
        _merge(tree, changed)
        origin[key] = f"--set {text}"
        origin.setdefault(key.split(".")[0], f"--set {text}")
    return _validate(tree, origin, label)


def dump_config(cfg: Config) -> dict[str, Any]:
    """All settings as plain JSON types, defaults filled in."""
    return cfg.model_dump(mode="json")


def change_config(cfg: Config, overrides: Sequence[str], label: str) -> Config:
    """The same settings with `a.b=value` changes, for a part of a run. InputError, headed by `label`, as in
    `load_config`."""
    tree = dump_config(cfg)
    for text in overrides:
        _merge(tree, _nest(*_parse_override(text)))
    return _validate(tree, {}, label)


def check_files(cfg: Config, label: str) -> None:
    """InputError when data that a run would read are not there; apart from `load_config`, so that a plan
    needs no data."""
    if SOURCES[cfg.personas.source].needs_path and cfg.personas.path is None:
        raise InputError(f"{label}: personas.path: is needed when personas.source is {cfg.personas.source}")
    for key in _PATH_KEYS:
        section, name = key.split(".")
        value = getattr(getattr(cfg, section), name)
        if value is not None and not Path(value).exists():
            raise InputError(f"{label}: {key}: no such file or folder: {value}")


def locate_params(params: str | Path) -> tuple[Path, str]:
    """File of a scale or path, and the name under which messages show it. InputError when there is no such
    file."""
    text = str(params)
    named = PARAMS_DIR / f"{text}.yaml"
    if re.fullmatch(r"[\w-]+", text) and named.is_file():
        return named, f"params/{text}.yaml"
    file = Path(text).expanduser()
    if file.is_file():
        return file.resolve(), text
    scales = ", ".join(sorted(path.stem for path in PARAMS_DIR.glob("*.yaml")))
    raise InputError(f"{text}: no such params file, and no such scale (there are: {scales})")


def anchor_paths(overrides: Sequence[str]) -> list[str]:
    """The same overrides with paths made absolute, for a process that works in another folder. InputError as
    in `load_config`."""
    texts = []
    for text in overrides:
        key, value = _parse_override(text)
        tree = _nest(key, value)
        _absolute_paths(tree, Path.cwd())
        [[_, now]] = tree[key.split(".")[0]].items()
        texts.append(text if now == value else f"{key}={now}")
    return texts


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every dotted key that a params file may hold."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += known_keys(inner, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key_node, _ in node.value:
            name = str(key_node.value)
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"key {name!r} twice", problem_mark=key_node.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, label: str) -> Any:
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        why = " ".join(str(getattr(error, "problem", None) or error).split())
        raise InputError(f"{label}{where}: not YAML: {why}") from None


def _read(file: Path, label: str) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{label}: cannot be read: {error}") from None
    tree = _parse_yaml(text, label)
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise InputError(f"{label}: holds {type(tree).__name__}; sections such as `ppo:` are wanted")
    for name, section in tree.items():
        if not isinstance(section, dict):
            raise InputError(f"{label}: {name}: {_unknown(str(name)) or 'holds no keys'}")
    return tree


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(r"\w+\.\w+", key):
        raise InputError(f"--set {text}: write section.key=value, for example ppo.lr=1.0e-5")
    return key, _parse_yaml(value, f"--set {text}")


def _nest(key: str, value: Any) -> dict[str, dict[str, Any]]:
    section, name = key.split(".")
    return {section: {name: value}}


def _merge(tree: dict[str, Any], changed: dict[str, dict[str, Any]]) -> None:
    for section, values in changed.items():
        tree.setdefault(section, {}).update(values)


def _dotted(tree: dict[str, Any]) -> list[str]:
    return [f"{section}.{name}" for section, values in tree.items() for name in values]


def _absolute_paths(tree: dict[str, Any], base: Path) -> None:
    for key in (*_PATH_KEYS, "policy.model", "endpoint.cache"):
        section, name = key.split(".")
        value = tree.get(section, {}).get(name)
        is_path = isinstance(value, str) and (key in _PATH_KEYS or value.startswith((".", "/", "~")))
        if is_path and value:
            tree[section][name] = str((base / Path(value).expanduser()).resolve())


def _unknown(key: str) -> str:
    keys = known_keys()
    sections = sorted({name.split(".")[0] for name in keys})
    if key in sections:
        return ""
    near = difflib.get_close_matches(key, keys if "." in key else sections, n=1)
    return "unknown key" + (f"; did you mean {near[0]}?" if near else "")


def _validate(tree: dict[str, Any], origin: dict[str, str], label: str) -> Config:
    """The settings in a tree. InputError: one line for the first problem, headed by where its key comes
    from."""
    try:
        cfg = Config.model_validate(tree)
    except ValidationError as error:
        first, *others = error.errors()
        # lists add an index and unions a type name behind section.key
        key = ".".join(str(part) for part in first["loc"][:2])
        more = f" (and {len(others)} more)" if others else ""
        raise InputError(f"{origin.get(key, label)}: {key}: {_complaint(first, key)}{more}") from None
    for key, why in problems(cfg):
        text = f"{key}: {why}"
        # of several settings that cannot work together, an override is to blame
        named = re.findall(r"\w+\.\w+", text)
        blamed = next((name for name in named if origin.get(name, "").startswith("--set")), named[0])
        raise InputError(f"{origin.get(blamed, label)}: {text}")
    return cfg


def _complaint(problem: Any, key: str) -> str:
    value = problem["input"]
    if problem["type"] == "extra_forbidden":
        return _unknown(key) or "unknown key"
    if isinstance(value, str) and (match := _NUMBER_AS_TEXT.fullmatch(value.strip())):
        return f"{value!r} is text in YAML; write {match[1]}.0e{match[2]}"
    return f"{problem['msg'][:1].lower()}{problem['msg'][1:]}; got {value!r}"
