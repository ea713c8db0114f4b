"""Servers that a run starts and ends itself, with a stand-in for vLLM and cards that are only counted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_vllm_server import HEALTHY

from rlpa_lib import runs
from rlpa_lib.agents import own_servers, vllm_policy, vllm_server
from rlpa_lib.agents.own_servers import VENV, close_servers, open_servers, trainer_environment
from rlpa_lib.agents.vllm_server import ServerFailed
from rlpa_lib.reproduce import runner
from rlpa_lib.rlpa import training
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

SHOWN = '"card": os.environ.get("CUDA_VISIBLE_DEVICES"), "open": os.environ.get("VLLM_SERVER_DEV_MODE"), '
TOLD = HEALTHY.replace('"threads":', SHOWN + '"threads":')
TINY = ["policy.kind=vllm", "policy.model=tiny"]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Makes a machine of so many cards, with a vLLM that runs this program."""
    venv = tmp_path / "venv"
    monkeypatch.setenv(VENV, str(venv))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def make(cards, program=TOLD):
        (venv / "bin").mkdir(parents=True)
        (venv / "vllm.py").write_text(program)
        python = venv / "bin" / "python"
        python.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {venv / "vllm.py"} "$@"\n')
        python.chmod(0o755)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
        return venv

    yield make
    close_servers()


def smoke(*settings):
    return config.load_config("smoke", [*TINY, *settings])


def said(venv):
    """What each server was told: its card, whether it is open to trainers, and vLLM's arguments."""
    logs = [json.loads(Path(server.log).read_text()) for server in vllm_server.running(venv)]
    return sorted((told["card"] or "", told["open"], " ".join(told["arguments"])) for told in logs)


def test_eight_cards_get_four_servers_with_a_card_and_a_share_each(machine):
    venv, cfg = machine(8), smoke("run.gpus=8xA100-80")
    urls = open_servers(cfg)
    found = said(venv)
    assert [card for card, _, _ in found] == ["4", "5", "6", "7"] and len(set(urls)) == 4
    assert all("--gpu-memory-utilization 0.9" in told for _, _, told in found)
    assert all(is_open is None and "sleep" not in told for _, is_open, told in found)
    assert trainer_environment(cfg) == {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert open_servers(cfg) == urls, "started once"
    close_servers()
    assert not vllm_server.running(venv) and not any(vllm_server.healthy("127.0.0.1", _port(u)) for u in urls)


def _port(url):
    return int(url.removesuffix("/v1").rpartition(":")[2])


def test_one_card_is_shared_by_a_server_that_can_sleep(machine):
    venv, cfg = machine(1), smoke()
    policy = vllm_policy.make_policy(cfg, None)
    [(card, is_open, told)] = said(venv)
    assert (card, is_open) == ("0", "1") and policy.sleeps
    assert "--gpu-memory-utilization 0.45 --enable-sleep-mode" in told
    assert trainer_environment(cfg) == {}


def test_all_weights_open_the_servers_to_the_trainer(machine):
    venv = machine(2)
    open_servers(smoke("run.gpus=2xA100-80", "policy.tuning=full"))
    [(card, is_open, told)] = said(venv)
    assert (card, is_open) == ("1", "1") and "sleep" not in told


def test_cards_are_those_that_this_process_sees(machine, monkeypatch):
    venv, cfg = machine(2), smoke("run.gpus=2xA100-80")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-8932f937")
    open_servers(cfg)
    assert said(venv)[0][0] == "GPU-8932f937" and trainer_environment(cfg) == {"CUDA_VISIBLE_DEVICES": "5"}


def test_without_a_gpu_a_small_model_is_served_by_the_cpu(machine):
    venv, cfg = machine(0), smoke()
    policy = vllm_policy.make_policy(cfg, None)
    [(card, is_open, told)] = said(venv)
    assert (card, is_open) == ("", None) and "utilization" not in told and not policy.sleeps


@pytest.mark.parametrize(
    ("cards", "settings", "why"),
    [
        (2, ["run.gpus=8xA100-80"], "run.gpus: 8xA100-80 names 8 cards, and 2 can be seen here"),
        (0, ["policy.model=Qwen/Qwen2.5-3B-Instruct"], "policy.servers: no GPU can be seen here"),
        (1, ["policy.tuning=full"], "run.gpus: .*use two cards"),
        (8, ["run.gpus=2x8xA100-80"], "2x8xA100-80 is for params/slurm/reproduce.sbatch"),
    ],
)
def test_what_the_machine_cannot_do_is_refused_before_anything_is_written(
    machine, tmp_path, cards, settings, why
):
    machine(cards)
    with pytest.raises(InputError, match=why):
        runner.reproduce("smoke", 0, tmp_path / "run", overrides=[*TINY, *settings], jobs=1)
    assert not (tmp_path / "run").exists()


def test_servers_of_other_machines_are_taken_from_the_job_and_not_ended(machine, monkeypatch):
    venv, cfg = machine(8), smoke("run.gpus=2x8xA100-80")
    monkeypatch.setenv("RLPA_SERVERS", "http://node2:8000/v1,http://node2:8001/v1")
    assert open_servers(cfg) == ("http://node2:8000/v1", "http://node2:8001/v1")
    assert not vllm_server.running(venv) and cfg.policy.servers == () and cfg.run.accelerate == "ddp-8"
    assert trainer_environment(cfg) == {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}


def test_vllm_that_is_not_set_up_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv(VENV, str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="policy.servers: names none, and vLLM is not in .*setup --gpu"):
        own_servers.check(smoke())


def test_notebooks_do_not_share_the_servers_of_one(machine, tmp_path):
    machine(1)
    with pytest.raises(InputError, match="--jobs: 2 notebooks"):
        runner.reproduce("smoke", 0, tmp_path / "run", overrides=TINY, jobs=2)


def test_a_server_that_does_not_come_up_leaves_none_behind(machine):
    full = 'os.environ["CUDA_VISIBLE_DEVICES"] == "3" and sys.exit("no room")\n'
    venv = machine(4, TOLD.replace("http.server.HTTPServer(", full + "http.server.HTTPServer("))
    with pytest.raises(ServerFailed, match="no room"):
        open_servers(smoke("run.gpus=4xA100-80"))
    assert not vllm_server.running(venv)


def test_servers_of_a_killed_process_are_ended_and_others_stay(machine):
    venv = machine(2)
    gone = subprocess.Popen(["true"])
    gone.wait()
    orphan, own = (
        vllm_server.start("tiny", venv=venv, port=0, owner=owner) for owner in (gone.pid, 0)
    )
    open_servers(smoke("run.gpus=2xA100-80"))
    left = [server.pid for server in vllm_server.running(venv)]
    assert own.pid in left and orphan.pid not in left and len(left) == 2
    vllm_server.stop(own, venv)


def test_launched_processes_sample_on_the_servers_of_who_launched_them(machine, tmp_path, monkeypatch):
    machine(8)
    run = runs.claim(smoke("run.gpus=8xA100-80"), 0, tmp_path / "run", "test")
    seen = []
    monkeypatch.setattr(training, "launch", lambda *_, changes, **__: seen.extend(changes))
    training.train(run, "smoke", [*TINY, "run.gpus=8xA100-80"])
    cfg = config.change_config(run.cfg, seen, "--change")
    assert cfg.policy.servers == open_servers(run.cfg) and cfg.run.accelerate == "ddp-4"
    assert not own_servers.are_needed(cfg)
