"""The command line as a user meets it: exit codes, one line per error, nothing half written, resume."""

import json
import os
import subprocess
import sys

import nbformat
import pytest

from rlpa_lib import runs

PARAMETERS = 'params = "smoke"\nseed = 0\nrun_dir = "runs/smoke-0"\noverrides = []'
OPEN = "from rlpa_lib import runs\nrun = runs.open_run(params, seed, run_dir, overrides)"


def cli(*arguments, cwd=None):
    """Finished process of `python -m rlpa_lib ...`, started as from a fresh shell."""
    environment = {name: value for name, value in os.environ.items() if name != runs.OWNER_VARIABLE}
    command = [sys.executable, "-m", "rlpa_lib", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def write_notebook(folder, name, *cells):
    """A notebook with a parameters cell in front of `cells`."""
    folder.mkdir(exist_ok=True)
    meta = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    book = nbformat.v4.new_notebook(metadata={**meta, "language_info": {"name": "python"}})
    book.cells = [nbformat.v4.new_code_cell(cell) for cell in (PARAMETERS, *cells)]
    book.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(book, folder / f"{name}.ipynb")


@pytest.fixture
def books(tmp_path):
    """A folder with one notebook that would run."""
    write_notebook(tmp_path / "books", "00_first", OPEN)
    return tmp_path / "books"


BAD = [
    (("--set", "ppo.lrr=1.0"), "ppo.lrr: unknown key; did you mean ppo.lr?"),
    (("--set", "ppo.lr=5e-6"), "write 5.0e-6"),
    (("--set", "rollout.users=many"), "rollout.users: input should be a valid integer"),
    (("--set", "personas.source=aloe"), "personas.path: is needed"),
    (("--set", "personas.source=aloe", "--set", "personas.path=nowhere"), "no such file or folder"),
    (("--scale", "tiny"), "tiny: no such params file"),
    (("--scale", "broken.yaml"), "broken.yaml, line 2: not YAML"),
    (("--seed", "-1"), "seed: wants an integer"),
    (("--seed", "one"), "invalid int value"),
    (("--only", "21_ablation"), "--only 21_ablation: no such notebook"),
    (("--notebooks", "empty"), "no numbered notebooks"),
    (("--run-dir", "broken.yaml/run"), "cannot be written"),
    (("--sclae", "mini"), "unrecognized arguments: --sclae mini"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, books, arguments, message):
    (tmp_path / "broken.yaml").write_text("ppo: [1\n")
    before = sorted(tmp_path.rglob("*"))
    done = cli(
        "reproduce", "--scale", "smoke", "--notebooks", books, "--run-dir", tmp_path / "run", *arguments,
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_broken_persona_line_stops_the_run_before_it_starts(tmp_path, books):
    folder = tmp_path / "aloe"
    folder.mkdir()
    (folder / "profile.jsonl").write_text('"She is a nurse of 40."\n{"half": \n')
    (folder / "personality.jsonl").write_text('"She is kind."\n')
    wanted = ["--set", "personas.source=aloe", "--set", "personas.path=aloe"]
    done = cli(
        "reproduce", "--scale", "smoke", "--notebooks", books, "--run-dir", tmp_path / "run", *wanted,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "profile.jsonl" in done.stderr
    assert "line 2" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_plan_counts_before_it_is_paid():
    done = cli("plan", "--scale", "paper")
    assert done.returncode == 0
    # 14 cohorts x 256 users x 10 turns x 4 samples
    assert "143,360" in done.stdout
    assert cli("plan", "--scale", "papr").returncode == 2


@pytest.mark.slow
def test_notebooks_run_in_order_resume_and_run_again_when_changed(tmp_path, books):
    write_notebook(books, "10_second", OPEN, "import sys\nrun.note('prefix', sys.prefix)")
    write_notebook(books, "90_live", "raise RuntimeError('needs a person')")
    command = (
        "reproduce", "--scale", "smoke", "--notebooks", books, "--run-dir", tmp_path / "run", "--set",
        "ppo.lr=1.0e-4",
    )
    first = cli(*command, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    facts = json.loads((tmp_path / "run" / "record.json").read_text())
    assert (facts["status"], facts["params"]["ppo"]["lr"]) == ("done", 1e-4)
    assert os.path.realpath(facts["prefix"]) == os.path.realpath(sys.prefix)
    copies = sorted(path.name for path in (tmp_path / "run" / "notebooks").iterdir())
    assert copies == ["00_first.ipynb", "10_second.ipynb"]
    assert not list((tmp_path / "run").glob(".kernel-*"))

    again = cli(*command, cwd=tmp_path)
    assert again.stdout.count("done before") == 2
    write_notebook(books, "10_second", OPEN, "run.note('changed', True)")
    changed = cli(*command, cwd=tmp_path)
    assert (changed.stdout.count("done before"), changed.stdout.count("running")) == (1, 1)


@pytest.mark.slow
def test_a_failing_notebook_is_named_with_its_cell(tmp_path, books):
    write_notebook(books, "10_second", OPEN, "x = 1", "raise ValueError('first\\nsecond')")
    write_notebook(books, "20_third", OPEN)
    command = ("reproduce", "--scale", "smoke", "--notebooks", books, "--run-dir", tmp_path / "run")
    done = cli(*command, "--only", "10", "--only", "20_third", cwd=tmp_path)
    assert done.returncode == 1
    assert "10_second, cell In [5]: ValueError: first ... second" in done.stderr
    assert "third  running" not in done.stdout
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "failed"
    assert [path.name for path in (tmp_path / "run" / "notebooks").iterdir()] == ["10_second.failed.ipynb"]
    write_notebook(
        books,
        "10_second",
        "from rlpa_lib.settings.config import InputError\nraise InputError('p.jsonl: line 3: broken')",
    )
    done = cli(*command, "--only", "10", cwd=tmp_path)
    assert done.returncode == 2
    assert "p.jsonl: line 3: broken" in done.stderr
