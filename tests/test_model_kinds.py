"""Models other than the one that ships: end tokens, chat templates, attention and adapters are handled, or
refused by name."""

import json
import shutil
from functools import partial

import pytest
import torch
import transformers
from conftest import byte_tokenizer, random_model
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from test_trainer import PERSONAS, EchoUser, VowelJudge
from test_trainer import config as settings_of
from transformers import AutoModelForCausalLM

from rlpa_lib import runs
from rlpa_lib.agents import architecture, models, templates, world
from rlpa_lib.agents.decoding import decode
from rlpa_lib.agents.local_policy import LocalPolicy
from rlpa_lib.agents.prompt_tokens import decode_reply, find_end_ids, prompt_ids
from rlpa_lib.rlpa import silence
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.rlpa.networks import Backbone
from rlpa_lib.rlpa.silence import SilentTraining
from rlpa_lib.rlpa.training import Trainer
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

TALK = [
    {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"}, {"role": "user", "content": "What now?"},
]  # fmt: skip
BASE = (world.WEIGHTS / "chat_template.jinja").read_text()
GEMMA = (
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ m['content'] + '</s>' }}{% else %}{{ raise_exception('Only user and assistant') }}{% endif %}"
    "{% endfor %}"
)
DEAF = (  # leaves the system prompt out without a word
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] + ': ' + m['content'] + '\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def variant(folder, *, eos=None, generation_eos=None, template=None):
    """The model that ships, with other end tokens or another template."""
    shutil.copytree(world.WEIGHTS, folder)
    changes = {"tokenizer_config.json": {"eos_token": eos} if eos else {}}
    ends = {"eos_token_id": generation_eos} if generation_eos is not None else {}
    for name, change in (changes | {"generation_config.json": ends, "config.json": ends}).items():
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return config.load_config("smoke", [f"policy.model={folder}"])


@pytest.mark.parametrize("ends", [[0, 1], [1, 0], 0])
def test_a_turn_ends_with_any_end_token_of_the_model(tmp_path, ends):
    """Also with one that the template alone knows."""
    cfg = variant(tmp_path / "m", eos="<|pad|>", generation_eos=ends)
    model, tokenizer = models.load_model(cfg)
    assert tokenizer.eos_token_id == 0 and models.load_end_ids(cfg, tokenizer) == {0, 1}
    drawn = LocalPolicy(model, tokenizer).generate(
        [TALK[:2]], 4, seed=1, temperature=0.7, max_new_tokens=64
    )[0]
    assert all(c.finished and c.token_ids[-1] == 1 and "<|end|>" not in c.text for c in drawn)


def test_an_end_token_that_the_configuration_alone_knows_ends_a_turn(tmp_path):
    cfg = variant(tmp_path / "m", generation_eos=[1, 5])
    assert models.load_end_ids(cfg, models.load_tokenizer(cfg)) == {1, 5}


def test_a_model_without_any_end_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token = None, None
    with pytest.raises(InputError, match="policy.model: .*end token"):
        find_end_ids(tokenizer)


@pytest.mark.parametrize("template", [GEMMA, MISTRAL, DEAF], ids=["gemma", "mistral", "deaf"])
def test_the_system_prompt_is_heard_without_a_system_role(tmp_path, template):
    tokenizer = models.load_tokenizer(variant(tmp_path / "m", template=template))
    text = tokenizer.decode(prompt_ids(tokenizer, TALK))
    assert text.count("Be kind.\n\nHello") == 1 and text.index("Hi!") < text.index("What now?")
    without = tokenizer.decode(prompt_ids(tokenizer, TALK[1:]))
    assert without == text.replace("Be kind.\n\n", "")


