"""The warm-up before PPO: a random model learns to write what scripted assistants write, and PPO starts from
there."""

import pytest
import torch
from accelerate import Accelerator
from conftest import byte_tokenizer, random_model
from safetensors.torch import load_file

from rlpa_lib import runs
from rlpa_lib.agents import models, parties
from rlpa_lib.dialogue.profile import parse_reply
from rlpa_lib.rlpa import training, warmup
from rlpa_lib.rlpa.networks import REFERENCE
from rlpa_lib.rlpa.processes import Processes
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

KEYS = [
    "policy.warm_up=20", "policy.lora_rank=4", "policy.warm_up_lr=0.01", "sft.micro_batch=2",
    "rollout.users=2", "rollout.turns=1", "rollout.max_new_tokens=8", "rollout.max_prompt_tokens=4000",
    "ppo.minibatch=8", "ppo.iterations=1", "run.tensorboard=false", "ppo.format_patience=null",
]


@pytest.fixture
def cold_run(tmp_path):
    torch.set_num_threads(1)
    random_model().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return runs.claim(
        config.load_config("smoke", [*KEYS, f"policy.model={tmp_path}/model"]), 0, tmp_path / "run",
        "params/smoke.yaml",
    )


def test_ppo_starts_from_the_warm_up_which_is_made_once(cold_run):
    lines = []
    made = training.prepare(cold_run, say=lines.append)
    rows = cold_run.read_metrics("warmup")
    assert [(row["step"], row["steps"]) for row in rows] == [(1, 3), (2, 3), (3, 3)] and len(lines) == 3
    assert rows[0]["loss"] > rows[1]["loss"] > rows[2]["loss"]
    assert rows[0]["grad_norm_policy"] > 0 == rows[0]["grad_norm_critic"]
    warm = load_file(cold_run.dir / "adapters/warmup/adapter_model.safetensors")
    kept = {
        n.replace(f".{REFERENCE}.", "."): p
        for n, p in made.learner.model.named_parameters()
        if f".{REFERENCE}." in n
    }
    assert warm.keys() == kept.keys() and all(torch.equal(warm[n], kept[n]) for n in warm)
    assert any(bool(w.any()) for n, w in warm.items() if "lora_B" in n)
    update = made.train(say=lambda line: None)[0]
    assert abs(update["kl"]) < 1e-5, "the reference is the warm-up, not the cold model"
    training.prepare(cold_run, say=lines.append)
    assert len(lines) == 3, "it is not made again"


def test_a_scripted_reply_ends_as_the_template_ends_one(cold_run):
    """Where the tokenizer's end token is another, as with Phi-3.5 and Gemma."""
    people = parties.load_people(cold_run.cfg, "train", 2, 0, cold_run)
    tokenizer = byte_tokenizer()
    usual = warmup.make_replies(cold_run.cfg, tokenizer, people, 0)
    end, tokenizer.eos_token = tokenizer.eos_token_id, "<pad>"
    assert tokenizer.eos_token_id != end and usual == warmup.make_replies(cold_run.cfg, tokenizer, people, 0)


def test_the_first_loss_is_that_of_the_replies(cold_run):
    cfg = cold_run.cfg
    people = parties.load_people(cfg, "train", None, 0, cold_run)
    model, tokenizer = models.load_model(cfg)
    groups = warmup.make_replies(cfg, tokenizer, people, 0)
    assert len(groups) == 20 and groups == warmup.make_replies(cfg, tokenizer, people, 0)
    assert all(
        parse_reply(tokenizer.decode(reply[:-1])).format_ok and reply[-1] == 2 for _, (reply,) in groups
    )
    warmup.make_adapter(cold_run, people, Processes(Accelerator(cpu=True)), lambda line: None)
    lost, n = 0.0, 0
    for prompt, (reply,) in groups[:8]:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *reply]])).logits[0, len(prompt) - 1 : -1]
        lost -= float(torch.log_softmax(logits, -1).gather(-1, torch.tensor(reply)[:, None]).sum())
        n += len(reply)
    assert cold_run.read_metrics("warmup")[0]["loss"] == pytest.approx(lost / n, rel=1e-5)


def test_scripted_replies_are_for_the_built_in_world_alone():
    with pytest.raises(InputError, match="policy.warm_up"):
        config.load_config("paper", ["policy.warm_up=5"])
