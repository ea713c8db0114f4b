"""Run directories: record, lock, atomic files, resume."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import matplotlib
import numpy as np
import pandas as pd
import pytest

from rlpa_lib import runs
from rlpa_lib.runs import record, storage
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

OPEN = (
    "from rlpa_lib import runs; from rlpa_lib.settings import config; from pathlib import Path; import sys; "
    "runs.claim(config.load_config('smoke'), 0, Path(sys.argv[1]), 'p')"
)
HOLD = OPEN + "; print('held', flush=True); import time; time.sleep(60)"


@pytest.fixture
def run(tmp_path):
    return runs.claim(config.load_config("smoke"), 0, tmp_path / "run", "params/smoke.yaml")


def stranger(code, directory, **extra):
    """A process that is nobody's child as far as run ownership goes."""
    environment = {name: value for name, value in os.environ.items() if name != runs.OWNER_VARIABLE} | extra
    return subprocess.Popen(
        [sys.executable, "-c", code, str(directory)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=environment,
    )


def test_record_holds_what_is_needed_to_repeat(run):
    facts = json.loads((run.dir / "record.json").read_text())
    assert facts["params"] == config.dump_config(run.cfg)
    assert facts["seed"] == 0
    assert facts["status"] == "open"
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["hardware"]["cores"] >= 1
    assert set(facts["code"]) == {"commit", "dirty", "diff_sha256", "library_sha256"}
    run.note("revision", "abc")
    run.finish("done")
    assert (run.record["revision"], run.record["status"]) == ("abc", "done")
    assert run.record["end"] >= run.record["start"]


def test_another_run_is_refused_by_the_first_key_that_differs(run):
    with pytest.raises(InputError, match=r"record.json: seed was 0, now 1; use another run_dir"):
        runs.claim(run.cfg, 1, run.dir, "p")
    with pytest.raises(InputError, match=r"ppo.lr was 0.0003, now 0.0001"):
        runs.claim(config.load_config("smoke", ["ppo.lr=1.0e-4", "sft.batch=4"]), 0, run.dir, "p")
    assert runs.claim(run.cfg, 0, run.dir, "p") == run


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / "record.json").write_text('{"seed": ')
    with pytest.raises(InputError, match=r"record.json: cannot be read"):
        runs.claim(config.load_config("smoke"), 0, tmp_path, "p")


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, "0"])
def test_a_bad_seed_is_refused_before_anything_is_written(tmp_path, seed):
    with pytest.raises(InputError, match="seed"):
        runs.claim(config.load_config("smoke"), seed, tmp_path / "new", "p")
    assert not (tmp_path / "new").exists()


def test_a_directory_under_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        runs.claim(config.load_config("smoke"), 0, tmp_path / "file" / "run", "p")


def test_second_writer_is_refused_and_a_child_of_the_owner_is_not(run):
    other = stranger(OPEN, run.dir)
    assert f"process {os.getpid()} is writing here" in other.communicate()[1]
    assert other.returncode == 1
    child = subprocess.run(
        [sys.executable, "-c", OPEN, str(run.dir)], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr


def test_the_lock_dies_with_its_process(tmp_path):
    holder = stranger(HOLD, tmp_path / "run")
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"process {holder.pid} is writing here"):
        runs.claim(config.load_config("smoke"), 0, tmp_path / "run", "p")
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    run = runs.claim(config.load_config("smoke"), 0, tmp_path / "run", "p")
    assert len(run.record["resumed"]) == 1


