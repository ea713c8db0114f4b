"""The walls of the house: rooms in the order in which data flow, no import circle, the miniature behind one
door, lines of 110."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rlpa_lib"
# Nothing imports a room further down (rlpa_lib/__init__.py says what each is for).
ROOMS = [
    "settings", "runs", "client", "dialogue", "personas", "mini", "agents", "rlpa", "methods", "evaluation",
    "figures", "audit", "study", "report", "plan", "reproduce", "demo",
]
LEAVES = ROOMS[ROOMS.index("audit") :]


@cache
def modules():
    """Name below rlpa_lib -> file."""
    files = sorted(PACKAGE.rglob("*.py"))
    names = (".".join(file.relative_to(PACKAGE).with_suffix("").parts) for file in files)
    return {
        name.removesuffix(".__init__").removesuffix("__init__"): file
        for name, file in zip(names, files, strict=True)
    }


def imported(source, known):
    """Modules that a source imports, anywhere in it: at its top, in functions, and for type checkers
    alone."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        assert not getattr(node, "level", 0), "imports are absolute"
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "rlpa_lib":
            inside = node.module.partition(".")[2]
            paths = [f"{inside}.{alias.name}".lstrip(".") for alias in node.names]
            found |= {path if path in known else inside for path in paths}
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.partition(".")[2]
                for alias in node.names
                if alias.name.partition(".")[0] == "rlpa_lib"
            }
    return found


@cache
def arrows():
    """Module -> modules that it imports."""
    known = modules()
    return {name: imported(file.read_text(), known) for name, file in known.items()}


def room(name):
    return name.partition(".")[0]


def test_imports_are_read_wherever_they_stand():
    lazy = "def f():\n    from rlpa_lib.runs import storage\n    import rlpa_lib.rlpa.ppo"
    assert imported(lazy, {"runs.storage": 0}) == {"runs.storage", "rlpa.ppo"}
    assert imported("from rlpa_lib import mini", {"mini": 0}) == {"mini"}
    with pytest.raises(AssertionError, match="absolute"):
        imported("from ..mini import judge", {})


def test_no_import_circle():
    TopologicalSorter(arrows()).prepare()  # CycleError names the circle


def test_every_room_is_on_the_plan():
    assert {room(name) for name in modules()} - {"", "__main__"} <= set(ROOMS)


def test_arrows_run_one_way():
    order = {name: place for place, name in enumerate(ROOMS)}
    up = [
        (name, other)
        for name, others in arrows().items()
        for other in others
        if room(name) in order and room(other) in order and order[room(other)] > order[room(name)]
    ]
    assert up == []


def test_nothing_imports_a_leaf():
    """Only the command line and notebooks do."""
    into = [
        (name, other)
        for name, others in arrows().items()
        for other in others
        if room(other) in LEAVES and room(name) not in (room(other), "", "__main__")
    ]
    assert into == []


def test_the_miniature_is_behind_one_door():
    assert {
        name for name, others in arrows().items() if "mini" in map(room, others) and room(name) != "mini"
    } == {"agents.world"}


def test_what_a_table_of_kinds_names_is_there():
    from rlpa_lib.settings import kinds

    entries = [
        *kinds.METHODS.values(), *kinds.SOURCES.values(), *kinds.USERS.values(), *kinds.JUDGES.values(),
    ]
    entries += [*kinds.EVALUATORS.values(), *kinds.POLICIES.values()]
    made = [
        text for entry in entries for text in vars(entry).values() if isinstance(text, str) and ":" in text
    ]
    assert len(made) > 20
    for text in made:
        module, _, function = text.partition(":")
        tree = ast.parse(modules()[module].read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, text


def test_no_room_asks_for_the_name_of_a_kind():
    """What differs between kinds stands in their entries of settings.kinds."""
    from rlpa_lib.settings import kinds

    names = {*kinds.SOURCES, *kinds.USERS, *kinds.JUDGES, *kinds.EVALUATORS, *kinds.POLICIES}
    asked = []
    for name, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Compare)
                and isinstance(node.left, ast.Attribute)
                and node.left.attr in ("kind", "source")
            ):
                asked += [
                    (name, c.value)
                    for c in node.comparators
                    if isinstance(c, ast.Constant) and c.value in names
                ]
    assert asked == []


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_is_one_room(name):
    """At most 300 lines, functions of at most 50, and an __init__ that only exports."""
    source = modules()[name].read_text()
    tree = ast.parse(source)
    assert len(source.splitlines()) <= 300
    long = [
        n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.end_lineno - n.lineno >= 50
    ]
    assert not long
    if modules()[name].name == "__init__.py" and name:
        kinds = (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr)
        assert all(isinstance(node, kinds) for node in tree.body) and len(tree.body) <= 10
