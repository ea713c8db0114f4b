"""Typed settings read from params/*.yaml: unknown keys, wrong types, impossible values and combinations are
errors with an address."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rlpa_lib.settings.base import ProfileJudgeConfig
from rlpa_lib.settings.kinds import EVALUATORS, JUDGES, METHODS, POLICIES, SOURCES, USERS
from rlpa_lib.settings.layout import layout_of
from rlpa_lib.settings.schema import Config

# The package is installed editable: params/ lies beside the package, in the repository.
PARAMS_DIR = Path(__file__).resolve().parents[2] / "params"

_PATH_KEYS = ("personas.path", "personas.personachat_path", "policy.adapter", "run.prompt_dir")
# Keys that were there once -> where their values belong now.
_MOVED = {"judge.profile_model": "profile_judge.model"}
_NUMBER_AS_TEXT = re.compile(r"([+-]?\d+)[eE]([+-]?\d+)")


class InputError(ValueError):
    """Bad params, persona file or folder: one line that names file, line, key or slot. The command line exits
    with 2."""


def load_config(params: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Settings of a scale (`mini` finds params/mini.yaml) or a YAML file, changed by `a.b=value` overrides.
    Relative paths count from the params file's folder; an override's count from the working directory.
    InputError with file (or --set) and dotted key."""
    file, label = locate_params(params)
    values = {key: _anchor(key, value, file.parent) for key, value in _read(file, label).items()}
    origin: dict[str, str] = {}
    for text in overrides:
        key, value = _parse_override(text)
        values[key] = _anchor(key, value, Path.cwd())
        origin[key] = f"--set {text}"
        origin.setdefault(key.split(".")[0], f"--set {text}")
    return _validate(values, origin, label)


def dump_config(cfg: Config) -> dict[str, Any]:
    """All settings as plain JSON types, defaults filled in."""
    return cfg.model_dump(mode="json")


def flatten(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Value by dotted key."""
    return {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}


def change_config(cfg: Config, overrides: Sequence[str], label: str) -> Config:
    """The same settings with `a.b=value` changes, for a part of a run. InputError, headed by `label`, as in
    `load_config`."""
    return _validate(flatten(dump_config(cfg)) | dict(map(_parse_override, overrides)), {}, label)


def check_files(cfg: Config, label: str) -> None:
    """InputError when data that a run would read are not there; apart from `load_config`, so that a plan
    needs no data."""
    if SOURCES[cfg.personas.source].needs_path and cfg.personas.path is None:
        raise InputError(f"{label}: personas.path: is needed when personas.source is {cfg.personas.source}")
    for key in _PATH_KEYS:
        value = attrgetter(key)(cfg)
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
        now = _anchor(key, value, Path.cwd())
        texts.append(text if now == value else f"{key}={now}")
    return texts


def known_keys() -> list[str]:
    """Every dotted key that a params file may hold."""
    return list(flatten({name: field.annotation.model_fields for name, field in Config.model_fields.items()}))


_BARE = ProfileJudgeConfig().model_dump()


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
    """Value by dotted key."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{label}: cannot be read: {error}") from None
    tree = _parse_yaml(text, label)
    if not isinstance(tree, dict | None):
        raise InputError(f"{label}: holds {type(tree).__name__}; sections such as `ppo:` are wanted")
    for name, section in (tree or {}).items():
        if not isinstance(section, dict) or (not section and _suggest(str(name))):
            raise InputError(f"{label}: {name}: {_suggest(str(name)) or 'holds no keys'}")
    return flatten(tree or {})


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(r"\w+\.\w+", key):
        raise InputError(f"--set {text}: write section.key=value, for example ppo.lr=1.0e-5")
    return key, _parse_yaml(value, f"--set {text}")


def _anchor(key: str, value: Any, base: Path) -> Any:
    """The value, absolute if it is a path."""
    names = key in ("policy.model", "endpoint.cache")  # or paths, which start with one of these
    is_path = key in _PATH_KEYS or (names and str(value).startswith((".", "/", "~")))
    if not (is_path and value and isinstance(value, str)):
        return value
    return str((base / Path(value).expanduser()).resolve())


