"""SFT and DPO through TRL: losses by hand, exact resume of all three trainings, what a training leaves
behind."""

import math

import pytest
import torch
import torch.nn.functional as F
from baseline_world import TALKS, open_run, quiet, same, settings, train, weights
from conftest import byte_tokenizer, random_model
from peft import PeftModel

from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.methods import plain_state, trainers
from rlpa_lib.methods.training_data import IGNORED
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

# Losses by hand


def shaken(trainer):
    """New adapters start at zero, where every loss is the base model's: move them."""
    torch.manual_seed(3)
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    return trainer.model.eval()


def logprobs_by_hand(model, ids):
    with torch.no_grad():
        logits = model(input_ids=ids[None]).logits[0].double()
    return torch.log_softmax(logits, -1)[:-1].gather(1, ids[1:, None])[:, 0]


def test_sft_loss_by_hand(tmp_path):
    trainer, _ = trainers.make_sft_trainer(
        open_run(tmp_path, settings(sft={"batch": 4})), random_model(), byte_tokenizer(), TALKS, "fixed"
    )
    batch = next(iter(trainer.get_train_dataloader()))
    model = shaken(trainer)
    total, count = 0.0, 0
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        logps = logprobs_by_hand(model, ids[mask.bool()])
        bears = labels[mask.bool()][1:] != IGNORED
        total, count = total - float(logps[bears].sum()), count + int(bears.sum())
    assert count == sum(label != IGNORED for labels in batch["labels"].tolist() for label in labels)
    loss = float(trainer.compute_loss(trainer.model, dict(batch)).detach())
    assert abs(loss - total / count) < 1e-5
    assert abs(loss - base_loss(batch)) > 1e-3, "the adapter counts"


def base_loss(batch):
    logits = random_model()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[
        :, :-1
    ]
    return float(
        F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED).detach()
    )


@pytest.mark.parametrize("start", ["base", "sft"])
def test_dpo_loss_by_hand(tmp_path, start):
    """-log sigmoid(beta * ((chosen - chosen_ref) - (rejected - rejected_ref))), sums of log-probabilities
    over the responses' tokens."""
    run = open_run(tmp_path, settings(dpo={"start": start, "beta": 0.3, "micro_batch": 4}))
    reference = random_model()
    if start == "sft":
        trainers.train_sft(run, random_model(), byte_tokenizer(), TALKS, say=quiet)
        reference = PeftModel.from_pretrained(reference, tmp_path / "adapters/sft").eval()
    trainer, _ = trainers.make_dpo_trainer(run, random_model(), byte_tokenizer(), TALKS, "fixed")
    batch = next(iter(trainer.get_train_dataloader()))
    model, sums = shaken(trainer), []
    for ids, mask, answer in zip(
        batch["input_ids"], batch["attention_mask"], batch["completion_mask"], strict=True
    ):
        ids, answer = ids[mask.bool()], answer[mask.bool()][1:].bool()
        assert byte_tokenizer().decode(ids[1:][answer]).rstrip().endswith("<|end|>")
        sums.append(float((logprobs_by_hand(model, ids) - logprobs_by_hand(reference, ids))[answer].sum()))
    half = len(sums) // 2
    by_hand = [
        -math.log(1 / (1 + math.exp(-0.3 * (chosen - rejected))))
        for chosen, rejected in zip(sums[:half], sums[half:], strict=True)
    ]
    loss = float(trainer.compute_loss(trainer.model, dict(batch)).detach())
    assert abs(loss - sum(by_hand) / half) < 1e-5
    assert abs(loss - math.log(2)) > 1e-3, "policy and reference differ"


def test_before_the_first_step_dpo_is_at_its_reference(tmp_path):
    run = open_run(tmp_path, settings(dpo={"start": "sft"}, policy={"lora_dropout": 0.0}))
    trainers.train_sft(run, random_model(), byte_tokenizer(), TALKS, say=quiet)
    rows = trainers.train_dpo(run, random_model(), byte_tokenizer(), TALKS, say=quiet)
    assert abs(rows[0]["loss"] - math.log(2)) < 1e-5 and rows[-1]["loss"] < math.log(2) - 1e-3
    assert not all(torch.equal(weights(tmp_path, "sft")[k], x) for k, x in weights(tmp_path, "dpo").items())


# Resume, files, cards


class Killed(Exception):
    """Stands for the process being killed."""


@pytest.fixture
def any_text_is_well_formed(monkeypatch):
    """A random model never writes the reply format; here its whole text is the response."""
    for module in ("grpo", "prompting"):
        name = f"rlpa_lib.methods.{module}.parse_reply"
        monkeypatch.setattr(name, lambda text: Reply(Profile(), text, True))