def test_open_run_seeds_and_sets_threads(tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    draws = []
    for name in ("a", "b"):
        runs.open_run("smoke", 3, tmp_path / name)
        draws.append((torch.rand(1).item(), np.random.random()))
    assert draws[0] == draws[1]
    assert torch.get_num_threads() == 1


def test_paths_stay_inside_the_run(run):
    assert run.path("tables/x.csv").parent.is_dir()
    for bad in ("../x", "/etc/x", "a/../../x"):
        with pytest.raises(ValueError, match="outside"):
            run.path(bad)


def test_save_table_and_figure(run):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table = pd.DataFrame({"turn": [1, 2], "alignment": [0.1, 0.25]})
    assert run.save_table(table, "table4").read_text() == "turn,alignment\n1,0.1\n2,0.25\n"
    figure, axes = plt.subplots()
    axes.plot(table["turn"], table["alignment"])
    picture = run.save_figure(
        figure, "fig3", table, caption="Alignment by turn", alt="A rising line", users=74
    )
    plt.close(figure)
    assert picture.read_bytes().startswith(b"\x89PNG")
    facts = json.loads(picture.with_suffix(".json").read_text())
    assert facts["data_sha256"] == storage.sha256(picture.with_suffix(".csv").read_bytes())
    assert (facts["seed"], facts["run"], facts["users"], facts["alt"]) == (0, "run", 74, "A rising line")
    assert facts["params_sha256"] == run.record["params_sha256"]
    assert pd.read_csv(picture.with_suffix(".csv")).equals(table)


def test_metrics_survive_a_torn_last_line(run):
    run.log_metrics("ppo", {"step": 1, "kl": math.nan, "reward": np.float32(0.5)})
    file = run.path("metrics/ppo.jsonl")
    with open(file, "a") as torn:
        torn.write('{"step": 2, "k')
    with pytest.warns(UserWarning, match="torn last line"):
        assert run.read_metrics("ppo") == [{"step": 1, "kl": None, "reward": 0.5}]
    with pytest.warns(UserWarning, match="torn last line"):
        run.log_metrics("ppo", {"step": 2})
    assert [row["step"] for row in run.read_metrics("ppo")] == [1, 2]
    assert run.read_metrics("none") == []


def test_a_torn_line_elsewhere_is_an_error(run):
    run.write_jsonl("dialogues/x.jsonl", [{"a": 1}, {"a": "é\n"}])
    assert run.read_jsonl("dialogues/x.jsonl") == [{"a": 1}, {"a": "é\n"}]
    file = run.path("dialogues/x.jsonl")
    file.write_text(file.read_text() + '{"a')
    with pytest.raises(InputError, match=r"x.jsonl, line 3: not JSON"):
        run.read_jsonl("dialogues/x.jsonl")


def test_a_failed_write_leaves_the_old_file(run):
    run.write_jsonl("dialogues/x.jsonl", [1])

    def rows():
        yield 2
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        run.write_jsonl("dialogues/x.jsonl", rows())
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        run.write_jsonl("dialogues/x.jsonl", [object()])
    assert run.read_jsonl("dialogues/x.jsonl") == [1]
    assert [path.name for path in run.path("dialogues/x.jsonl").parent.iterdir()] == ["x.jsonl"]


def test_a_process_killed_while_writing_never_leaves_half_a_file(tmp_path):
    code = (
        "from rlpa_lib.runs.storage import write_jsonl; from pathlib import Path; import sys, itertools\n"
        "for n in itertools.count(): "
        "write_jsonl(Path(sys.argv[1]) / 'x.jsonl', [n] * 20000); n or print('on', flush=True)"
    )
    writer = stranger(code, tmp_path)
    writer.stdout.readline()
    time.sleep(0.3)
    writer.kill()
    writer.communicate()
    rows = storage.read_jsonl(tmp_path / "x.jsonl")
    assert len(rows) == 20000
    assert len(set(rows)) == 1


def test_done_is_forgotten_when_inputs_change(run, monkeypatch):
    assert not run.done("train/PRR")
    run.mark_done("train/PRR")
    assert run.done("train/PRR")
    assert not run.done("train")
    run.mark_done("chapter", "one")
    assert run.done("chapter", "one")
    assert not run.done("chapter", "two")
    monkeypatch.setattr(record, "library_hash", lambda: "other code")
    assert not run.done("train/PRR")