def _suggest(key: str) -> str:
    """What is wrong with an unknown section or key; "" for a section that there is."""
    if key in Config.model_fields:
        return ""
    if key in _MOVED:
        return f"has gone: write {_MOVED[key]}, with base_url and api_key_env of its own"
    near = difflib.get_close_matches(key, known_keys() if "." in key else sorted(Config.model_fields), n=1)
    return "unknown key" + (f"; did you mean {near[0]}?" if near else "")


def _validate(values: Mapping[str, Any], origin: Mapping[str, str], label: str) -> Config:
    """The settings with these dotted keys. InputError: one line for the first problem, headed by where its
    key comes from."""
    tree: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    try:
        cfg = Config.model_validate(tree)
    except ValidationError as error:
        first, *others = error.errors()
        # lists add an index and unions a type name behind section.key
        key = ".".join(map(str, first["loc"][:2]))
        more = f" (and {len(others)} more)" if others else ""
        raise InputError(f"{origin.get(key, label)}: {key}: {_complain(first, key)}{more}") from None
    for key, why in (*_training_problems(cfg), *_other_problems(cfg)):
        text = f"{key}: {why}"
        # of several settings that cannot work together, an override is to blame
        blamed = next((name for name in re.findall(r"\w+\.\w+", text) if name in origin), key)
        raise InputError(f"{origin.get(blamed, label)}: {text}")
    if cfg.run.gpus is None:
        return cfg
    chosen = layout_of(cfg, served=POLICIES[cfg.policy.kind].needs_servers).accelerate
    return cfg.model_copy(update={"run": cfg.run.model_copy(update={"accelerate": chosen})})


def _complain(problem: Any, key: str) -> str:
    value = problem["input"]
    if problem["type"] == "extra_forbidden":
        inner = ".".join(map(str, problem["loc"][2:]))  # of an entry, such as a judge of study.profile_judges
        return f"{inner}: unknown key" if inner else _suggest(key) or "unknown key"
    if isinstance(value, str) and (match := _NUMBER_AS_TEXT.fullmatch(value.strip())):
        return f"{value!r} is text in YAML; write {match[1]}.0e{match[2]}"
    return f"{problem['msg'][:1].lower()}{problem['msg'][1:]}; got {value!r}"


def _training_problems(cfg: Config) -> Iterator[tuple[str, str]]:
    """(dotted key, reason) of settings of training that are well formed and cannot work together."""
    ppo, rollout, grpo = cfg.ppo, cfg.rollout, cfg.grpo
    if ppo.turn_discount > 0 and rollout.continuation == "best":
        why = "best biases the return when ppo.turn_discount > 0"
        yield "rollout.continuation", f"{why}; use independent or random, or ppo.turn_discount=0"
    if ppo.turn_discount > 0 and ppo.update_every == "turn":
        yield "ppo.update_every", "must be dialogue when ppo.turn_discount > 0 (returns span the turns)"
    for key, part, whole, total in (
        ("ppo.minibatch", ppo.minibatch, "rollout.users x rollout.samples", rollout.users * rollout.samples),
        ("ppo.micro_batch", ppo.micro_batch, "ppo.minibatch", ppo.minibatch),
        ("sft.micro_batch", cfg.sft.micro_batch, "sft.batch", cfg.sft.batch),
        ("dpo.micro_batch", cfg.dpo.micro_batch, "dpo.batch", cfg.dpo.batch),
        ("grpo.micro_batch", grpo.micro_batch, "grpo.batch x grpo.samples", grpo.batch * grpo.samples),
        ("grpo.batch", grpo.batch, "grpo.users x rollout.turns", grpo.users * rollout.turns),
    ):
        if part and total % part:
            yield key, f"{part} does not divide {whole} = {total}"
    if ppo.packing == "tree" and (ppo.micro_batch or ppo.minibatch) % rollout.samples:
        why = f"with ppo.packing=tree it must be a multiple of rollout.samples = {rollout.samples}"
        yield f"ppo.{'micro_batch' if ppo.micro_batch else 'minibatch'}", why


