"""The dress rehearsal: its stage (a model folder in Qwen's form, servers that answer in Chinese, a sampler),
what it reports, and in the slow test itself."""

import json
import re
import subprocess
import sys

import chinese_parties
import pytest
import qwen_folder
import rehearse
import torch
from peft import LoraConfig, get_peft_model
from sampling_vllm import SamplingVLLM
from transformers import AutoModelForCausalLM

from rlpa_lib.agents import conversion, llm_judges, models, users
from rlpa_lib.agents.vllm_policy import VLLMPolicy
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.profile import parse_reply
from rlpa_lib.runs.record import REPOSITORY
from rlpa_lib.settings import config
from rlpa_lib.study import models as study_models

CHINESE = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return qwen_folder.write_folder(tmp_path_factory.mktemp("qwen") / "model")


def talks():
    system = {"role": "system", "content": prompt_files.load_prompt("policy", "zh")}
    said = [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "<profile>\n</profile>\n\n<response>\n你好！\n</response>"},
        {"role": "user", "content": "我是儿科护士，住在成都。" * 40},
    ]
    return [[system, *said[:1]], [system, *said]]


def local_policy(folder):
    cfg = config.load_config("paper", [f"policy.model={folder}", "personas.path=."])
    return models.make_local_policy(*models.load_model(cfg), cfg)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_the_model_writes_chinese_replies_of_good_form_whatever_it_reads(folder, temperature):
    said = local_policy(folder).generate(talks(), 8, seed=1, temperature=temperature, max_new_tokens=4096)
    replies = [parse_reply(completion.text) for group in said for completion in group]
    good = [r for r in replies if r.format_ok and len(r.profile) and CHINESE.search(r.response)]
    assert len(good) >= (0.9 if temperature else 1.0) * len(replies), "logits leave a little to chance"
    assert all(c.finished and len(c.token_ids) < 16 for group in said for c in group if temperature == 0.0)
    assert temperature == 0.0 or len({reply.profile for reply in replies}) > 3


