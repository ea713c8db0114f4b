"""The replication map: every equation, setting, prompt, table and figure of the paper, and its place here.

The rows are data (replication_map.yaml); here they meet live settings, and their pointers are checked.
"""

import symtable
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rlpa_lib.runs import record
from rlpa_lib.settings import config
from rlpa_lib.settings.config import Config, InputError

KINDS = {"equations": "equation", "hyperparameters": "hyper-parameter", "prompts": "prompt",
         "tables": "table", "figures": "figure"}  # fmt: skip
STATUSES = ("built", "partly", "not yet")
_TEXTS = ("item", "title", "paper", "released", "here", "status", "planned", "why")
_LISTS = ("code", "keys", "notebooks", "files")
_FIELDS = (*_TEXTS, *_LISTS, "stated")

def load_map(path: Path | None = None) -> list[dict[str, Any]]:
    """Rows of the map in the paper's order, each with `kind` and every field. InputError names a bad row."""
    source = path or resources.files("rlpa_lib.report") / "replication_map.yaml"
    tree = yaml.load(source.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if not isinstance(tree, dict) or set(tree) != set(KINDS):
        raise InputError(f"{source}: wants the sections {', '.join(KINDS)}")
    return [_row(KINDS[section], entry, str(source)) for section in KINDS for entry in tree[section] or ()]


def load_required() -> list[str]:
    """What paper and released code hold; listed apart from the map so that a row cannot vanish unseen."""
    text = (resources.files("rlpa_lib.report") / "required_items.yaml").read_text(encoding="utf-8")
    return [item for some in yaml.safe_load(text).values() for item in some]


def build_table(cfgs: Mapping[str, Config], rows: Sequence[Mapping[str, Any]] | None = None) -> pd.DataFrame:
    """One line an item: what paper and released code say, where it is here, why it deviates, settings.

    `cfgs` maps a column's name to a config; its cells hold "key = value" of the row's keys, one a line.
    """
    return pd.DataFrame([_line(row, cfgs) for row in (rows or load_map())])


def check_map(path: Path | None = None, repository: Path = record.REPOSITORY) -> list[str]:
    """What is wrong with the map, one sentence each; [] if it is whole and all its pointers exist."""
    rows = load_map(path)
    items = [row["item"] for row in rows]
    problems = [f"{item}: has no row" for item in load_required() if item not in items]
    problems += [f"{item}: has {n} rows" for item, n in Counter(items).items() if n > 1]
    scales = {name: config.load_config(name) for name in ("paper", "released")}
    for row in rows:
        problems += [f"{row['item']}: {text}" for text in _find_problems(row, repository, scales)]
    return problems


def to_html(table: pd.DataFrame, kind: str) -> str:
    """The rows of one kind as an HTML table for a notebook, escaped, settings of all configs together."""
    part = table[table["kind"] == kind].drop(columns="kind")
    scales = part.filter(like=" settings").rename(columns=lambda name: name.removesuffix(" settings"))
    part = part.drop(columns=part.filter(like=" settings"))
    settings = list(map(_merge_settings, scales.to_dict("records")))
    part.insert(part.columns.get_loc("why"), "settings", settings)
    part = part.loc[:, [name for name in part if part[name].astype(bool).any()]]
    with pd.option_context("display.max_colwidth", None):
        html = part.to_html(index=False, border=0, justify="left").replace("\\n", "<br>")
    cell = "text-align: left; vertical-align: top; white-space: pre-line; min-width: 5.5em; max-width: 17em"
    style = f"<style>.rlpa-map :is(td, th) {{{cell}}}</style>"
    return f'{style}<div class="rlpa-map" style="overflow-x: auto">{html}</div>'


def _merge_settings(cells: Mapping[str, str]) -> str:
    """One line per key: "key = value" where all configs agree, else the value in each of them."""
    lines = []
    for same in zip(*(cell.splitlines() for cell in cells.values()), strict=True):
        key = same[0].split(" = ")[0]
        values = [line.removeprefix(f"{key} = ") for line in same]
        differing = "; ".join(map(" ".join, zip(cells, values, strict=True)))
        lines.append(same[0] if len(set(same)) == 1 else f"{key}: {differing}")
    return "\n".join(lines)


def _row(kind: str, entry: Any, source: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or not isinstance(entry.get("item"), str):
        raise InputError(f"{source}: {kind}: a row without an item: {entry!r}")
    unknown = set(entry) - set(_FIELDS)
    if unknown:
        raise InputError(f"{source}: {entry['item']}: unknown field {sorted(unknown)[0]!r}")
    row = {"kind": kind, **{name: str(entry.get(name) or "") for name in _TEXTS}}
    row |= {name: list(entry.get(name) or ()) for name in _LISTS}
    return {**row, "stated": dict(entry.get("stated") or {})}


def _line(row: Mapping[str, Any], cfgs: Mapping[str, Config]) -> dict[str, str]:
    places = [*row["code"], *row["files"], *(f"notebook {name}" for name in row["notebooks"])]
    places += [f"not yet: {row['planned']}"] if row["planned"] else []
    line = {name: row[name] for name in ("kind", "item", "status", "paper", "released", "here")}
    line |= {"item": "\n".join(filter(None, (row["item"], row["title"]))), "where": "\n".join(places)}
    line |= {f"{name} settings": _show_settings(cfg, row["keys"]) for name, cfg in cfgs.items()}
    return line | {"why": row["why"]}


def _show_settings(cfg: Config, keys: Sequence[str]) -> str:
    def show(key: str) -> str:
        if key not in config.known_keys():  # a problem that `check_map` reports
            return f"{key}: no such key"
        value = attrgetter(key)(cfg)
        return f"{key} = {', '.join(map(str, value)) if isinstance(value, tuple) else value}"

    return "\n".join(map(show, keys))


def _find_problems(row: Mapping[str, Any], repository: Path, scales: Mapping[str, Config]) -> Iterator[str]:
    if row["status"] not in STATUSES:
        yield f"status {row['status']!r} is not one of {', '.join(STATUSES)}"
    if not row["paper"]:
        yield "does not say what the paper says"
    if row["status"] == "built" and not (row["code"] or row["notebooks"]):
        yield "is called built but points to nothing"
    existing = {file.stem for file in (repository / "notebooks").glob("*.ipynb")}
    pointers = {"code": ("symbol", lambda name: _symbol_exists(name, repository)),
                "keys": ("params key", config.known_keys().__contains__),
                "notebooks": ("notebook", existing.__contains__),
                "files": ("file", lambda name: (repository / name).is_file())}  # fmt: skip
    for field, (what, exists) in pointers.items():
        yield from (f"no such {what}: {name}" for name in row[field] if not exists(name))
    if row["planned"] in existing:
        yield f"waits for notebook {row['planned']}, which exists now: say what it holds"
    for scale, stated in row["stated"].items() if set(row["keys"]) <= set(config.known_keys()) else ():
        if not row["keys"] or scale not in scales:
            yield f"states a value for {scale!r}, but names no key or no such scale"
        elif (live := attrgetter(row["keys"][0])(scales[scale])) != stated and not row["why"]:
            kept = f"params/{scale}.yaml has {row['keys'][0]} = {live!r}"
            yield f"{kept}, the source says {stated!r}, and no reason is given"


def _symbol_exists(pointer: str, repository: Path) -> bool:
    """Whether `package.module:Name` or `package.module:Class.member` is defined there, by its source; an
    import defines nothing, since the map says where things live."""
    module, _, path = pointer.partition(":")
    file = repository.joinpath(*module.split(".")).with_suffix(".py")
    scopes = [_read_symbols(file, file.stat().st_mtime_ns)] if file.is_file() else []
    for name in path.split("."):
        if not any(name in scope.get_identifiers() and scope.lookup(name).is_assigned() for scope in scopes):
            return False
        scopes = [child for scope in scopes for child in scope.get_children() if child.get_name() == name]
    return True


@cache
def _read_symbols(file: Path, _modified: int) -> symtable.SymbolTable:
    return symtable.symtable(file.read_text(encoding="utf-8"), str(file), "exec")
