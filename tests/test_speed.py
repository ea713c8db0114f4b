"""`auto`: measured when a run begins, kept in its record, never in place of a value that is given."""

import json

import pytest
import torch

from rlpa_lib import runs
from rlpa_lib.agents import models, speed
from rlpa_lib.evaluation import rows
from rlpa_lib.plan import pilot, plan
from rlpa_lib.reproduce import runner
from rlpa_lib.runs import record
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

AUTO = ("policy.dtype=auto", "run.threads=auto")


@pytest.fixture
def machine(monkeypatch):
    """A machine of four cores with given rates by precision and threads; counts its measurements."""

    def make(bf16, more=(1.9, 1.9)):
        asked = []

        def time_products(sizes, dtype, threads, device):
            asked.append((dtype, threads))
            gains = {1: 1.0, 2: more[0], 4: more[0] * more[1]}
            return gains[threads] * (bf16 if dtype == "bfloat16" else 1.0)

        monkeypatch.setattr(speed, "time_products", time_products)
        monkeypatch.setattr(record, "cores", lambda: 4)
        return asked

    return make


def begin(folder, *overrides, seed=0):
    return runs.claim(config.load_config("smoke", overrides), seed, folder, "params/smoke.yaml")


@pytest.mark.parametrize(
    ("bf16", "more", "dtype", "threads"),
    [
        (0.11, (1.9, 1.9), "float32", 4),  # no AMX
        (2.0, (1.9, 1.9), "bfloat16", 4),  # AMX
        (1.1, (1.9, 1.1), "float32", 2),  # too little to round for, and two cores busy
        (1.3, (0.4, 3.0), "bfloat16", 1),  # somebody else uses the other cores
    ],
)
def test_what_is_clearly_faster_is_chosen(tmp_path, machine, bf16, more, dtype, threads):
    machine(bf16, more)
    run = begin(tmp_path / "run", *AUTO)
    assert (run.cfg.policy.dtype, run.cfg.run.threads) == (dtype, threads)
    made = run.record["measured"]
    assert made["chosen"] == {"policy.dtype": dtype, "run.threads": threads}
    assert made["gflops"]["float32 x 1"] == 1.0 and made["gflops"]["bfloat16 x 1"] == bf16
    assert [192, 192] in made["sizes"] and [192, 576] in made["sizes"], "the tiny model's own"
    assert run.record["params"]["policy"]["dtype"] == "auto"


def test_a_resumed_run_keeps_its_choice_and_measures_nothing(tmp_path, machine):
    machine(2.0)
    first = begin(tmp_path / "run", *AUTO)
    asked = machine(0.1)  # another machine
    again = begin(tmp_path / "run", *AUTO)
    assert asked == [] and again.cfg == first.cfg and again.cfg.policy.dtype == "bfloat16"
    assert again.fingerprint() == first.fingerprint()
    other = begin(tmp_path / "new", *AUTO, seed=1)
    assert other.cfg.policy.dtype == "float32" and other.fingerprint() != first.fingerprint()
    found = {run.seed: run.cfg.policy.dtype for run in rows.find_siblings(first)}
    assert found == {0: "bfloat16", 1: "float32"}, "the same settings, each with its own choice"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_value_that_is_given_is_not_measured(tmp_path, machine, dtype):
    asked = machine(2.0)
    run = begin(tmp_path / "run", f"policy.dtype={dtype}", "run.threads=3")
    assert (run.cfg.policy.dtype, run.cfg.run.threads, asked) == (dtype, 3, [])
    assert "measured" not in run.record
    half = begin(tmp_path / "half", f"policy.dtype={dtype}", "run.threads=auto")
    assert half.cfg.policy.dtype == dtype and {name for name, _ in asked} == {dtype}
    assert half.record["measured"]["chosen"] == {"run.threads": 4}


def test_a_policy_elsewhere_is_not_measured(tmp_path, machine):
    asked, keys = machine(2.0), ("policy.kind=endpoint", "policy.model=gpt-4o", *AUTO)
    run = begin(tmp_path / "run", *keys)
    assert (run.cfg.policy.dtype, run.cfg.run.threads, asked) == ("float32", 1, [])


def test_what_cannot_be_measured_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="policy.model: '.*/nowhere' could not be loaded"):
        begin(tmp_path / "run", "policy.dtype=auto", "policy.model=./nowhere")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="run.threads: auto is measured for one process"):
        config.load_config("smoke", ["run.threads=auto", "run.accelerate=cpu-2"])
    with pytest.raises(InputError, match="policy.dtype: auto is measured when a run is opened"):
        models.load_model(config.load_config("smoke", ["policy.dtype=auto"]))


def test_the_machine_is_measured_for_real():
    torch.set_num_threads(1)
    made = speed.measure(config.load_config("smoke", AUTO))
    rates = made["gflops"]
    faster = rates["bfloat16 x 1"] >= speed.GAIN * rates["float32 x 1"]
    assert min(rates.values()) > 0.1 and json.dumps(made)
    assert made["chosen"]["policy.dtype"] == ("bfloat16" if faster else "float32")
    assert torch.get_num_threads() == 1, "left as it was"


def test_smol_leaves_it_to_the_machine_and_can_be_planned():
    cfg = config.load_config("smol")
    assert (cfg.policy.dtype, cfg.run.threads) == ("auto", "auto")
    assert "twice as fast as float32 on a CPU" not in (config.PARAMS_DIR / "smol.yaml").read_text()
    assert plan.table(cfg, pilot.read_pilot([]))
    assert runner.default_jobs(config.load_config("mini", ["run.threads=auto"])) == 1
