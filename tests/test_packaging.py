"""What a newcomer installs and runs: locks agree, notebooks are clean, README and CI say the same."""

import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def pins(lines):
    """Name -> exact version."""
    found = {}
    for line in lines:
        requirement = Requirement(line)
        [version] = [item.version for item in requirement.specifier]
        assert line.count("==") == 1, f"not an exact pin: {line}"
        found[canonicalize_name(requirement.name)] = version
    return found


def locked():
    text = (ROOT / "requirements.lock").read_text()
    return pins(line for line in text.splitlines() if line and not line.startswith("#"))


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_conda_environment_equals_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    [listed] = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert listed[-1] == "--editable ."
    assert pins(listed[:-1]) == locked()


def test_lock_satisfies_what_the_project_asks_for():
    wanted = project()["project"]
    lock = locked()
    for text in [*wanted["dependencies"], *wanted["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)]), text


def test_lock_is_closed():
    """Whatever a locked package needs on this interpreter is locked too."""
    lock = locked()
    for name in lock:
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                # a CPU build of torch needs less than a CUDA build; neither names what the other leaves out
                assert canonicalize_name(requirement.name) in lock, f"{name} needs {requirement}"


@pytest.mark.parametrize("python", ["3.11.0", "3.11.2", "3.12.0", "3.13.0"])
def test_every_pin_installs_on_the_pythons_that_readme_names(python):
    """README promises 3.11 or newer, and 3.11.2 is Debian 12's own: no pin may ask for a later patch
    release."""
    assert Requirement(f"x{project()['project']['requires-python']}").specifier.contains(python)
    asked = {name: metadata.metadata(name).get("Requires-Python") for name in locked()}
    refused = [
        f"{name}: {spec}" for name, spec in asked.items() if spec and not SpecifierSet(spec).contains(python)
    ]
    assert not refused


def test_what_is_installed_is_what_is_locked():
    """The test above reads the metadata of what is installed, so it says something about the lock only while
    the two agree."""
    assert {name: metadata.version(name).partition("+")[0] for name in locked()} == locked()


def test_readme_explains_every_dependency():
    readme = (ROOT / "README.md").read_text()
    table = readme[readme.index("## Dependencies") : readme.index("## Layout")]
    wanted = project()["project"]
    extras = [text for group in wanted["optional-dependencies"].values() for text in group]
    for text in [*wanted["dependencies"], *extras]:
        assert re.search(rf"\b{re.escape(Requirement(text).name)}\b", table), f"{text} is not explained"


def test_ci_runs_the_command_that_readme_names():
    [command] = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make")]
    assert f"```\n{command}\n```" in (ROOT / "README.md").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_no_file_is_as_large_as_a_model():
    weights = list((ROOT / "rlpa_lib").rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) <= 12 * 2**20


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_clean(path):
    book = json.loads(path.read_text())
    assert re.fullmatch(r"\d\d_[a-z0-9_]+", path.stem)
    assert book["metadata"]["kernelspec"] == {
        "display_name": "Python 3", "language": "python", "name": "python3",
    }
    tags = [cell["metadata"].get("tags", []) for cell in book["cells"]]
    assert sum("parameters" in some for some in tags) == 1
    for cell, some in zip(book["cells"], tags, strict=True):
        source = "".join(cell["source"])
        if "parameters" in some:
            names = re.findall(r"^(\w+) = ", source, flags=re.M)
            assert names == ["params", "seed", "run_dir", "overrides"]
        if cell["cell_type"] == "code":
            assert not cell["outputs"] or "nbval-check-output" in some, (
                f"an output that nothing checks: {source[:60]!r}"
            )
            assert len(source.splitlines()) <= 25, f"a long cell: {source[:60]!r}"
            assert not re.search(r"^\s*(def|class) ", source, flags=re.M), (
                f"a definition in a notebook: {source[:60]!r}"
            )
            assert "sys.path" not in source