@pytest.mark.parametrize(
    "template",
    [
        None, "{{ raise_exception('No chat here') }}", "{{ 'fixed' }}", "{{ 1 // 0 }}",
        "{{ range(10**9)|length }}", "{{ [messages|length, messages|length + 1]|random }}" * 40 + BASE,
    ],
)  # fmt: skip
def test_a_template_that_makes_no_prompt_is_refused_by_name(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(InputError, match="policy.model: .*template"):
        templates.fit_template(tokenizer)


def test_a_template_may_want_a_system_prompt(tmp_path):
    strict = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
    cfg = variant(tmp_path / "m", template=strict + BASE)
    tokenizer = models.load_tokenizer(cfg)
    assert prompt_ids(tokenizer, TALK) and models.load_end_ids(cfg, tokenizer) == {1}


def test_a_template_that_needs_nothing_stays_as_it_is():
    tokenizer = byte_tokenizer()
    before = tokenizer.chat_template
    templates.fit_template(tokenizer)
    assert tokenizer.chat_template == before


@pytest.mark.parametrize(
    "date",
    [
        "strftime_now('%d %b %Y')", 'strftime_now("%Y-%m-%d")', "strftime_now('%B %-d, %Y %H:%M %% %%d')",
        "strftime_now(how)",
    ],
)  # fmt: skip
def test_a_prompt_is_the_same_on_any_day(tmp_path, monkeypatch, date):
    today = "{%- set how = '%d %B %Y' %}{% if strftime_now is defined %}{{ 'Date: ' + " + date + " + '\n' }}"
    tokenizer = models.load_tokenizer(variant(tmp_path / "m", template=today + "{% endif %}" + BASE))
    first = prompt_ids(tokenizer, TALK)
    how = "%d %B %Y" if "how" in date else date[14:-2]
    assert templates.DATE.strftime(how) in tokenizer.decode(first)

    class Later(templates.datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 2, 3, 4)

    monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", Later)
    assert prompt_ids(tokenizer, TALK) == first


def test_a_thought_that_the_template_opened_is_no_reply(tiny_random_model):
    _, tokenizer = tiny_random_model
    prompt = tokenizer("assistant\n<think>\n")["input_ids"]
    cut, whole = (tokenizer(text)["input_ids"] for text in ("I wonder", "I wonder\n</think>\n\nHi"))
    assert decode_reply(tokenizer, prompt, cut, False) == ("I wonder", "")
    assert decode_reply(tokenizer, prompt, whole, False) == ("I wonder", "Hi")
    assert decode_reply(tokenizer, prompt[:5], cut, False) == ("", "I wonder")


SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
    "eos_token_id": 1, "bos_token_id": 2,
}
GEMMA2 = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4096}
COMPUTED = {
    "llama": ("Llama", {}), "qwen3": ("Qwen3", {"head_dim": 8}), "phi3": ("Phi3", {}),
    "smollm3": ("SmolLM3", {}), "olmo2": ("Olmo2", {}), "granite": ("Granite", {}),
    "wide window": ("Mistral", {"sliding_window": 36, "head_dim": 8}),
}  # fmt: skip
REFUSED = {
    "narrow window": ("Mistral", {"sliding_window": 35, "head_dim": 8}, "sees 35 tokens"),
    "window in some layers": ("Gemma3Text", {"head_dim": 8, "sliding_window": 8}, "sees 8 tokens"),
    "capped scores": (
        "Gemma2", {**GEMMA2, "attn_logit_softcapping": 2.0, "final_logit_softcapping": None},
        "attn_logit_softcapping",
    ),
    "capped logits": (
        "Gemma2", {**GEMMA2, "attn_logit_softcapping": None}, "final_logit_softcapping",
    ),
    "scaled logits": ("Cohere", {"logit_scale": 0.1}, "logit_scale"),
    "divided logits": ("Granite", {"logits_scaling": 8.0}, "logits_scaling"),
    "own attention": ("Bloom", {"n_layer": 2, "n_head": 4}, "bloom"),
    "no attention": ("Mamba", {}, "mamba"), "sinks": ("GptOss", {"head_dim": 8}, "attention sinks"),
    "other body": ("Nemotron", {}, "nemotron: cannot be sampled"),
    "twofold attention": ("DiffLlama", {}, "diffllama: .*own forward pass"),
}  # fmt: skip


