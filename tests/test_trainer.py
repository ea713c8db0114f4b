"""The training loop on a tiny random model: schedule, records, exact resume."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import byte_tokenizer, random_model
from peft import PeftModel
from safetensors.torch import load_file

from rlpa_lib import runs
from rlpa_lib.agents.local_policy import LocalPolicy
from rlpa_lib.dialogue.dialogue import Utterance
from rlpa_lib.dialogue.judging import Verdict
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import Profile, Reply, parse_reply
from rlpa_lib.rlpa import rollout
from rlpa_lib.rlpa.experience import gather_experience
from rlpa_lib.rlpa.learner import Learner
from rlpa_lib.rlpa.training import Trainer
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import REWARD_CRITERIA

PERSONAS = [Persona(f"p{i}", "", "", Profile((("Age", str(20 + i)), ("Location", "Rome")))) for i in range(7)]


class EchoUser:
    """Says hello, then its age at every turn."""

    def reply(self, personas, dialogues):
        return [self._say(persona, len(d.turns)) for persona, d in zip(personas, dialogues, strict=True)]

    def _say(self, persona, turn):
        return Utterance(f"I am {persona.profile.get('Age')}.", ("Age",)) if turn else Utterance("Hello")


class VowelJudge:
    """Likes responses by how their characters fall, so that samples of a random model get different
    rewards."""

    def matches(self, pairs):
        return [() for _ in pairs]

    def responses(self, cases):
        marks = [{c: len(r.response) % 2 == 0 for c in REWARD_CRITERIA} for _, r in cases]
        return [Verdict(m, dict.fromkeys(REWARD_CRITERIA, "")) for m in marks]


def config(**changes):
    tree = {
        "policy": {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.1},
        "rollout": {"users": 3, "turns": 2, "samples": 4, "max_new_tokens": 8, "max_prompt_tokens": 400},
        "ppo": {"iterations": 2, "minibatch": 4, "lr": 1e-2, "critic_lr": 1e-2, "epochs": 2},
        "run": {"tensorboard": False},
    }
    for section, values in changes.items():
        tree.setdefault(section, {}).update(values)
    return Config.model_validate(tree)


@pytest.fixture(autouse=True)
def any_text_is_well_formed(monkeypatch):
    """A random model never writes the reply format; here its whole text is the response."""
    monkeypatch.setattr("rlpa_lib.rlpa.rollout.parse_reply", lambda text: Reply(Profile(), text, True))
    assert not parse_reply("x").format_ok


def trainer(folder, cfg=None, model=None):
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    cfg = cfg or config()
    run = runs.claim(cfg, 5, folder, "test")
    learner = Learner(model or random_model(), cfg, seed=5)
    return Trainer(
        run, learner, byte_tokenizer(), EchoUser(), VowelJudge(), PERSONAS, system_prompt="Be kind."
    )


def quiet(_):
    pass


def weights(made):
    return {
        n: p.detach().clone()
        for role in made.learner.optimizers
        for n, p in made.learner.parameters(role).items()
    }


def same(rows):
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


class Killed(Exception):
    """Stands for the process being killed."""


@pytest.mark.parametrize("critic", ["head", "lora"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, monkeypatch, critic):
    cfg = config(ppo={"critic": critic})
    whole = trainer(tmp_path / "whole", cfg)
    rows = whole.train(say=quiet)
    assert [(r["update"], r["iteration"], r["turn"]) for r in rows] == [
        (1, 1, 1), (2, 1, 2), (3, 2, 1), (4, 2, 2),
    ]

    killed = trainer(tmp_path / "killed", cfg)
    steps = killed.learner.step
    taken = []

    def step_until_killed(scale):
        taken.append(scale)
        if len(taken) == 2 * 6 + 3:  # in the middle of the third update
            raise Killed
        return steps(scale)

    monkeypatch.setattr(killed.learner, "step", step_until_killed)
    with pytest.raises(Killed):
        killed.train(say=quiet)
    resumed = trainer(tmp_path / "killed", cfg)
    resumed_rows = resumed.train(say=quiet)
    assert same(resumed_rows) == same(rows)
    first, second = weights(whole), weights(resumed)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    files = [load_file(tmp_path / f / "adapters/ppo/adapter_model.safetensors") for f in ("whole", "killed")]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_resume_in_the_middle_of_a_cohort(tmp_path):
    whole = trainer(tmp_path / "whole", config())
    whole.train(say=quiet)
    halves = trainer(tmp_path / "halves", config())
    halves.train(until=1, say=quiet)
    saved = json.loads((tmp_path / "halves/checkpoints/ppo/progress.json").read_text())
    assert saved["turn"] == 1 and len(saved["dialogues"]) == 3 and len(saved["dialogues"][0]["turns"]) == 1
    again = trainer(tmp_path / "halves", config())
    again.train(say=quiet)
    first, second = weights(whole), weights(again)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_metrics_ahead_of_the_checkpoint_are_done_again(tmp_path):
    made = trainer(tmp_path, config(ppo={"checkpoint_every": 2}))
    rows = made.train(until=2, say=quiet)
    made.run.log_metrics("ppo", {**rows[-1], "update": 3})
    again = trainer(tmp_path, config(ppo={"checkpoint_every": 2}))
    assert [r["update"] for r in again.train(say=quiet)] == [1, 2, 3, 4]


def test_what_a_run_leaves_behind(tmp_path):
    made = trainer(tmp_path, config(run={"tensorboard": True}, ppo={"iterations": 1}))
    rows = made.train(say=quiet)
    wanted = {
        "reward_total", "reward_profile", "reward_response", *REWARD_CRITERIA, "format_rate", "kl", "entropy",
        "clip_fraction", "value_loss", "explained_variance", "completion_tokens", "prompt_tokens",
        "distinct_responses", "unrevealed_share", "unrevealed_precision", "seconds_rollout", "seconds_update",
        "prompts_cut", "sampler_gap",
    }
    assert wanted <= rows[0].keys()
    assert abs(rows[0]["kl"]) < 1e-5, "before the first update policy and reference are one"
    assert rows[1]["kl_k3"] > 0
    lines = [
        json.loads(line) for line in (tmp_path / "dialogues/ppo/update-0001.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 12 and sum(line["chosen"] for line in lines) == 3
    assert {p.name for p in (tmp_path / "adapters/ppo").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert any((tmp_path / "tensorboard/ppo").iterdir())
    assert not [p for p in tmp_path.rglob("*") if p.suffix in {".pt", ".bin", ".pkl", ".pth"}]


def test_the_saved_adapter_is_the_policy(tmp_path):
    made = trainer(tmp_path, config(ppo={"iterations": 1}))
    made.train(say=quiet)
    loaded = PeftModel.from_pretrained(random_model(), str(tmp_path / "adapters/ppo")).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, made.learner.model.eval()(ids).logits)
        assert not torch.allclose(loaded(ids).logits, random_model()(ids).logits, atol=1e-3)


def test_one_update_a_cohort(tmp_path):
    rows = trainer(tmp_path, config(ppo={"update_every": "dialogue"})).train(say=quiet)
    assert [(r["update"], r["iteration"], r["turn"]) for r in rows] == [(1, 1, 2), (2, 2, 2)]
    assert len((tmp_path / "dialogues/ppo/update-0001.jsonl").read_text().splitlines()) == 24


def test_independent_dialogues_train_too(tmp_path):
    cfg = config(rollout={"continuation": "independent"}, ppo={"iterations": 1})
    assert len(trainer(tmp_path, cfg).train(say=quiet)) == 2


def test_a_crash_between_two_renames_loses_nothing(tmp_path):
    made = trainer(tmp_path)
    made.train(until=1, say=quiet)
    folder = tmp_path / "checkpoints/ppo"
    folder.rename(tmp_path / "checkpoints/.ppo.old")
    assert made.learner.load(folder)["updates"] == 1 and folder.exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    trainer(tmp_path / "a").train(until=1, say=quiet)
    other = Learner(random_model(), config(policy={"lora_rank": 2}), seed=0)
    with pytest.raises(InputError, match="state.safetensors"):
        other.load(tmp_path / "a/checkpoints/ppo")


def test_cohorts_pass_over_all_users_before_one_comes_again():
    drawn = [p.id for c in range(7) for p in rollout.draw_cohort(PERSONAS, 3, c, seed=1)]
    assert [sorted(drawn[i : i + 7]) for i in (0, 7, 14)] == [sorted(p.id for p in PERSONAS)] * 3
    assert drawn[:7] != drawn[7:14]
    assert [p.id for p in rollout.draw_cohort(PERSONAS, 3, 2, seed=1)] == drawn[6:9]


def test_sampling_that_cannot_train_is_refused(tmp_path):
    with pytest.raises(InputError, match="top_p"):
        trainer(tmp_path / "b", config(rollout={"top_p": 0.9}))


MDP = {"turn_discount": 0.9, "update_every": "dialogue", "value_clip": None}


def test_a_baseline_of_samples_trains_no_critic(tmp_path):
    made = trainer(tmp_path, config(ppo={"baseline": "samples"}))
    before, rows = weights(made), made.train(say=quiet)
    moved = {name for name, weight in weights(made).items() if not torch.equal(weight, before[name])}
    assert moved and all(".policy." in name for name in moved)
    assert all({"advantage_by_reward", "advantage_by_coin"} <= row.keys() for row in rows)
    assert "value_loss" not in rows[0]


@pytest.mark.parametrize("continuation", ["random", "independent"])
def test_turns_are_linked_within_a_dialogue(tmp_path, continuation):
    cfg = config(
        rollout={"continuation": continuation, "turns": 3},
        ppo={**MDP, "lam": 1.0, "kl_coef": 0.0, "minibatch": 12},
    )
    made = trainer(tmp_path, cfg)
    groups, *_ = made._rollout(0, seed=1)
    data = gather_experience(made.learner, groups)
    went_on = {(g.dialogue_id, g.turn): g.samples[g.chosen].reward.total for g in groups}
    assert len(went_on) == (9 if continuation == "random" else 36) and len(data.keep) == 36
    assert len({round(r, 3) for r in went_on.values()}) > 1

    def worth(dialogue, turn):
        # the critic starts at 0 everywhere: lambda is 1 inside a turn and .95 from turn to turn
        return sum((0.9 * 0.95) ** (t - turn) * went_on[dialogue, t] for t in range(turn + 1, 4))

    samples = [(g, i) for g in groups for i in range(len(g.samples))]
    want = [
        s.reward.total + (worth(g.dialogue_id, g.turn) if i == g.chosen else 0.0)
        for g, i in samples
        for s in [g.samples[i]]
    ]
    assert data.returns[:, 0].tolist() == pytest.approx(want, abs=1e-5)
    lasting = [(row, g) for row, (g, i) in enumerate(samples) if i == g.chosen and g.turn < 3]
    ends = [(row, int(data.keep[row].sum())) for row, _ in lasting]
    assert int(data.taught.sum() - data.keep.sum()) == len(ends)
    found = [float(data.returns[end]) * 0.9 for end in ends]
    assert found == pytest.approx([worth(g.dialogue_id, g.turn) for _, g in lasting], abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout": {"continuation": "random"}, "ppo": {**MDP, "critic": "lora", "iterations": 4}},
        {"ppo": {"kl_target": 0.01, "kl_horizon": 100.0}},
        {"policy": {"tuning": "full", "lora_dropout": 0.0}, "ppo": {"lr": 1e-4}},
        {"rollout": {"continuation": "random"}, "ppo": {**MDP, "baseline": "samples", "iterations": 4}},
    ],
    ids=["discounted", "adaptive", "full", "samples"],
)
def test_every_mode_resumes_exactly(tmp_path, changes):
    whole = trainer(tmp_path / "whole", config(**changes))
    rows = whole.train(say=quiet)
    trainer(tmp_path / "halves", config(**changes)).train(until=2, say=quiet)
    again = trainer(tmp_path / "halves", config(**changes))
    assert same(again.train(say=quiet)) == same(rows) and len(rows) == 4
    first, second = weights(whole), weights(again)
    assert all(torch.equal(first[name], second[name]) for name in first)
    if "kl_target" in changes["ppo"]:
        coefs = [row["kl_coef"] for row in rows]
        assert coefs[0] == 0.01 and coefs[3] != coefs[1], "it moves, and the checkpoint keeps it"
        assert coefs[1] == pytest.approx(0.01 * (1 - 0.2 * 12 / 100)), (
            "before the first update policy and reference are one"
        )


def test_a_fully_tuned_policy_is_saved_whole(tmp_path):
    from transformers import AutoModelForCausalLM

    made = trainer(tmp_path, config(policy={"tuning": "full"}, ppo={"iterations": 1, "lr": 1e-4}))
    made.train(say=quiet)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "models/ppo")
    assert all(torch.equal(p, made.learner.model.state_dict()[n]) for n, p in loaded.state_dict().items())
    assert not (tmp_path / "adapters").exists()


@pytest.mark.parametrize(
    ("tuning", "dtype"), [("full", "bfloat16"), ("full", "float32"), ("lora", "float32")]
)
def test_old_logprobs_are_of_the_precision_that_is_trained_in(tmp_path, tuning, dtype):
    """Full tuning of a bf16 model samples in fp32 and trains in bf16: what the sampler says is not where the
    policy stands when the first step begins."""
    cfg = config(
        policy={"tuning": tuning, "dtype": dtype, "lora_dropout": 0.0},
        ppo={"iterations": 1, "lr": 1e-4, "minibatch": 12, "epochs": 1},
    )
    made = trainer(tmp_path, cfg, model=random_model().to(getattr(torch, dtype)))
    rows = made.train(until=2, say=quiet)
    assert [row["kl_old"] for row in rows] == pytest.approx([0, 0], abs=1e-9), "one step: old is now"
    assert rows[0]["clip_fraction"] == 0
    if dtype == "bfloat16":
        assert all(1e-4 < row["sampler_gap"] < 0.1 and row["sampler_max_ratio"] > 1.001 for row in rows)
    else:
        assert all(row["sampler_gap"] < 1e-5 and "sampler_max_ratio" not in row for row in rows)


class ServedPolicy:
    """A sampler with weights of its own, as a server has: it knows of the trainer's adapter only what is in
    the folder."""

    def __init__(self):
        self.seen, self.n_cut, self.max_policy_lag, self.policy, self.version = [], 0, 0, None, None

    def refresh(self, folder, version):
        self.seen.append((version, load_file(folder / "adapter_model.safetensors")))
        self.policy = LocalPolicy(
            PeftModel.from_pretrained(random_model(), str(folder)), byte_tokenizer(), max_prompt_tokens=400
        )
        self.version = version

    def generate(self, *args, **kwargs):
        return [
            [replace(c, version=self.version) for c in group]
            for group in self.policy.generate(*args, **kwargs)
        ]


def served(folder, policy, cfg):
    run = runs.claim(cfg, 5, folder, "test")
    parties = (byte_tokenizer(), EchoUser(), VowelJudge(), PERSONAS)
    return Trainer(
        run, Learner(random_model(), cfg, seed=5), *parties, system_prompt="Be kind.", policy=policy
    )


def test_a_policy_on_servers_gets_each_adapter_once(tmp_path):
    cfg = config(policy={"lora_dropout": 0.0}, ppo={"importance_cap": 2.0})
    policy = ServedPolicy()
    made = served(tmp_path / "served", policy, cfg)
    rows = made.train(say=quiet)
    assert [version for version, _ in policy.seen] == [0, 1, 2, 3, 4]
    assert all(
        any(not torch.equal(b[n], a[n]) for n in a)
        for (_, a), (_, b) in zip(policy.seen, policy.seen[1:], strict=False)
    )
    assert [p.name for p in (tmp_path / "served/adapters/ppo-served").iterdir()] == ["v000004"]
    assert [row["policy_lag"] for row in rows] == [0, 0, 0, 0]
    assert all(row["sampler_gap"] < 1e-4 and 1 <= row["sampler_max_ratio"] < 1.001 for row in rows)
    local = trainer(tmp_path / "local", config(policy={"lora_dropout": 0.0}))
    for one, other in zip(rows, local.train(say=quiet), strict=True):
        assert one["reward_total"] == other["reward_total"] and one["kl"] == pytest.approx(
            other["kl"], abs=1e-4
        )


def test_a_resumed_trainer_gives_the_servers_what_it_holds(tmp_path):
    cfg = config(policy={"lora_dropout": 0.0})
    served(tmp_path, ServedPolicy(), cfg).train(until=2, say=quiet)
    policy = ServedPolicy()
    made = served(tmp_path, policy, cfg)
    made.train(until=3, say=quiet)
    assert [version for version, _ in policy.seen] == [2, 3]


def test_cuts_are_counted_for_each_update(tmp_path):
    rows = trainer(
        tmp_path, config(rollout={"turns": 3, "max_prompt_tokens": 120}, ppo={"iterations": 1})
    ).train(say=quiet)
    assert [row["completions_cut"] for row in rows] == [12, 12, 12]
    assert rows[0]["prompts_cut"] == 0 and rows[2]["prompts_cut"] == 3


class StopsAt(EchoUser):
    """A user who does not answer any more after `calls` turns; `asked` counts them."""

    def __init__(self, calls):
        self.calls, self.asked = calls, 0

    def reply(self, personas, dialogues):
        if self.asked == self.calls:
            raise Killed
        self.asked += 1
        return super().reply(personas, dialogues)


def test_a_rollout_that_stops_is_not_sampled_twice(tmp_path):
    cfg = config(
        rollout={"continuation": "random", "turns": 4, "max_prompt_tokens": 160}, ppo={**MDP, "minibatch": 12}
    )
    whole = trainer(tmp_path / "whole", cfg)
    rows = whole.train(say=quiet)
    assert rows[0]["prompts_cut"] > 0
    stopped = trainer(tmp_path / "stopped", cfg)
    stopped.user = StopsAt(4 + 3)  # in the last turn of the second cohort
    with pytest.raises(Killed):
        stopped.train(say=quiet)
    waiting = tmp_path / "stopped/checkpoints/ppo-rollout"
    assert [f.name for f in sorted(waiting.iterdir())] == [
        "turn-001.jsonl", "turn-002.jsonl", "turn-003.jsonl",
    ]
    resumed = trainer(tmp_path / "stopped", cfg)
    resumed.user = StopsAt(99)
    assert same(resumed.train(say=quiet)) == same(rows) and resumed.user.asked == 1
    assert all(torch.equal(weight, weights(resumed)[name]) for name, weight in weights(whole).items())
    assert not waiting.exists()


def test_turns_of_another_update_are_not_taken_for_this_one(tmp_path):
    cfg = config(rollout={"continuation": "random"}, ppo=MDP)
    made = trainer(tmp_path, cfg)
    groups, cohort, _ = made._rollout(0, seed=1)
    kept = rollout.load_turns(made.waiting, 0)
    assert [turn.groups for turn in kept] == [groups[:3], groups[3:]]
    assert kept[1].dialogues == cohort.dialogues
    assert rollout.load_turns(made.waiting, 1) == [] and not made.waiting.exists()
