"""One place decides where each role lives and what does not fit, and one function finds trained weights of
either form."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_rows import PEOPLE, SMALL, evaluated, train

from rlpa_lib import runs
from rlpa_lib.agents import devices, models, parties, placement
from rlpa_lib.agents.trained import find_trained, load_trained
from rlpa_lib.evaluation import rows, scoring
from rlpa_lib.evaluation.rows import Row, Stage
from rlpa_lib.mini.judge import RuleEvaluationJudge, RuleJudge
from rlpa_lib.mini.user import AgendaUser
from rlpa_lib.rlpa import training
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

WEIGHTS = 4 * sum(
    tensor.numel() for tensor in load_file(models.world.WEIGHTS / "model.safetensors").values()
)


def open_run(folder, *overrides):
    cfg = config.load_config("smoke", [*SMALL, *overrides])
    return runs.claim(cfg, 0, folder, "params/smoke.yaml")


def tune_fully(run, *names, scale=0.05):
    """Whole models that nobody trained but that say something else than the base model."""
    for number, name in enumerate(names):
        model, tokenizer = models.load_model(run.cfg)
        torch.manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * scale * parameter.abs().mean())
        model.save_pretrained(run.path(f"models/{name}"))
        tokenizer.save_pretrained(run.path(f"models/{name}"))


# Trained weights


def test_a_row_plays_the_weights_that_there_are_whatever_their_form(tmp_path):
    methods = "evaluation.methods=[base, sft, rlpa_prompting, rlpa, style_only_empty, style_only_other]"
    run = open_run(tmp_path, methods, "policy.tuning=full")
    tune_fully(run, "ppo", scale=0.3)
    train(run, "sft")
    stage = Stage(run)
    judged = {row.name: evaluated(run, stage, row) for row in stage.rows}
    assert len(judged) == 6 and all(len(found) == 6 for found in judged.values())
    assert [r["response"] for r in judged["rlpa"]] != [r["response"] for r in judged["rlpa_prompting"]]
    # the same in any order: a whole model, an adapter, the base model, the whole model again
    for name in ("rlpa", "sft", "base", "rlpa"):
        method = stage.method(Row(name), "vanilla")
        played = scoring.evaluate(
            method, "vanilla", PEOPLE, AgendaUser(0, "user_test"), RuleEvaluationJudge(), RuleJudge(),
            turns=2, seed=0,
        )[1]
        assert json.loads(json.dumps([j.to_json() for j in played])) == judged[name]
    assert rows.load_scores(run).keys() == {(name, "vanilla") for name in judged}
    before = rows.version(run, Row("rlpa"))
    tune_fully(run, "ppo", scale=0.2)
    assert rows.version(run, Row("rlpa")) != before


def test_weights_of_both_forms_or_of_neither_are_refused_by_name(tmp_path):
    run = open_run(tmp_path, "policy.tuning=full")
    with pytest.raises(InputError, match="neither adapters/ppo nor models/ppo is there, and x; run 20_ppo"):
        load_trained(run.dir, "ppo", "x; run 20_ppo")
    assert find_trained(run.dir, "ppo") is None
    tune_fully(run, "ppo")
    assert find_trained(run.dir, "ppo").whole
    with pytest.raises(InputError, match="models/ppo: holds a whole model"):
        find_trained(run.dir, "ppo").as_adapter()
    train(run, "ppo")
    with pytest.raises(InputError, match="adapters/ppo and models/ppo are both there"):
        find_trained(run.dir, "ppo")
    shutil.rmtree(run.dir / "models/ppo")
    (run.dir / "adapters/ppo/adapter_model.safetensors").unlink()
    assert find_trained(run.dir, "ppo") is None, "a folder without weights"


# Devices


def test_the_record_says_where_each_role_lives(tmp_path):
    run = open_run(tmp_path, "evaluation.methods=[base]", "rollout.users=2", "rollout.turns=2",
                   "ppo.iterations=1", "ppo.minibatch=8", "run.tensorboard=false")
    Stage(run)
    training.train(run, "smoke", say=lambda line: None)
    found = run.record["devices"]
    assert found["play"]["roles"] == {"sampler": "cpu"}
    assert found["ppo"]["roles"] == dict.fromkeys(("policy", "reference", "critic", "sampler"), "cpu")
    assert found["ppo"]["memory_gib"] == round(devices.find_memory(torch.device("cpu")) / 2**30, 2) > 0
    assert found["play"]["needed_gib"]["policy"] == round(WEIGHTS / 2**30, 3)


@pytest.mark.parametrize(
    ("work", "changes", "wanted"),
    [
        ("play", [], 1), ("sft", [], 1), ("ppo", ["policy.tuning=full"], 5),
        ("ppo", ["policy.dtype=bfloat16", "policy.tuning=full"], 4.5),
        ("ppo", ["policy.dtype=bfloat16"], 0.5),
    ],
)
def test_needs_by_hand(work, changes, wanted):
    """Weights of the tiny model in fp32 count 1: full tuning holds them with gradient and two moments beside
    a frozen copy."""
    cfg = config.load_config("smoke", changes)
    needed = placement.place(cfg, work).needed
    adapter = 16 * sum(  # rank 32 on q, k, v, o, gate, up, down of each layer
        32 * sum(module.weight.shape)
        for name, module in models.load_model(cfg)[0].named_modules()
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name
    )
    adapters = adapter if work != "play" and cfg.policy.tuning == "lora" else 0
    assert needed["policy"] + needed.get("reference", 0) == wanted * WEIGHTS + adapters
    assert ("sampler" in needed) == (work in ("play", "ppo"))


@pytest.fixture
def small_machine(monkeypatch):
    monkeypatch.setattr(devices, "find_memory", lambda device: 2**20)
    monkeypatch.setattr(models, "load_model", None)  # nothing is loaded


def test_what_cannot_fit_is_refused_before_it_is_loaded(tmp_path, small_machine, monkeypatch):
    run = open_run(tmp_path, "evaluation.methods=[base]")
    for start in (
        lambda: Stage(run), lambda: parties.make_policy(run.cfg, run),
        lambda: training.train(run, "smoke", say=None),
    ):
        with pytest.raises(InputError, match="policy.model: tiny does not fit into this machine's memory: "):
            start()
    assert not (run.dir / "adapters").exists()


def test_processes_of_a_machine_share_its_memory(monkeypatch):
    cfg = config.load_config("smoke")
    together = sum(placement.place(cfg, "ppo").needed.values())
    monkeypatch.setattr(devices, "find_memory", lambda device: 2 * together - 1)
    placement.place(cfg, "ppo")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="does not fit"):
        placement.place(cfg, "ppo")


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs with 40 GiB free of 80, as far as torch is asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**30)


def test_a_process_lives_on_the_gpu_of_its_number(two_gpus, monkeypatch):
    placed = placement.place(config.load_config("smoke"), "ppo")
    assert set(placed.roles.values()) == {"cuda:0"} and placed.there == 41 * 2**30
    monkeypatch.setenv("LOCAL_RANK", "1")
    placed = placement.place(config.load_config("smoke"), "play", encoder=True)
    assert placed.roles == {"sampler": "cuda:1", "encoder": "cuda:1"}
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="run.accelerate: process 2 of this machine has no GPU, 2 can"):
        placement.place(config.load_config("smoke"), "play")


def test_what_others_hold_of_a_gpu_is_not_there(two_gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**20)
    with pytest.raises(InputError, match="tiny does not fit into the memory free on cuda:0: sft needs"):
        placement.place(config.load_config("smoke"), "sft")


def test_every_model_is_loaded_to_the_device_of_the_process(tmp_path, monkeypatch):
    """The device "meta" stands for a GPU. RAG's encoder is a model, too."""
    monkeypatch.setattr(devices, "choose_device", lambda: torch.device("meta"))
    assert models.load_model(config.load_config("smoke"))[0].device.type == "meta"
    run = open_run(tmp_path, "evaluation.methods=[rag]", "evaluation.encoder=minilm")
    assert Stage(run).encoder.model.device.type == "meta"


def test_what_servers_sample_needs_no_memory_here(small_machine):
    keys = ["policy.kind=vllm", "policy.servers=['http://127.0.0.1:9/v1']"]
    placed = placement.place(config.load_config("smoke", keys), "play")
    assert placed.roles == {"sampler": "http://127.0.0.1:9/v1"} and not placed.needed
    with pytest.raises(InputError, match="does not fit"):
        placement.place(config.load_config("smoke", keys), "ppo")
