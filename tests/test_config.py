"""Settings: every kind of bad params file or override has one line that names the file and the key."""

import pytest
import yaml

from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.schema import Config

SCALES = ("smoke", "mini", "smol", "paper", "released")


@pytest.fixture
def params(tmp_path):
    """Writes a params file and returns its path."""

    def write(text):
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        return file

    return write


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_validates(scale):
    cfg = config.load_config(scale)
    assert Config.model_validate_json(cfg.model_dump_json()) == cfg
    assert yaml.safe_load(yaml.safe_dump(config.dump_config(cfg))) == config.dump_config(cfg)


def test_published_hyper_parameters():
    """Appendix E.2; the release agrees where it says anything."""
    for scale in ("paper", "released"):
        cfg = config.load_config(scale)
        assert (cfg.rollout.turns, cfg.rollout.samples, cfg.rollout.users, cfg.rollout.micro_batch) == (
            10, 4, 256, 16,
        )
        assert (cfg.ppo.minibatch, cfg.ppo.micro_batch, cfg.ppo.epochs) == (128, 4, 1)
        assert (cfg.sft.epochs, cfg.sft.batch, cfg.sft.lr) == (1, 32, 1e-5)
        assert (cfg.dpo.epochs, cfg.dpo.batch, cfg.dpo.lr, cfg.dpo.beta) == (1, 32, 5e-6, 0.01)
        assert (cfg.personas.train_users, cfg.ppo.iterations, cfg.ppo.episodes) == (None, 14, 1)
        assert (cfg.evaluation.users, cfg.evaluation.turns) == (74, 10)
        assert (cfg.policy.kind, cfg.policy.model) == ("vllm", "Qwen/Qwen2.5-3B-Instruct")
    released = config.load_config("released")
    assert (released.ppo.lr, released.ppo.critic_lr, released.policy.tuning) == (5e-7, 9e-6, "full")
    assert (released.ppo.clip, released.ppo.value_clip, released.ppo.kl_coef, released.ppo.lam) == (
        0.2, 0.2, 0.01, 0.95,
    )
    assert (released.rollout.continuation, released.ppo.turn_discount) == ("best", 0)


def test_mini_is_the_size_that_is_announced():
    cfg = config.load_config("mini")
    assert (cfg.evaluation.users, cfg.evaluation.turns, cfg.rollout.turns, cfg.rollout.samples) == (
        74, 10, 10, 4,
    )


FILES = [
    ("ppo:\n  lrr: 3\n", "ppo.lrr: unknown key; did you mean ppo.lr?"),
    ("pppo:\n  lr: 1.0\n", "pppo: unknown key; did you mean ppo?"),
    ("ppo:\n  lr: 5e-6\n", "ppo.lr: '5e-6' is text in YAML; write 5.0e-6"),
    ("ppo:\n  lr: 2E4\n", "ppo.lr: '2E4' is text in YAML; write 2.0e4"), ("ppo: 3\n", "ppo: holds no keys"),
    ("[1, 2]\n", "holds list"),
    ("rollout:\n  users: '8'\n", "rollout.users: input should be a valid integer; got '8'"),
    ("rollout:\n  users: 8.0\n", "rollout.users: input should be a valid integer; got 8.0"),
    ("run:\n  tensorboard: 1\n", "run.tensorboard: input should be a valid boolean; got 1"),
    ("ppo:\n  lr: .nan\n", "ppo.lr: input should be a finite number; got nan"),
    ("ppo:\n  lr: 1.0\n  lr: 2.0\n", "line 3: not YAML: key 'lr' twice"), ("ppo: [1\n", "line 2: not YAML"),
    ("ppo:\n  lr: \x00\n", "not YAML"),
]


@pytest.mark.parametrize(("text", "message"), FILES)
def test_a_bad_file_is_named_with_its_key(params, text, message):
    file = params(text)
    with pytest.raises(InputError) as error:
        config.load_config(file)
    assert str(error.value).startswith(str(file))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


