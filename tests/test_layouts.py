"""Layouts: which cards do what, that docs and plan show one command, and what the Slurm script does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlpa_lib import __main__ as command_line
from rlpa_lib.plan import layouts, speeds
from rlpa_lib.rlpa import memory, processes
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.layout import lay_out, layout_of

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/layouts.md").read_text()


@pytest.mark.parametrize(
    ("gpus", "tuning", "trainers", "servers", "sleeps", "accelerate"),
    [
        ("1xA100-80", "lora", [0], [0], True, None),
        ("2xA100-80", "lora", [0], [1], False, None),
        ("2xA100-80", "full", [0], [1], False, None),
        ("4xH100-80", "lora", [0, 1], [2, 3], False, "ddp-2"),
        ("8xA100-80", "lora", [0, 1, 2, 3], [4, 5, 6, 7], False, "ddp-4"),
        ("8xA100-80", "full", [0, 1, 2, 3], [4, 5, 6, 7], False, "fsdp2-4"),
        ("2x8xA100-80", "lora", [*range(8)], [*range(8)], False, "ddp-8"),
    ],
)
def test_who_gets_which_card(gpus, tuning, trainers, servers, sleeps, accelerate):
    made = lay_out(gpus, tuning)
    assert ([*made.trainers], [*made.servers], made.sleeps) == (trainers, servers, sleeps)
    assert made.accelerate == accelerate and (accelerate is None or processes.find_configuration(accelerate))
    assert made.share == (0.45 if sleeps else 0.9)


def test_with_servers_elsewhere_all_cards_train():
    assert lay_out("8xA100-80", elsewhere=True).accelerate == "ddp-8"
    assert lay_out("8xA100-80", served=False).servers == ()
    assert lay_out("1xA100-80", "full", elsewhere=True).trainers == (0,)


@pytest.mark.parametrize(
    "gpus",
    [
        "3xA100-80", "A100", "8xA100", "0xA100-80", "8x A100-80", "0x8xA100-80", "08xA100-80", "８xA100-80",
        "8xA100-0", "8xA100-080",
    ],
)  # fmt: skip
def test_other_cards_are_refused_with_the_notation(gpus):
    with pytest.raises(ValueError, match="write 1xA100-80"):
        lay_out(gpus)
    with pytest.raises(InputError, match="run.gpus"):
        config.load_config("paper", [f"run.gpus={gpus}"])


def test_run_gpus_sets_the_processes():
    """So whoever trains reads `run.accelerate` and nothing else."""
    assert config.load_config("paper", ["run.gpus=8xA100-80"]).run.accelerate == "ddp-4"
    assert config.load_config("released", ["run.gpus=8xA100-80"]).run.accelerate == "fsdp2-4"
    assert config.load_config("paper").run.accelerate is None
    eight = config.load_config("paper", ["run.gpus=8xA100-80"])
    again = config.change_config(eight, ["ppo.lr=0.1"], "--change")
    assert again.run.accelerate == "ddp-4"
    with pytest.raises(InputError, match="run.accelerate: ddp-8, where run.gpus"):
        config.load_config("paper", ["run.gpus=8xA100-80", "run.accelerate=ddp-8"])


def test_one_card_has_no_room_for_all_weights_and_a_server():
    with pytest.raises(InputError, match="run.gpus: 1xA100-80: with policy.tuning=full"):
        config.load_config("released", ["run.gpus=1xA100-80"])
    with pytest.raises(ValueError, match="use two cards"):
        layout_of(config.load_config("released"))


def planned(line, capsys):
    assert command_line.main(line.removeprefix("python -m rlpa_lib ").split()) == 0
    return capsys.readouterr().out


def shown():
    """(the plan's command line, the run's command) of each pair that the page shows."""
    lines = [line for block in re.findall(r"```\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
    return list(zip(lines[::2], lines[1::2], strict=True))


@pytest.mark.parametrize(("plan", "run"), shown())
def test_the_page_shows_the_commands_that_the_plan_prints(plan, run, capsys):
    told = planned(plan, capsys)
    assert f"\n  {run}\n" in told
    assert re.search(r"^trainer: cards? \d.* GB for 4,096 \+ 4,096 tokens", told, re.M)
    hours = r"^hours: [\d.]+ = sampling [\d.]+ \(.* longest replies\), training [\d.]+, users"
    assert re.search(hours, told, re.M) and re.search(r"^GPU hours: \d+ held .* = \d+%$", told, re.M)
    assert re.search(r"^USD: [\d,]+ for cards at 2 an hour; users and judges [\d,]+ USD", told, re.M)
    assert told.count("https://") >= 5, "sources of the rates"


@pytest.mark.parametrize(("plan", "run"), [pair for pair in shown() if pair[1].startswith("make")])
def test_the_commands_on_the_page_are_accepted(plan, run):
    scale, settings = re.fullmatch(r'make reproduce SCALE=(\w+) SET="(.*)"', run).groups()
    cfg = config.load_config(scale, settings.split())
    assert layout_of(cfg).gpus == cfg.run.gpus and command_line.main([*plan.split()[3:]]) == 0


def test_more_cards_take_less_time(capsys):
    def hours(gpus):
        told = planned(f"plan --scale paper --gpus {gpus}", capsys)
        found = re.search(r"sampling ([\d.]+) .*, training ([\d.]+)", told)
        return sum(map(float, found.groups()))

    assert hours("8xH100-80") < hours("8xA100-80") < hours("2xA100-80") <= hours("1xA100-80")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--gpus", "3xA100-80"], "--gpus: 3xA100-80"),
        (["--gpus", "8xT4-16"], "no rates for T4; known are A100, H100"),
        (["--scale", "mini", "--gpus", "8xA100-80"], "no shape"),
        (["--scale", "released", "--gpus", "1xA100-80"], "use two cards"),
        (["--gpus", ""], "--gpus: : write 1xA100-80"),
        (["--gpus", "0x8xA100-80"], "write 1xA100-80"),
        (["--gpus", "8xA100-80", "--set", "run.gpus=1xA100-80"], "--gpus: 8xA100-80, but --set run.gpus=1x"),
        (["--gpus", "8xA100-80", "--set", "run.accelerate=ddp-8"], "run.gpus = 8xA100-80 sets ddp-4"),
        (["--gpus", "1xA100-80", "--set", "run.accelerate=ddp-8"], "run.gpus = 1xA100-80 sets none"),
        (["--gpus", "8xA100-6"], "an update needs 8 GB for 1,024 + 256 tokens, a card has 6 GB"),
        (["--gpus", "1xA100-12"], "no server's share of 5 GB holds weights"),
        (["--rpm", "0"], "--rpm: wants"),
        (["--tpm", "-1"], "--tpm: wants"),
        (["--rpm", "nan"], "--rpm: wants"),
        (["--against", "/nowhere"], "--against: /nowhere holds no finished notebook"),
    ],
)
def test_a_plan_for_other_cards_is_refused(arguments, why, capsys):
    assert command_line.main(["plan", "--scale", "paper", *arguments]) == 2
    assert why in capsys.readouterr().err


def test_the_command_is_one_that_a_shell_and_make_take(capsys):
    """Settings with a blank, which make would part; cards named twice alike; too small for the longest."""
    servers = "policy.servers=[http://a:8000/v1, http://b:8000/v1]"
    keys = ["run.gpus=1xA100-80", servers, "ppo.lr=1.0e-6"]
    options = ["--gpus", "1xA100-80", *(part for key in keys for part in ("--set", key))]
    assert command_line.main(["plan", "--scale", "paper", *options]) == 0
    told = capsys.readouterr().out
    assert f"""SET="run.gpus=1xA100-80 ppo.lr=1.0e-6" ARGS="--set '{servers}'"\n""" in told
    assert layouts.command(lay_out("2x8xA100-80"), "paper", [servers]).endswith(f" paper '{servers}'")
    assert command_line.main(["plan", "--scale", "paper", "--gpus", "2xA100-12"]) == 0
    assert "the longest do not fit: lower rollout.max_new_tokens" in capsys.readouterr().out


def test_fsdp_spreads_what_a_trainer_holds():
    cfg, known = config.load_config("released"), layouts.gpu.shape(config.load_config("released"))
    made = [lay_out(gpus, "full") for gpus in ("2xA100-80", "8xA100-80")]
    alone, four = (layouts._trainer_memory(cfg, layout, known, 100, 10) for layout in made)
    assert alone > 2 * four


# ---- Slurm


STUBS = {
    "scontrol": 'printf "node1\\nnode2\\nnode3\\n"',
    "curl": "exit 0",
    "srun": 'while [[ $1 == --* ]]; do t+="$1 "; shift; done; echo "srun $t$RLPA_SERVERS" >> $LOG; exec "$@"',
    "sleep": "exit 0",
}


def submit(folder, *arguments, nodes="node[1-3]"):
    """Run the script where Slurm's programs and the project's Python are stubs; what they were asked."""
    (folder / "bin").mkdir()
    (folder / ".venv/bin").mkdir(parents=True)
    stubs = {folder / "bin" / name: text for name, text in STUBS.items()}
    stubs[folder / ".venv/bin/python"] = (
        f'if [ "$1" = -c ]; then exec {sys.executable} "$@"; fi; echo "python $*" >> $LOG'
    )
    for file, text in stubs.items():
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)
    log = folder / "log"
    log.touch()
    own = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "LOG": str(log), "PYTHONPATH": str(ROOT)}
    own |= {"SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_NODELIST": nodes}
    command, kept = ["bash", ROOT / "params/slurm/reproduce.sbatch", *arguments], {"capture_output": True}
    done = subprocess.run(command, text=True, timeout=120, env=os.environ | own, **kept)
    return done, log.read_text().splitlines()


@pytest.mark.parametrize(("scale", "updates"), [("paper", False), ("released", True)])
def test_the_slurm_script_serves_on_all_machines_but_the_first(tmp_path, scale, updates):
    done, log = submit(tmp_path, scale, "personas.path=/data/aloe", "ppo.iterations=2")
    assert done.returncode == 0, done.stderr
    serving = [line for line in log if "vllm_server serve" in line]
    assert len(serving) == 16
    assert all("--share 0.9" in line and "--dtype bfloat16" in line for line in serving)
    for card in range(8):
        some = [line for line in serving if f"--port {8000 + card} --device {card} " in line]
        assert len(some) == 2 and all(("--updates" in line) == updates for line in some)
    assert sorted(re.findall(r"--nodelist=(\S+)", "\n".join(log))) == ["node1", "node2", "node3"]
    [run] = [line for line in log if " reproduce " in line]
    keys = re.findall(r"--set (\S+)", run)
    assert keys == ["personas.path=/data/aloe", "ppo.iterations=2", "run.gpus=3x8xA100-80"]
    assert config.load_config(scale, keys).run.accelerate == ("fsdp2-8" if updates else "ddp-8")
    [told] = [line for line in log if "node1" in line]
    lent = told.split()[-1].split(",")
    assert len(lent) == 16 and (lent[0], lent[-1]) == ("http://node2:8000/v1", "http://node3:8007/v1")


def test_the_slurm_script_refuses_one_machine(tmp_path, monkeypatch):
    monkeypatch.setitem(STUBS, "scontrol", "echo node1")
    done, log = submit(tmp_path, "paper")
    assert done.returncode == 2 and 'SET="run.gpus=8xA100-80"' in done.stderr and not log


def test_a_critic_that_is_not_trained_costs_neither_hours_nor_memory():
    with_critic, without = (
        config.load_config("paper", ["personas.path=.", f"ppo.baseline={name}"])
        for name in ("critic", "samples")
    )
    # before: the reference 2 and, as servers sample, the policy 2; its update 4; the critic's 2 and 4
    assert [speeds.operations(cfg, "20_ppo", 1) for cfg in (with_critic, without)] == [14, 8]
    shape = memory.shape_of("Qwen/Qwen2.5-3B-Instruct")
    parts = [memory.predict(shape, cfg, 1024, 256) for cfg in (with_critic, without)]
    spared = parts[0]["gradients"] - parts[1]["gradients"]
    assert spared > 4 * shape.adapter(32) and parts[0]["moments"] - parts[1]["moments"] == 2 * spared
    assert parts[0]["trained weights"] == parts[1]["trained weights"], "it is there, it only does not learn"
