"""The names that other projects import from the package itself."""

import inspect
import subprocess
import sys

import numpy as np
import pytest

import rlpa_lib

NAMES = {
    "InputError", "Profile", "alignment_level", "evaluate", "gae", "load_config", "normalized_improvement",
    "open_run", "parse_reply", "profile_f1", "read_aloe", "read_personachat", "train",
}


def test_every_public_name_is_there():
    assert set(rlpa_lib.__all__) == NAMES and set(dir(rlpa_lib)) >= NAMES
    assert all(callable(getattr(rlpa_lib, name)) for name in NAMES)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rlpa_lib.nothing  # noqa: B018
    with pytest.raises(ImportError):
        from rlpa_lib import nothing  # noqa: F401


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("load_config", ["params", "overrides"]), ("parse_reply", ["text"]),
        ("profile_f1", ["n_inferred", "n_true", "n_matched"]),
        ("read_aloe", ["profile_path", "personality_path"]), ("read_personachat", ["path"]),
        ("gae", ["rewards_T", "values_T", "gamma", "lam"]), ("alignment_level", ["scores_EK"]),
        ("normalized_improvement", ["al_K", "norm"]),
        ("open_run", ["params", "seed", "run_dir", "overrides"]),
    ],
)
def test_signatures(name, parameters):
    assert list(inspect.signature(getattr(rlpa_lib, name)).parameters) == parameters


def test_they_work():
    assert rlpa_lib.gae([0.0, 1.0], [0.0, 0.0], 1.0, 1.0) == pytest.approx([1.0, 1.0])
    levels = rlpa_lib.alignment_level(np.array([[0, 1], [1, 1]]))
    assert levels == pytest.approx([0.5, 1.0])
    for norm in ("global", "running"):
        n_ir, n_r2 = rlpa_lib.normalized_improvement([10.0, 20.0, 30.0], norm=norm)
        assert n_ir > 0 and 0 <= n_r2 <= 1
    assert rlpa_lib.parse_reply(
        "<profile>\n- Age: 30\n</profile>\n<response>\nHi\n</response>"
    ).profile == rlpa_lib.Profile((("Age", "30"),))


def test_importing_the_package_loads_nothing_heavy():
    """Nor does the loader of settings, which the command line needs before anything else."""
    told = (
        "import sys, rlpa_lib; rlpa_lib.load_config; "
        "print(sorted({'torch', 'pandas', 'numpy', 'transformers'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