def test_the_folder_has_qwens_form_and_width(tmp_path):
    wide = qwen_folder.write_folder(tmp_path / "wide", wide=True)
    model, tokenizer = models.load_model(
        config.load_config("paper", [f"policy.model={wide}", "personas.path=."])
    )
    assert (model.config.vocab_size, model.config.tie_word_embeddings, model.dtype) == (
        151936, True, torch.bfloat16,
    )  # fmt: skip
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>"]) == [151643, 151644]
    assert tokenizer.eos_token_id == 151645 and len(tokenizer) < 151936
    ends = json.loads((wide / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [151645, 151643], "as Qwen's: a reply ends with the first, a text with the second"
    shown = tokenizer.apply_chat_template(
        [{"role": "user", "content": "你好"}], tokenize=False, add_generation_prompt=True
    )
    assert shown == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(tokenizer("爬山、看书，ok?")["input_ids"]) == "爬山、看书，ok?"


def ask(schema, system="请回答。", content="-", **more):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
    form = {"name": schema.__name__, "schema": schema.model_json_schema()}
    body = {"model": "m", "messages": messages, "response_format": {"json_schema": form}, **more}
    return schema.model_validate_json(chinese_parties.answer(body))


@pytest.mark.parametrize(
    "schema",
    [
        llm_judges.CriteriaAnswer, llm_judges.HolisticAnswer, llm_judges.EvaluationAnswer,
        llm_judges.pairs_schema(3, 2), llm_judges.numbers_schema(4), conversion.TenSlots,
        study_models._claims_schema(3), study_models._rewritten_schema(5),
    ],
    ids=lambda schema: schema.__name__,
)  # fmt: skip
def test_every_role_is_answered_in_its_schema(schema):
    said = [ask(schema, seed=seed) for seed in range(20)]
    assert len({one.model_dump_json() for one in said}) > 1, "drawn anew for each question"
    told = said[0].model_dump_json()
    assert CHINESE.search(told) or not re.search('"[a-z_]+":"', told), "words are Chinese"


def test_a_user_tells_what_its_notes_allow_and_ask_for():
    notes = {"already_told": [1, 3], "new_items_allowed": 2, "they_said": "你好"}
    assert ask(users.UserMessage, content=json.dumps(notes)).revealed == [2, 4]
    assert ask(users.UserMessage, content=json.dumps({**notes, "tell_now": 9})).revealed == [9, 2]
    assert ask(users.UserMessage, content=json.dumps({**notes, "new_items_allowed": 0})).revealed == []


@pytest.mark.parametrize(("language", "system"), [("zh", "请填写。"), ("en", "Fill in.")])
def test_the_converter_writes_the_language_of_its_prompt(language, system):
    values = ask(conversion.TenSlots, system).model_dump()
    assert not [key for key, slot in values.items() if conversion.complaint(key, slot["value"], language)]


def test_the_sampler_draws_from_the_weights_that_are_asked_for(folder, tmp_path):
    """Without an adapter and under one that changes much, its log-probabilities are the model's own."""
    local = local_policy(folder)
    torch.manual_seed(0)
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    server = SamplingVLLM(folder)
    try:
        policy = VLLMPolicy(local.tokenizer, [server.url])
        for network in (local.model, tuned):
            if network is tuned:
                policy.load_weights(tmp_path / "adapter", 1)
            said = policy.generate(talks(), 4, seed=3, temperature=1.0, max_new_tokens=64)
            for completion in (c for group in said for c in group):
                ids = [*completion.prompt_ids, *completion.token_ids]
                with torch.no_grad():
                    logits = network(torch.tensor([ids])).logits[0].float()
                own = logits[len(completion.prompt_ids) - 1 : -1].log_softmax(-1)
                own = own.gather(-1, torch.tensor(completion.token_ids)[:, None])[:, 0]
                torch.testing.assert_close(own, torch.tensor(completion.logprobs), atol=0.3, rtol=0)
    finally:
        server.close()


def test_the_table_counts_by_notebook_and_role(tmp_path):
    (tmp_path / "metrics").mkdir()
    spent = [{"role": "user", "model": "m", "sent": n, "notebook": "20_ppo"} for n in (2, 3)]
    (tmp_path / "metrics/usage.jsonl").write_text("".join(json.dumps(line) + "\n" for line in spent))
    lines = ["[1/2] 20_ppo  running", "[1/2] 20_ppo  1 min", "[2/2] 50_report  running", "finished in 2 min"]
    steps = [(*rehearse._read_progress(line), 60.0 * i, 10 * i) for i, line in enumerate(lines)]
    rows = rehearse._count(steps, tmp_path)
    assert rows == [{"notebook": "20_ppo", "minutes": 1.0, "sampler": 10, "user": 5}]
    assert rehearse.table(rows).splitlines()[1].split() == ["20_ppo", "1.0", "10", "5"]


def test_a_rehearsal_without_data_is_skipped_and_says_what_to_name(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(rehearse, "ALOE", tmp_path / "nowhere")
    monkeypatch.setattr(sys, "argv", ["rehearse.py"])
    assert rehearse.main() == 0
    said = capsys.readouterr().out
    assert said.startswith("skipped: not there: ") and "nowhere" in said and "RLPA_ALOE" in said


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"update": 1, "format_rate": 0.0, "reward_total": 0.0, "grad_norm_policy": 1.0}, "from nothing"),
        (None, "missing .*sft.csv"),
    ],
)
def test_a_run_that_learned_nothing_is_no_rehearsal(tmp_path, row, told):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "record.json").write_text("{}")
    (tmp_path / "metrics/ppo.jsonl").write_text(json.dumps(row) if row else "")
    for file in rehearse.MADE.values() if row else ():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(rehearse.Failed, match=told):
        rehearse.check(tmp_path, rehearse.Case(()))


def test_chinese_slots_leave_the_offline_world_its_own():
    """Notebooks 02 and 03 play agenda user and rule judges, which read English alone: under paper.yaml they
    were given Chinese slots, and 03 stopped at its swap test."""
    for name in ("02_simulated_user", "03_rewards_and_judges"):
        cells = json.loads((REPOSITORY / f"notebooks/{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        code = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        assert "load_people" not in code and "load_personas(run.cfg.personas" in code


@pytest.mark.slow
@pytest.mark.skipif(bool(rehearse.find_missing()), reason=rehearse.find_missing() or "-")
@pytest.mark.parametrize("scale", [*rehearse.CASES])
def test_all_notebooks_reach_the_report(scale, tmp_path):
    command = [sys.executable, REPOSITORY / "tests/rehearse.py", "--scale", scale, "--folder", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    print(done.stdout)