OVERRIDES = [
    ("ppo.lr=5e-6", "ppo.lr: '5e-6' is text in YAML; write 5.0e-6"), ("ppo.lr", "write section.key=value"),
    ("lr=1.0", "write section.key=value"), ("pp.lr=1.0", "pp: unknown key; did you mean ppo?"),
    ("rollout.turns=0", "rollout.turns: input should be greater than or equal to 1; got 0"),
    ("ppo.clip=1.5", "ppo.clip: input should be less than 1; got 1.5"),
    ("ppo.minibatch=7", "ppo.minibatch: 7 does not divide rollout.users x rollout.samples = 32"),
    ("ppo.minibatch=2", "with ppo.packing=tree it must be a multiple of rollout.samples = 4"),
    ("ppo.micro_batch=12", "ppo.micro_batch: 12 does not divide ppo.minibatch = 32"),
    ("ppo.turn_discount=0.9", "rollout.continuation: best biases the return"),
    ("evaluation.methods=[base, rlpaa]", "got 'rlpaa'"),
    ("evaluation.methods=base", "evaluation.methods: input should be a valid tuple"),
    ("evaluation.methods=[]", "evaluation.methods"),
    ("evaluation.methods=[base, base]", "evaluation.methods: holds a name twice"),
    ("evaluation.turns=1", "evaluation.turns: input should be greater than or equal to 2; got 1"),
    ("evaluation.users=75", "75 is more than personas.test_users = 74"),
    ("personas.train_users=4", "4 is fewer than rollout.users = 8"),
    ("judge.kind=llm", "judge.model: is needed when judge.kind is llm"),
    ("personas.language=zh", "personas.language: zh needs personas.conversion=llm"),
    ("run.prompt_set=zh", "run.prompt_set"), ("ppo.adam_betas=[0.9]", "ppo.adam_betas"),
]


@pytest.mark.parametrize(("override", "message"), OVERRIDES)
def test_a_bad_override_is_named_with_its_key(override, message):
    with pytest.raises(InputError) as error:
        config.load_config("smoke", [override])
    assert message in str(error.value)
    assert str(error.value).startswith(("--set " + override, "params/smoke.yaml"))
    assert "\n" not in str(error.value)


def test_cross_turn_returns_accept_unbiased_continuations():
    for continuation in ("random", "independent"):
        wanted = [
            "ppo.turn_discount=0.9", f"rollout.continuation={continuation}", "ppo.update_every=dialogue",
        ]
        assert config.load_config("smoke", wanted).ppo.turn_discount == 0.9


def test_overrides_win_in_order_and_lists_are_read():
    cfg = config.load_config(
        "smoke", ["ppo.lr=1.0e-4", "ppo.lr=2.0e-4", "policy.lora_targets=[q_proj, v_proj]"]
    )
    assert cfg.ppo.lr == 2e-4
    assert cfg.policy.lora_targets == ("q_proj", "v_proj")


def test_an_unknown_scale_lists_those_that_exist():
    with pytest.raises(InputError, match="minni: no such params file, and no such scale .*mini.*smoke"):
        config.load_config("minni")


def test_relative_paths_count_from_the_file_or_the_shell(params, tmp_path, monkeypatch):
    file = params("personas:\n  source: aloe\n  path: data\n")
    assert config.load_config(file).personas.path == str(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert config.load_config("smoke", ["personas.path=other"]).personas.path == str(tmp_path / "other")
    assert config.anchor_paths(["personas.path=other", "ppo.lr=1.0"]) == [
        f"personas.path={tmp_path}/other",
        "ppo.lr=1.0",
    ]
    assert (
        config.load_config("smoke", ["policy.model=Qwen/Qwen2.5-3B-Instruct"]).policy.model
        == "Qwen/Qwen2.5-3B-Instruct"
    )
    assert config.load_config("smoke", ["policy.model=./model"]).policy.model == str(tmp_path / "model")


def test_missing_data_are_found_apart_from_loading(tmp_path):
    with pytest.raises(InputError, match="params/paper.yaml: personas.path: is needed"):
        config.check_files(config.load_config("paper"), "params/paper.yaml")
    cfg = config.load_config("smoke", ["personas.source=aloe", f"personas.path={tmp_path}/none"])
    with pytest.raises(InputError, match="personas.path: no such file or folder: .*none"):
        config.check_files(cfg, "params/smoke.yaml")


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        config.load_config("smoke").ppo.lr = 1.0


def test_every_scale_says_where_its_values_come_from():
    """Every line of the two GPU scales that sets a number carries a source, or stands under one."""
    for scale in ("paper", "released"):
        lines = (config.PARAMS_DIR / f"{scale}.yaml").read_text().splitlines()
        rollout = lines[
            lines.index("rollout:") + 1 : next(i for i, line in enumerate(lines) if line.startswith("sft:"))
        ]
        bare = [line for line in rollout if ":" in line and "#" not in line and line != "ppo:"]
        assert bare == [], f"{scale}: no source given"
