"""What the processes of tests/test_processes.py do: `accelerate launch ... distributed_worker.py FOLDER
TASK`. No test by itself."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from conftest import byte_tokenizer, random_model
from safetensors.torch import save_file
from test_trainer import PERSONAS, EchoUser, VowelJudge, config

from rlpa_lib import runs
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.rlpa import rollout
from rlpa_lib.rlpa.learner import Learner, gather_tensor
from rlpa_lib.rlpa.networks import ROLES
from rlpa_lib.rlpa.processes import Processes
from rlpa_lib.rlpa.training import Trainer
from rlpa_lib.runs.run import Run
from rlpa_lib.settings.config import InputError

MODES = {
    "bandit": {},
    "mdp": {
        "rollout": {"continuation": "random"},
        "ppo": {"turn_discount": 0.9, "update_every": "dialogue", "critic": "lora", "kl_target": 0.01},
    },
    "full": {"policy": {"tuning": "full"}, "ppo": {"lr": 1e-4}},
    "bf16": {"policy": {"dtype": "bfloat16"}, "ppo": {"critic": "lora"}},
    "bf16-full": {"policy": {"tuning": "full", "dtype": "bfloat16"}, "ppo": {"lr": 1e-4}},
}


def settings(mode):
    """Three iterations of six users, two turns, at the learning rates of mini."""
    ppo = {"iterations": 3, "minibatch": 8, "epochs": 1, "lr": 5e-4, "critic_lr": 1e-3}
    base = {"policy": {"lora_dropout": 0.0}, "rollout": {"users": 6, "turns": 2}, "ppo": ppo}
    merged = {
        section: {**base.get(section, {}), **MODES[mode].get(section, {})}
        for section in {*base, *MODES[mode]}
    }
    return config(**merged)


class Counted:
    """A party that writes down in which process it was asked."""

    def __init__(self, party, folder, rank):
        self.party, self.file = party, folder / f"asked-{type(party).__name__}-{rank}"

    def __getattr__(self, name):
        self.file.touch()
        return getattr(self.party, name)


def trained(folder, mode, accelerator=None, kill_at=None, trains=True):
    """Train in this process, alone or as one of several; the trainer. `trains` false: as it begins."""
    torch.set_num_threads(1)
    cfg = settings(mode)
    accelerator = accelerator or Accelerator(cpu=True)
    main = accelerator.is_main_process
    run = runs.claim(cfg, 5, folder, "test") if main else Run(cfg, 5, folder)
    model = random_model().to(getattr(torch, cfg.policy.dtype))
    learner = Learner(model, cfg, seed=5, processes=Processes(accelerator))
    parties = [Counted(party, folder, accelerator.process_index) for party in (EchoUser(), VowelJudge())]
    trainer = Trainer(run, learner, byte_tokenizer(), *parties, PERSONAS, system_prompt="Be kind.")
    if kill_at is not None and accelerator.process_index == 1:
        step, taken = learner.step, []

        def stop(scale):
            taken.append(scale)
            if len(taken) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(scale)

        learner.step = stop
    if trains:
        trainer.train(say=lambda line: print(line, flush=True))
    return trainer


def weights(trainer):
    """Every trained weight, whole."""
    learner = trainer.learner
    return {f"{role}|{n}": gather_tensor(p) for role in ROLES for n, p in learner.parameters(role).items()}


def talk(folder, accelerator):
    """Each way of talking once; what came out is left in a file by each process."""
    processes = Processes(accelerator)
    tensor = torch.full((2, 2), float(processes.rank + 1))
    processes.add_up([tensor])
    copied = processes.from_main(torch.full((3,), float(processes.rank + 5)))
    found = {
        "share": processes.share(range(5)),
        "gather": processes.gather({"rank": processes.rank, "text": "é" * (1 + 40 * processes.rank)}),
        "on_main": processes.on_main(lambda: [processes.rank, None, 0.1, "ü"]),
        "numbers": processes.add_up_numbers({"both": 1.5, f"only{processes.rank}": 2.0}),
        "sum": tensor.tolist(),
        "copied": copied.tolist(),
    }

    def fail():
        raise InputError("user.model: no such model")

    try:
        processes.on_main(fail)
    except (InputError, RuntimeError) as error:
        found["failed"] = f"{type(error).__name__}: {error}"
    (folder / f"talk-{processes.rank}.json").write_text(json.dumps(found))


def whole_text(text):
    """In place of `parse_reply`: a random model never writes the format."""
    return Reply(Profile(), text, True)


def work():
    """The command line."""
    rollout.parse_reply = whole_text
    folder, task = Path(sys.argv[1]), sys.argv[2]
    accelerator = Accelerator(cpu=True)
    if task == "talk":
        talk(folder, accelerator)
    else:
        mode, _, kill_at = task.partition(":")
        with Processes(accelerator).watched():
            trainer = trained(folder / "run", mode, accelerator, int(kill_at) if kill_at else None)
        whole = weights(trainer)
        if accelerator.is_main_process:
            save_file(whole, folder / "weights.safetensors")
        accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    work()