def _layout_problems(cfg: Config) -> Iterator[tuple[str, str]]:
    """The same of cards and servers."""
    served = POLICIES[cfg.policy.kind].needs_servers
    if cfg.run.threads == "auto" and cfg.run.accelerate is not None:
        yield "run.threads", "auto is measured for one process; with run.accelerate write how many each has"
    if cfg.policy.servers and not served:
        yield "policy.servers", f"are read only when policy.kind is vllm; policy.kind is {cfg.policy.kind}"
    if cfg.run.gpus is None:
        return
    try:
        asked = layout_of(cfg, served=served).accelerate
    except ValueError as error:
        yield "run.gpus", str(error)
        return
    if cfg.run.accelerate not in (None, asked):
        why = f"{cfg.run.accelerate}, where run.gpus = {cfg.run.gpus} sets {asked or 'none'}"
        yield "run.accelerate", f"{why}; leave one of them out"


def _other_problems(cfg: Config) -> Iterator[tuple[str, str]]:
    """The same of data, of who plays which part, and of lists."""
    personas, methods, policy = cfg.personas, cfg.evaluation.methods, cfg.policy
    if personas.train_users is not None and personas.train_users < cfg.rollout.users:
        why = f"{personas.train_users} is fewer than rollout.users = {cfg.rollout.users}"
        yield "personas.train_users", why
    for key in ("users", "extended_users"):
        if (wanted := getattr(cfg.evaluation, key) or 0) > personas.test_users:
            yield f"evaluation.{key}", f"{wanted} is more than personas.test_users = {personas.test_users}"
    for name in methods:
        if (lender := METHODS[name].borrows) and lender not in methods:
            why = f"{name} takes the profiles that {lender} has written; name {lender} too"
            yield "evaluation.methods", why
    for role, table in (("user", USERS), ("judge", JUDGES), ("evaluator", EVALUATORS)):
        party = getattr(cfg, role)
        if not table[party.kind].scripted and party.model is None:
            yield f"{role}.model", f"is needed when {role}.kind is {party.kind}"
    own = cfg.profile_judge.model_dump(exclude_unset=True)
    if cfg.profile_judge.model is None and (given := [k for k in own if own[k] != _BARE[k]]):
        why = "is only read beside profile_judge.model; without one, section judge judges profiles too"
        yield f"profile_judge.{given[0]}", why
    if personas.conversion == "llm" and cfg.user.model is None:
        yield "user.model", "is needed when personas.conversion is llm"
    if personas.language != "en" and personas.conversion == "rules":
        why = f"{personas.language} needs personas.conversion=llm: the rules write English slots alone"
        yield "personas.language", why
    if not POLICIES[policy.kind].trainable and all(METHODS[name].trained for name in methods):
        why = "all of these rows need weights that are trained here"
        yield "evaluation.methods", f"{why}, which a policy.kind={policy.kind} has not; name base, say"
    yield from _layout_problems(cfg)
    if cfg.run.prompt_set not in (user := USERS[cfg.user.kind]).prompt_sets:
        why = f"{cfg.run.prompt_set} needs user.kind=llm (the {user.label} speaks English)"
        yield "run.prompt_set", why
    if policy.warm_up and not (SOURCES[personas.source].scripted and cfg.run.prompt_set == "mini"):
        why = "its scripted replies belong to the built-in personas and prompt set mini"
        yield "policy.warm_up", f"{why}; give policy.adapter an SFT adapter instead"
    listed = "evaluation.methods evaluation.benchmarks sft.variants dpo.variants".split()
    for key in (*listed, "conflict.methods", "long_term.methods", "difficult.methods"):
        names = attrgetter(key)(cfg)
        if len(set(names)) != len(names):
            yield key, "holds a name twice"
    if cfg.conflict.at > cfg.conflict.turns:
        why = f"{cfg.conflict.at} is behind the last turn, conflict.turns = {cfg.conflict.turns}"
        yield "conflict.at", why