def sampled(name, extra):
    torch.manual_seed(0)
    cfg = getattr(transformers, f"{name}Config")(**{**SMALL, **extra})
    model = AutoModelForCausalLM.from_config(cfg, attn_implementation="eager").eval().float()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(8.0)  # sharp enough to tell
    draw = torch.Generator().manual_seed(3)
    prompt = tuple(torch.randint(3, 64, (24,), generator=draw).tolist())
    drawn = decode(model, [prompt], 2, torch.rand(2, 12, generator=draw), temperature=1.0, end_ids=[1])
    return model, prompt, drawn


@pytest.mark.parametrize("name", COMPUTED)
def test_what_is_sampled_has_the_models_own_log_probabilities(name):
    model, prompt, drawn = sampled(*COMPUTED[name])
    for ids, logprobs, _ in drawn:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        own = torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
        assert torch.allclose(own, torch.tensor(logprobs), atol=1e-3)


@pytest.mark.parametrize("name", REFUSED)
def test_attention_and_logits_of_another_kind_are_refused_by_name(name):
    kind, extra, why = REFUSED[name]
    with pytest.raises(InputError, match=f"policy.model: .*{why}"):
        sampled(kind, extra)


def test_a_window_is_held_against_the_settings(tmp_path):
    """Before anything is sampled: the longest prompt and reply must fit."""
    folder = tmp_path / "m"
    cfg = transformers.MistralConfig(**{**SMALL, "vocab_size": 300, "sliding_window": 1000})
    AutoModelForCausalLM.from_config(cfg).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    keys = [f"policy.model={folder}", "rollout.max_new_tokens=64"]
    with pytest.raises(InputError, match="rollout.max_prompt_tokens"):
        models.load_model(config.load_config("smoke", [*keys, "rollout.max_prompt_tokens=937"]))
    models.load_model(config.load_config("smoke", [*keys, "rollout.max_prompt_tokens=936"]))


ADAPTERS = {
    "lora": {}, "dora": {"use_dora": True}, "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 64, "o_proj": 1}},
    "saved modules": {"modules_to_save": ["lm_head"]}, "saved table": {"modules_to_save": ["embed_tokens"]},
    "one module": {"target_modules": ["v_proj"]}, "bias": {"lora_bias": True, "target_modules": ["q_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_sampled_as_peft_runs_it(tmp_path, name):
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **ADAPTERS[name]}
    made = get_peft_model(random_model(), LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(0)
    with torch.no_grad():
        for key, p in made.named_parameters():
            if p.requires_grad:
                p.mul_(1.3) if "magnitude" in key else p.add_(torch.randn_like(p) * 0.1)
    made.save_pretrained(tmp_path)
    tuned = models.attach_adapter(random_model(), tmp_path)
    [[c]] = LocalPolicy(tuned, byte_tokenizer()).generate(
        [TALK], 1, seed=1, temperature=1.0, max_new_tokens=24
    )
    ids = torch.tensor([[*c.prompt_ids, *c.token_ids]])
    with torch.no_grad():
        logprobs = torch.log_softmax(tuned(input_ids=ids).logits[0, len(c.prompt_ids) - 1 : -1], -1)
    own = logprobs.gather(-1, torch.tensor(c.token_ids)[:, None])[:, 0]
    assert torch.allclose(own, torch.tensor(c.logprobs), atol=1e-3)


def made_adapter(folder, model=None, **options):
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **options}
    made = get_peft_model(model or random_model(), LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for _, p in made.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p, dtype=torch.float32) * 0.1)
    made.save_pretrained(folder)
    return folder


def another_base(**changes):
    known = random_model().config.to_dict()
    known.pop("layer_types")
    return AutoModelForCausalLM.from_config(transformers.Qwen2Config(**{**known, **changes}))


def warm(folder, tuning):
    keys = [f"policy.adapter={folder}", "policy.lora_rank=4", "policy.lora_alpha=8"]
    return Backbone(random_model(), config.load_config("smoke", [*keys, f"policy.tuning={tuning}"]))


OTHERS = {"wider": {"hidden_size": 64}, "deeper": {"num_hidden_layers": 3}}


@pytest.mark.parametrize("name", [*OTHERS, "gpt2"])
def test_an_adapter_of_another_model_is_refused_by_name(tmp_path, name):
    """Also one that PEFT would load in part: a deeper model's, whose further layers have no place."""
    gpt2 = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=60, eos_token_id=1)
    base = AutoModelForCausalLM.from_config(gpt2) if name == "gpt2" else another_base(**OTHERS[name])
    folder = made_adapter(tmp_path, base)
    for use in (lambda: models.attach_adapter(random_model(), folder), partial(warm, folder, "lora"),
                partial(warm, folder, "full")):  # fmt: skip
        with pytest.raises(InputError, match="does not fit policy.model"):
            use()


