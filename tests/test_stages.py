"""SFT, DPO and GRPO as stages: launched under accelerate as PPO is, with the same outcome, and on one device
in a notebook."""

import shutil

import pytest
import torch
import yaml
from baseline_world import open_run as open_small
from baseline_world import quiet
from conftest import byte_tokenizer, random_model
from safetensors.torch import load_file

from rlpa_lib import runs
from rlpa_lib.__main__ import main
from rlpa_lib.methods import stages, trainers
from rlpa_lib.reproduce import runner
from rlpa_lib.rlpa import processes
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

SMALL = [
    "rollout.turns=2", "rollout.max_new_tokens=24", "sft.conversations=8", "sft.batch=8", "sft.micro_batch=2",
    "dpo.conversations=4", "dpo.batch=4", "dpo.micro_batch=2", "grpo.users=2", "grpo.batch=2",
    "grpo.samples=4", "grpo.micro_batch=2", "run.tensorboard=false", "sft.checkpoint_every=1",
]


def open_run(folder, *overrides):
    cfg = config.load_config("smoke", [*SMALL, *overrides])
    return runs.claim(cfg, 3, folder, "params/smoke.yaml")


def same(rows):
    return [{k: v for k, v in row.items() if "time" not in k and k != "seconds"} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "file"), [("sft", "cpu-2"), ("dpo", "cpu-2"), ("grpo", "cpu-2"), ("sft", "cpu-2-fsdp2")]
)
def test_two_processes_train_what_one_trains(tmp_path, stage, file):
    alone, lines = open_run(tmp_path / "alone"), []
    one = stages.train(alone, "smoke", SMALL, stage, say=quiet)
    keys = [*SMALL, f"run.accelerate={file}"]
    together = open_run(tmp_path / "two", f"run.accelerate={file}")
    two = stages.train(together, "smoke", keys, stage, say=lines.append)
    assert one.keys() == two.keys() == {stage} and len(one[stage]) == len(two[stage]) >= 2
    assert sum(line.startswith(f"{stage} step ") for line in lines) == len(one[stage]), lines
    for first, second in zip(same(one[stage]), same(two[stage]), strict=True):
        assert first.get("reward", 0.0) == pytest.approx(second.get("reward", 0.0), abs=1e-6)
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-3, abs=1e-4)
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-2)
    first, second = (
        load_file(run.dir / f"adapters/{stage}/adapter_model.safetensors") for run in (alone, together)
    )
    assert first.keys() == second.keys()
    # lora_B starts at 0. Adam makes much of rounding where a gradient is nearly zero, so not each weight
    moved, now = (
        torch.cat([some[n].flatten() for n in sorted(some) if "lora_B" in n]) for some in (first, second)
    )
    apart = float((moved - now).norm() / moved.norm())
    print(f"{stage}, {file}: apart by {apart:.1e} of what training moves")
    assert apart <= 1e-2 and moved.norm() > 1e-3
    if (stage, file) == ("sft", "cpu-2"):  # both go on from the checkpoint, and nothing is left to do
        shutil.rmtree(together.dir / "adapters/sft")
        assert stages.train(together, "smoke", keys, stage, say=quiet) == two
        again = load_file(together.dir / "adapters/sft/adapter_model.safetensors")
        assert all(again[n].equal(x) for n, x in second.items())
    assert together.record["devices"][stage]["roles"]["policy"] == "cpu"


@pytest.mark.parametrize("stage", ["sft", "dpo", "grpo"])
def test_a_stage_is_launched_where_accelerate_is_set(tmp_path, monkeypatch, stage):
    launched, here = [], []
    monkeypatch.setattr(stages, "launch", lambda run, params, keys, stage, say: launched.append(stage))
    monkeypatch.setattr(stages, "train_here", lambda run, stage, say: here.append(stage))
    stages.train(open_run(tmp_path / "alone"), "smoke", SMALL, stage, say=quiet)
    assert (launched, here) == ([], [stage])
    stages.train(open_run(tmp_path / "two", "run.accelerate=cpu-2"), "smoke", SMALL, stage, say=quiet)
    assert (launched, here) == ([stage], [stage])


def test_of_several_gpus_in_sight_a_process_uses_one(tmp_path):
    """TRL refuses what transformers would do with all: DataParallel."""
    run = open_small(tmp_path)
    made = trainers.SFTConfig(
        **trainers.make_arguments(run, "sft", run.cfg.sft, 2, 2, 0, ""), dataset_kwargs={
            "skip_prepare_dataset": True,
        },
    )
    assert made.n_gpu == 0
    made._n_gpu = 8
    row = {"input_ids": [3, 4, 5], "labels": [3, 4, 5]}
    trainer = trainers.make_quiet_trainer(trainers.PlainSFT, random_model(), made, byte_tokenizer(), [row])
    assert trainer.args.n_gpu == 1


@pytest.mark.parametrize(("world", "batch"), [(1, (2, 3)), (2, (1, 3)), (3, (2, 1)), (6, (1, 1))])
def test_shares_of_a_batch_by_hand(tmp_path, world, batch):
    """Six samples a step, at most two at once: (at once, passes) of each process."""
    run = open_small(tmp_path)
    made = trainers.make_arguments(run, "sft", run.cfg.sft, 6, 2, 0, "", world)
    assert (made["per_device_train_batch_size"], made["gradient_accumulation_steps"]) == batch
    with pytest.raises(InputError, match="6 samples a step cannot be shared evenly by 4 processes"):
        trainers.make_arguments(run, "sft", run.cfg.sft, 6, 2, 0, "", 4)


def test_a_batch_that_cannot_be_shared_is_refused_before_anything_is_written(tmp_path):
    three = yaml.safe_load(processes.find_configuration("cpu-2").read_text()) | {"num_processes": 3}
    (tmp_path / "three.yaml").write_text(yaml.safe_dump(three))
    keys = [f"run.accelerate={tmp_path / 'three.yaml'}"]
    cfg = config.load_config("smoke", [*SMALL, *keys])
    with pytest.raises(InputError, match="sft.batch: 8 samples a step .sft. cannot be shared evenly by 3"):
        stages.check_shares(cfg, ["sft"])
    with pytest.raises(InputError, match="dpo.batch"):
        runner.check_needs(cfg, 0, {"12_dpo"}, tmp_path / "run")
    runner.check_needs(cfg, 0, {"20_ppo"}, tmp_path / "run")
    (tmp_path / "three.yaml").write_text("num_processes: many")
    with pytest.raises(InputError, match="run.accelerate: .*three.yaml: num_processes"):
        stages.check_shares(cfg, ["sft"])
    assert not (tmp_path / "run").exists()


def test_the_command_line_trains_a_stage(tmp_path, capsys):
    sets = [part for key in SMALL for part in ("--set", key)]
    command = ["train", "--scale", "smoke", "--run-dir", str(tmp_path / "run"), *sets]
    assert main([*command, "--stage", "dpo"]) == 0
    assert "dpo step 1/" in capsys.readouterr().out
    assert (tmp_path / "run/adapters/dpo/adapter_model.safetensors").is_file()
    assert main([*command, "--stage", "sft", "--until", "2"]) == 2
    assert "--stage sft: takes no --name" in capsys.readouterr().err
