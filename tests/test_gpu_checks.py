"""The checks of a lab's first five minutes (`make test-gpu`), as far as a CPU can run them."""

import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import torch

from rlpa_lib.agents import models
from rlpa_lib.settings import config

GPU = Path(__file__).parent / "gpu"


def load(name):
    spec = util.spec_from_file_location(f"gpu_{name}", GPU / f"{name}.py")
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(**environment):
    command = [sys.executable, "-m", "pytest", str(GPU), "-rs"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def test_outcomes_are_compared_by_hand():
    work = load("work")

    def outcome(logprob, gradient, loss):
        one, losses = torch.tensor([[logprob]]), {"policy_loss": loss, "value_loss": 0.5}
        return work.Outcome(one, torch.zeros(1, 1), torch.zeros(1, 1), {"w": torch.tensor(gradient)}, losses)

    apart = work.compare(outcome(-1.0, [3.0, 4.0], 0.1), outcome(-1.5, [3.0, 3.0], 0.3))
    same = dict.fromkeys(("reference", "values", "value_loss"), 0)
    assert apart == pytest.approx({**same, "logprobs": 0.5, "policy_loss": 0.2, "gradient": 0.2})


def test_groups_have_the_lengths_that_are_asked_for():
    first, _ = load("work").make_groups(2, 3, 50, 20, 100)
    lengths = [len(sample.completion.token_ids) for sample in first.samples]
    assert len(first.prompt_ids) == 50 and lengths[0] == 20 and all(10 <= n <= 20 for n in lengths)


def test_the_tolerances_tell_exact_from_rounded_and_allow_rounding(monkeypatch):
    """A device that multiplied in bf16 where fp32 is meant would be found; bf16 on both passes."""
    monkeypatch.setenv("RLPA_GPU_DEVICE", "cpu")
    monkeypatch.setitem(sys.modules, "conftest", load("conftest"))
    monkeypatch.setitem(sys.modules, "work", load("work"))
    checks, work, outcomes = load("test_first_minutes"), sys.modules["work"], []
    torch.set_num_threads(1)
    for dtype in checks.TOLERANCES:
        keys = ["ppo.critic=lora", "ppo.packing=rows", f"policy.dtype={dtype}"]
        cfg = config.load_config("smoke", [*checks.TINY, *keys])
        model, tokenizer = models.load_model(cfg)
        groups = work.make_groups(2, 4, 60, 30, len(tokenizer))
        outcomes.append(work.run_update(work.make_learner(model, cfg, "cpu", noise=0.02), groups))
    apart = work.compare(*outcomes)
    for name in ("logprobs", "reference", "values", "gradient"):
        assert checks.TOLERANCES["float32"][name] < apart[name] < checks.TOLERANCES["bfloat16"][name]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_all_is_skipped():
    done = run(RLPA_GPU_SCALE="smoke")
    assert done.returncode == 0 and "torch sees no card here" in done.stdout and "passed" not in done.stdout


@pytest.mark.slow
def test_on_a_cpu_all_of_it_runs_and_one_table_is_printed():
    done = run(RLPA_GPU_DEVICE="cpu", RLPA_GPU_SCALE="smoke", RLPA_VLLM_VENV="/nowhere")
    assert done.returncode == 0, done.stdout
    table = done.stdout.split("to send home")[1]
    for what in ("card", "cpu - CPU, float32, lora, tree", "one step, ", "sampling in process"):
        assert what in table
    assert "set it up" in done.stdout, "only the gap to vLLM is left out"