@pytest.mark.parametrize(
    ("method", "steps", "killed_at"),
    [("sft", 6, 4), ("dpo", 3, 2), ("dpo from sft", 3, 2), ("grpo", 4, 4)],
)
def test_a_killed_run_ends_with_the_same_adapter(
    tmp_path, monkeypatch, any_text_is_well_formed, method, steps, killed_at
):
    method, _, from_sft = method.partition(" from ")
    cfg = settings(dpo={"start": "sft" if from_sft else "base"})
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders if from_sft else []:
        trainers.train_sft(open_run(folder, cfg), random_model(), byte_tokenizer(), TALKS, say=quiet)
    rows = train(method, open_run(folders[0], cfg))
    assert [row["step"] for row in rows] == list(range(1, steps + 1))

    log, lines = plain_state.MetricsLog.on_log, []

    def log_until_killed(self, *args, logs=None, **more):
        log(self, *args, logs=logs, **more)
        lines.append(logs)
        if sum("loss" in line for line in lines) == killed_at:  # logged, but not yet in a checkpoint
            raise Killed

    monkeypatch.setattr(plain_state.MetricsLog, "on_log", log_until_killed)
    with pytest.raises(Killed):
        train(method, open_run(folders[1], cfg))
    monkeypatch.setattr(plain_state.MetricsLog, "on_log", log)
    torch.manual_seed(77)  # another process has another random state
    done = []
    monkeypatch.setattr(
        plain_state.MetricsLog, "on_train_begin", noting(plain_state.MetricsLog.on_train_begin, done)
    )
    resumed = train(method, open_run(folders[1], cfg))
    assert done[0] > 0, "it went on from a checkpoint"
    assert same(resumed) == same(rows)
    first, second = (weights(folder, method) for folder in folders)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert any(x.abs().max() > 0 for name, x in first.items() if "lora_B" in name)


def noting(method, done):
    def noted(self, args, state, control, **more):
        done.append(state.global_step)
        return method(self, args, state, control, **more)

    return noted


def test_a_checkpoint_that_is_not_whole_is_passed_over(tmp_path):
    run = open_run(tmp_path)
    rows = train("sft", run)
    before = weights(tmp_path, "sft")
    [last] = (tmp_path / "checkpoints/sft").glob("*/checkpoint-6")
    (last / plain_state.TRAINER_STATE).write_text('{"global_step": 6, "epo')
    assert plain_state.find_newest(last.parent) is None
    assert same(train("sft", run)) == same(rows)
    assert all(torch.equal(x, weights(tmp_path, "sft")[name]) for name, x in before.items())


def test_a_checkpoint_of_another_adapter_is_refused(tmp_path):
    train("sft", open_run(tmp_path))
    [last] = (tmp_path / "checkpoints/sft").glob("*/checkpoint-6")
    trainer, _ = trainers.make_sft_trainer(
        open_run(tmp_path / "b", settings(policy={"lora_rank": 2})), random_model(), byte_tokenizer(), TALKS,
        "fixed",
    )
    with pytest.raises(InputError, match="state.safetensors"):
        plain_state.load_weights(trainer.model, last)


def test_what_a_training_leaves_behind(tmp_path):
    run = open_run(tmp_path, settings(run={"tensorboard": True}))
    rows = train("sft", run)
    train("dpo", run)
    assert {"step", "loss", "grad_norm", "learning_rate", "mean_token_accuracy", "seconds"} <= rows[0].keys()
    assert {"rewards_margins", "rewards_accuracies"} <= run.read_metrics("dpo")[0].keys()
    assert [row["learning_rate"] for row in rows[:2]] == [1e-2, pytest.approx(1e-2 * 5 / 6)], (
        "linear decay, no warm-up"
    )
    for name in ("sft", "dpo"):
        assert {p.name for p in (tmp_path / f"adapters/{name}").iterdir()} == {
            "README.md", "adapter_config.json", "adapter_model.safetensors",
        }
        card = (tmp_path / f"adapters/{name}/README.md").read_text()
        assert (
            "variant: fixed" in card
            and "seed: 5" in card
            and "miniature" in card
            and len(card.splitlines()) < 30
        )
    assert any((tmp_path / "tensorboard/sft").iterdir())
    assert not [p for p in tmp_path.rglob("*") if p.suffix in {".pt", ".bin", ".pkl", ".pth"}]


def test_the_saved_adapter_is_what_was_trained(tmp_path):
    run = open_run(tmp_path)
    trainer, card = trainers.make_sft_trainer(run, random_model(), byte_tokenizer(), TALKS, "fixed")
    trainers.fit(trainer, run, "sft", card, quiet)
    loaded = PeftModel.from_pretrained(random_model(), tmp_path / "adapters/sft").eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)
        assert not torch.allclose(loaded(ids).logits, random_model()(ids).logits, atol=1e-3)


def test_passes_of_a_part_of_a_batch_give_the_same_steps(tmp_path):
    """The loss is a mean over the tokens of a batch, not a mean of means; the rows of a batch have different
    lengths."""
    whole = settings(policy={"lora_dropout": 0.0}, sft={"batch": 4})
    parts = settings(policy={"lora_dropout": 0.0}, sft={"batch": 4, "micro_batch": 1})
    rows = [train("sft", open_run(tmp_path / str(i), cfg)) for i, cfg in enumerate((whole, parts))]
    assert [a["loss"] for a in rows[0]] == pytest.approx([b["loss"] for b in rows[1]], abs=1e-4)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match="run 11_sft"):
        trainers.make_dpo_trainer(
            open_run(tmp_path, settings(dpo={"start": "sft"})), random_model(), byte_tokenizer(), TALKS,
            "fixed",
        )
    for change, message in (
        ("sft.micro_batch=3", "sft.micro_batch: 3 does not divide"),
        ("sft.variants=[fixed,fixed]", "sft.variants: holds a name"),
        ("dpo.variants=[aloe]", "dpo.variants"),
        ("grpo.batch=7", "grpo.batch: 7 does not divide"),
    ):
        with pytest.raises(InputError, match=message):
            config.load_config("smoke", [change])
