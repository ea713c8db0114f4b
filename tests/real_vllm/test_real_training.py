"""PPO with rollouts from a real server: the trainer's adapter goes out, its samples come back, and a server
that is killed costs nothing."""

import json

import pytest
from test_real_server import once_busy

from rlpa_lib import runs
from rlpa_lib.agents import vllm_server
from rlpa_lib.agents.vllm_policy import NoServerLeft
from rlpa_lib.rlpa import training
from rlpa_lib.settings import config

BASE = [
    "policy.kind=vllm", "policy.lora_rank=8", "policy.lora_alpha=16", "ppo.lr=0.001",
    "rollout.max_new_tokens=64", "run.tensorboard=false",
]
MDP = [
    "ppo.turn_discount=0.9", "ppo.update_every=dialogue", "ppo.value_clip=null", "ppo.iterations=2",
    "rollout.continuation=random", "rollout.users=4", "ppo.minibatch=16",
]


def trainer(folder, server, *keys):
    """A trainer as 20_ppo makes it."""
    keys = [*BASE, f"policy.servers=[{server.base_url}]", *keys]
    return training.prepare(runs.claim(config.load_config("smoke", keys), 0, folder, "params/smoke.yaml"))


def rows_of(folder, update):
    return [
        json.loads(line)
        for line in (folder / f"dialogues/ppo/update-{update:04d}.jsonl").read_text().splitlines()
    ]


class Watched:
    """A user who starts something in his n-th turn."""

    def __init__(self, user, turn, action):
        self.user, self.turn, self.action, self.started = user, turn, action, None

    def reply(self, personas, dialogues):
        self.turn -= 1
        if self.turn == 0:
            self.started = self.action()
        return self.user.reply(personas, dialogues)


def test_three_iterations_with_a_swap_after_each_update(vllm_server_tiny, tmp_path):
    made = trainer(tmp_path / "run", vllm_server_tiny, "ppo.iterations=3")
    rows = made.train()
    assert (
        [row["update"] for row in rows] == list(range(1, 10))
        and made.policy.version == 9
        and made.policy.n_redone == 0
    )
    for row in rows:
        print(
            f"update {row['update']}: sampler gap mean {row['sampler_gap']:.2e} nats, "
            f"largest ratio {row['sampler_max_ratio']:.6f}, lag {row['policy_lag']}, KL {row['kl']:.4f}"
        )
        assert row["sampler_gap"] < 1e-4 and row["sampler_max_ratio"] < 1.01 and row["policy_lag"] == 0
    assert max(row["kl_k3"] for row in rows[1:]) > 1e-4, (
        "the adapters that were swapped in are not the base model"
    )
    assert [p.name for p in (tmp_path / "run/adapters/ppo-served").iterdir()] == ["v000009"]


def test_a_server_killed_in_mid_rollout_loses_no_dialogue(vllm_launch, vllm_venv, tmp_path):
    server = vllm_launch()
    whole = trainer(tmp_path / "whole", server, *MDP).train()
    made = trainer(tmp_path / "stopped", server, *MDP)
    # the last turn of the second cohort
    made.user = user = Watched(
        made.user, 3 + 3, lambda: once_busy(server, lambda: vllm_server.stop(server, vllm_venv, 0.0))
    )
    with pytest.warns(UserWarning, match="dropped"), pytest.raises(NoServerLeft, match="last checkpoint"):
        made.train()
    user.started.join()
    waiting = sorted((tmp_path / "stopped/checkpoints/ppo-rollout").glob("turn-*.jsonl"))
    said = [
        s["completion"]["text"]
        for file in waiting
        for line in file.read_text().splitlines()[:-1]
        for s in json.loads(line)["samples"]
    ]
    assert len(waiting) == 2 and len(said) == 2 * 4 * 4
    again = vllm_launch(port=server.port)
    assert again.base_url == server.base_url
    resumed = trainer(tmp_path / "stopped", again, *MDP)
    rows = resumed.train()
    assert [row["completion"] for row in rows_of(tmp_path / "stopped", 2)][: len(said)] == said, (
        "what was sampled is what is trained on"
    )
    assert [r["completion"] for r in rows_of(tmp_path / "stopped", 2)] == [
        r["completion"] for r in rows_of(tmp_path / "whole", 2)
    ]
    assert [row["reward_total"] for row in rows] == [row["reward_total"] for row in whole] and len(rows) == 2