@pytest.mark.parametrize(
    ("options", "tuning", "why"),
    [
        ({"bias": "all"}, "lora", "has bias all"), ({"bias": "lora_only"}, "lora", "has bias lora_only"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "lora", "lora_embedding_A.* not trained on here"),
        ({"trainable_token_indices": [3]}, "lora", "trainable_tokens_delta.* not trained on here"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "full", "tie_word_embeddings"),
        ({"modules_to_save": ["lm_head"]}, "full", "tie_word_embeddings"),
    ],
)  # fmt: skip
def test_a_warm_start_that_would_be_lost_in_part_is_refused_by_name(tmp_path, options, tuning, why):
    with pytest.raises(InputError, match=why):
        warm(made_adapter(tmp_path, **options), tuning)


@pytest.mark.parametrize("name", ["dora", "rslora", "patterns", "saved modules", "one module"])
def test_a_warm_start_is_trained_and_saved_whole(tmp_path, name):
    folder = made_adapter(tmp_path / "warm", **ADAPTERS[name])
    keys = [f"policy.adapter={folder}", "policy.lora_rank=4", "policy.lora_alpha=8"]
    learner = Learner(random_model(), config.load_config("smoke", keys), seed=5)
    with torch.no_grad():
        for p in learner.parameters("policy").values():
            p.add_(torch.randn_like(p) * 0.05)
    again = models.attach_adapter(random_model(), learner.save_policy(tmp_path / "saved"))
    ids = torch.tensor([[3, 9, 7, 5]])
    with torch.no_grad(), learner.network.activate("policy") as network:
        assert torch.allclose(network.eval()(ids).logits, again(ids).logits, atol=1e-5)


