"""Two processes over gloo, started by accelerate: they train what one trains, and a killed one is noticed."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from distributed_worker import MODES, trained, weights, whole_text
from safetensors.torch import load_file

from rlpa_lib.rlpa import processes
from rlpa_lib.settings.config import InputError

FILES = ["cpu-2", "cpu-2-fsdp2"]
WORKER = Path(__file__).parent / "distributed_worker.py"


@pytest.fixture(autouse=True)
def any_text_is_well_formed(monkeypatch):
    """A random model never writes the reply format; here its whole text is the response."""
    monkeypatch.setattr("rlpa_lib.rlpa.rollout.parse_reply", whole_text)


def launch(folder, task, file="cpu-2"):
    """Run the worker in two processes; (exit code, what they said)."""
    folder.mkdir(exist_ok=True)
    start = [
        sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file",
        str(processes.find_configuration(file)),
    ]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(WORKER.parent), str(WORKER.parents[1])]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*start, str(WORKER), str(folder), task], env=env, capture_output=True, text=True, timeout=900,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def gap(first, second):
    """Largest difference over all trained weights."""
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def same(rows):
    return [
        {k: -1.0 if v is None else v for k, v in row.items() if not k.startswith("seconds")} for row in rows
    ]


def read(folder, what):
    return [json.loads(line) for line in (folder / "run" / what).read_text().splitlines()]


@pytest.mark.slow
def test_what_processes_tell_each_other(tmp_path):
    code, said = launch(tmp_path, "talk")
    assert code == 0, said
    first, second = (json.loads((tmp_path / f"talk-{rank}.json").read_text()) for rank in (0, 1))
    assert (first.pop("share"), second.pop("share")) == ([0, 2, 4], [1, 3])
    assert first.pop("failed") == "InputError: user.model: no such model"
    assert "MainFailed: the main process stopped: InputError: user.model: no such model" in second.pop(
        "failed"
    )
    assert first == second
    assert first["gather"] == [{"rank": 0, "text": "é"}, {"rank": 1, "text": "é" * 41}]
    assert (
        first["on_main"] == [0, None, 0.1, "ü"]
        and first["copied"] == [5.0] * 3
        and first["sum"] == [[3.0, 3.0]] * 2
    )
    assert first["numbers"] == {"both": 3.0, "only0": 2.0, "only1": 2.0}


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("mode", sorted(mode for mode in MODES if not mode.startswith("bf16")))
def test_two_processes_train_what_one_trains(tmp_path, mode, file):
    alone = trained(tmp_path / "alone/run", mode)
    before = torch.cat([p.flatten() for p in weights(alone).values()])
    code, said = launch(tmp_path / "two", mode, file)
    assert code == 0, said
    two = load_file(tmp_path / "two/weights.safetensors")
    apart = gap(weights(alone), two)
    print(f"{mode}, {file}: largest difference of a weight {apart:.1e}")
    assert apart <= 1e-5 and before.abs().max() > 1e-2
    one_rows, two_rows = (read(tmp_path / name, "metrics/ppo.jsonl") for name in ("alone", "two"))
    assert len(one_rows) == len(two_rows) and one_rows[0].keys() == two_rows[0].keys()
    for one, other in zip(same(one_rows), same(two_rows), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    for update in range(1, len(one_rows) + 1):
        said_alone, said_together = (
            read(tmp_path / n, f"dialogues/ppo/update-{update:04d}.jsonl") for n in ("alone", "two")
        )
        assert said_alone == said_together
    asked = {path.name for path in (tmp_path / "two/run").glob("asked-*")}
    assert asked == {"asked-EchoUser-0", "asked-VowelJudge-0"}, "only the main process asks users and judges"


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("mode", ["bf16", "bf16-full"])
def test_two_processes_train_in_bf16(tmp_path, mode, file):
    """They sample what one samples until the first step, whose gradients are summed in another order; what
    bf16 makes of that is rounding, so it is held to a part of what training moves."""
    alone = trained(tmp_path / "alone/run", mode)
    code, said = launch(tmp_path / "two", mode, file)
    assert code == 0, said
    one, two = weights(alone), load_file(tmp_path / "two/weights.safetensors")
    start = weights(trained(tmp_path / "start/run", mode, trains=False))
    assert {x.dtype for x in two.values()} == {torch.float32}, "what is trained stays in fp32"
    moved, apart = gap(one, start), gap(one, two)
    assert apart <= moved
    print(f"{mode}, {file}: moved {moved:.1e}, apart {apart:.1e}")
    first = "dialogues/ppo/update-0001.jsonl"
    texts = [[row["completion"] for row in read(tmp_path / name, first)] for name in ("alone", "two")]
    assert texts[0] == texts[1]
    rows = [read(tmp_path / name, "metrics/ppo.jsonl") for name in ("alone", "two")]
    assert len(rows[0]) == len(rows[1]) == 6 and rows[0][0].keys() == rows[1][0].keys()
    for name in ("reward_total", "kl", "policy_loss", "value_loss", "grad_norm_policy", "sampler_gap"):
        assert rows[0][0][name] == pytest.approx(rows[1][0][name], rel=0.05, abs=1e-3), name
    assert all(math.isfinite(value) for row in rows[1] for value in row.values() if value is not None)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_a_killed_process_is_noticed_and_the_run_goes_on(tmp_path, file):
    code, said = launch(tmp_path / "whole", "bandit", file)
    assert code == 0, said
    code, said = launch(tmp_path / "killed", "bandit:15", file)
    assert code != 0 and "exitcode  : -9" in said, said[-3000:]
    # whichever comes first: the broken connection, or the launcher's signal
    assert "process 0 of 2 lost touch with the others" in said or "process 0 of 2 was told to stop" in said, (
        said[-3000:]
    )
    assert "the same command again goes on from the last checkpoint" in said
    assert 0 < len(read(tmp_path / "killed", "metrics/ppo.jsonl")) < 6
    code, said = launch(tmp_path / "killed", "bandit", file)
    assert code == 0, said
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed"))
    assert gap(first, second) == 0
    assert same(read(tmp_path / "killed", "metrics/ppo.jsonl")) == same(
        read(tmp_path / "whole", "metrics/ppo.jsonl")
    )


def test_every_launch_configuration_says_what_its_name_says():
    sizes = {"1": (1, 1), "4": (4, 1), "8": (8, 1), "2x8": (16, 2), "2": (2, 1)}
    names = {path.stem for path in processes.CONFIGURATIONS.glob("*.yaml")}
    on_gpus = {f"{kind}-{size}" for kind in ("ddp", "fsdp2") for size in ("1", "2", "4", "8", "2x8")}
    assert names == on_gpus | {"cpu-2", "cpu-2-fsdp2"}
    for name in names:
        # accelerate refuses keys that it does not know
        made = load_config_from_file(str(processes.find_configuration(name)))
        size = name.removeprefix("cpu-").split("-")[0 if name.startswith("cpu") else 1]
        assert (made.num_processes, made.num_machines) == sizes[size], name
        assert (made.distributed_type == "FSDP") == ("fsdp2" in name)


def test_an_unknown_launch_configuration_lists_those_that_exist():
    with pytest.raises(InputError, match="run.accelerate: no such file, and none of .*fsdp2-8"):
        processes.find_configuration("ddp-3")


@pytest.fixture
def two_machines():
    """Two network namespaces with a cable between them, as two machines: name -> address."""
    own, addresses = f"rlpa{os.getpid()}", {"a": "10.213.7.1", "b": "10.213.7.2"}
    commands = [f"netns add {own}{m}" for m in addresses] + [f"link add {own}va type veth peer name {own}vb"]
    for m, address in addresses.items():
        commands += [
            f"link set {own}v{m} netns {own}{m} name cable",
            f"-n {own}{m} addr add {address}/24 dev cable",
        ]
        commands += [f"-n {own}{m} link set cable up", f"-n {own}{m} link set lo up"]
    ready = shutil.which("ip") is not None and all(
        subprocess.run(["ip", *c.split()], capture_output=True).returncode == 0 for c in commands
    )
    try:
        if not ready:
            pytest.skip("network namespaces cannot be made here")
        yield {f"{own}{m}": address for m, address in addresses.items()}
    finally:
        for m in addresses if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "del", f"{own}{m}"], capture_output=True)


def start_machine(namespace, rank, address, folder, task):
    folder.mkdir(parents=True, exist_ok=True)
    options = (
        f"--num_machines 2 --num_processes 2 --machine_rank {rank} "
        f"--main_process_ip {address} --main_process_port 29517"
    )
    start = [
        "ip", "netns", "exec", namespace, sys.executable, "-m", "accelerate.commands.launch", "--config_file",
    ]
    start += [str(processes.find_configuration("cpu-2")), *options.split(), str(WORKER), str(folder), task]
    path = os.pathsep.join([str(WORKER.parent), str(WORKER.parents[1])])
    env = {
        **os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "cable",
        "TP_SOCKET_IFNAME": "cable",
    }
    return subprocess.Popen(start, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_machines(machines, folder, task):
    """Both machines, each with a folder of its own; (exit codes, what they said)."""
    first = next(iter(machines.values()))
    running = [
        start_machine(name, rank, first, folder / f"disk{rank}", task) for rank, name in enumerate(machines)
    ]
    said = [process.communicate(timeout=900)[0] for process in running]
    return [process.returncode for process in running], said


@pytest.mark.slow
def test_two_machines_train_what_one_process_trains(tmp_path, two_machines):
    alone = trained(tmp_path / "alone/run", "bandit")
    codes, said = run_machines(two_machines, tmp_path, "bandit:15")
    assert all(codes), said
    assert "exitcode  : -9" in said[1], said[1][-3000:]
    assert (
        "process 0 of 2 lost touch with the others" in said[0] or "process 0 of 2 was told to stop" in said[0]
    ), said[0][-3000:]
    codes, said = run_machines(two_machines, tmp_path, "bandit")
    assert codes == [0, 0], said
    apart = gap(weights(alone), load_file(tmp_path / "disk0/weights.safetensors"))
    print(f"two machines: largest difference of a weight {apart:.1e}")
    assert apart <= 1e-5
    assert not list((tmp_path / "disk1").rglob("*.*")), "the second machine writes nothing"