def test_another_kind_of_adapter_is_refused_by_name(tmp_path):
    made = get_peft_model(random_model(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    made.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="PREFIX_TUNING"):
        models.attach_adapter(random_model(), tmp_path)


def test_the_first_batch_is_held_against_the_models_own_forward_pass(tiny_random_model, monkeypatch):
    model, tokenizer = tiny_random_model
    head = model.get_output_embeddings()
    monkeypatch.setattr(model, "get_output_embeddings", lambda: lambda hidden: 1.1 * head(hidden))
    with pytest.raises(InputError, match="own forward pass"):
        decode(model, [(3, 4, 5)], 2, torch.rand(2, 4), temperature=1.0, end_ids=[2])
    architecture.PROBED.add(model)
    policy = LocalPolicy(model, tokenizer)
    with pytest.raises(InputError, match="policy.model: qwen2: .*own forward pass by 0.*allowed: 0.001"):
        policy.generate([TALK], 2, seed=1, temperature=1.0, max_new_tokens=8)


class Louder(transformers.Qwen2ForCausalLM):
    """Its logits are more than the output layer's, which no setting says."""

    def forward(self, *args, **options):
        out = super().forward(*args, **options)
        out.logits = 1.5 * out.logits
        return out


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("packing", ["tree", "rows"])
def test_passes_of_training_are_held_against_the_models_own(packing, tuning):
    """Where servers sample, nothing else would notice."""
    cfg = settings_of(ppo={"packing": packing}, policy={"tuning": tuning})
    louder = Louder(random_model().config)
    louder.load_state_dict(random_model().state_dict())
    Learner(random_model(), cfg, seed=5).check_passes()
    with pytest.raises(InputError, match="policy.model: qwen2: log-probabilities as trained here differ"):
        Learner(louder, cfg, seed=5).check_passes()


def test_a_training_without_one_good_reply_stops_and_says_what_to_look_at(tmp_path):
    def train(patience):
        cfg = settings_of(rollout={"turns": 2}, ppo={"iterations": 2, "format_patience": patience})
        run = runs.claim(cfg, 5, tmp_path / f"run-{patience}", "test")
        learner, parties = Learner(random_model(), cfg, seed=5), (EchoUser(), VowelJudge(), PERSONAS)
        trainer = Trainer(run, learner, byte_tokenizer(), *parties, system_prompt="Be kind.")
        return run, trainer.train(say=lambda line: None)

    told = r"of the last 3 updates .*dialogues/ppo/update-0003.jsonl: 0% .*end tokens.*format_patience"
    for _ in range(2):  # the same again does not pass as finished
        with pytest.raises(SilentTraining, match=told):
            train(3)
    assert not (tmp_path / "run-3/adapters/ppo").exists()
    assert len(train(None)[1]) == 4


@pytest.mark.parametrize("scheme", ["bandit", "mdp"])
def test_a_short_training_without_one_good_reply_is_no_success(tmp_path, scheme):
    """It has fewer updates than the patience; an ablation's ends where all are compared."""
    mdp = {"turn_discount": 0.9, "update_every": "dialogue"} if scheme == "mdp" else {}
    cfg = settings_of(
        rollout={"turns": 2, "continuation": "random"}, ppo={"iterations": 2, "format_patience": 9, **mdp},
        ablations={"iterations": 1},
    )
    total, first = (2, 1) if mdp else (4, 2)

    def train(name):
        run = runs.claim(cfg, 5, tmp_path / name, "test")
        learner, parties = Learner(random_model(), cfg, seed=5), (EchoUser(), VowelJudge(), PERSONAS)
        return Trainer(run, learner, byte_tokenizer(), *parties, system_prompt="Be kind.", name=name)

    assert len(train("ppo").train(until=first, say=lambda line: None)) == first, "it may still learn"
    for _ in range(2):
        with pytest.raises(SilentTraining, match=f"of the last {total} updates"):
            train("ppo").train(say=lambda line: None)
    with pytest.raises(SilentTraining, match=f"of the last {first} updates"):
        train("ablation-PR").train(until=first, say=lambda line: None)


@pytest.mark.parametrize(
    ("rates", "patience", "over", "stops"),
    [
        ([0, 0], 2, False, True), ([0], 2, False, False), ([0], 2, True, True), ([0, 0, 0.1], 2, True, False),
        ([0.1, 0, 0], 2, False, True), ([0.1, 0], 2, True, False), ([0.1, 0], 3, True, False),
        ([0] * 9, None, True, False), ([], 2, True, False),
    ],
)  # fmt: skip
def test_when_a_training_counts_as_silent(rates, patience, over, stops):
    rows = [{"format_rate": rate, "finished_share": 1.0} for rate in rates]
    if stops:
        with pytest.raises(SilentTraining):
            silence.check_format("ppo", rows, patience, "Read", over=over)
    else:
        silence.check_format("ppo", rows, patience, "Read", over=over)
