"""Ablations: what each variant changes, that all stop at the same moment, and the paper's table 2 and figure
18."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_trainer import any_text_is_well_formed, config, quiet, trainer  # noqa: F401 - the fixture works by being here

from rlpa_lib import runs
from rlpa_lib.dialogue.judging import Verdict
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.evaluation import ablations, rows
from rlpa_lib.evaluation.paper_tables import PAPER_TABLES
from rlpa_lib.figures import training as drawn_as
from rlpa_lib.rlpa.rewards import ABLATED, score
from rlpa_lib.rlpa.training import count_updates
from rlpa_lib.settings import config as settings
from rlpa_lib.settings.base import Ablation
from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import REWARD_CRITERIA

VARIANTS = Ablation.__args__


def test_every_variant_has_a_name_and_changes_one_thing():
    assert set(VARIANTS) | {"PRR"} == set(ablations.LABELS)
    cfg = settings.load_config("mini")
    for variant in VARIANTS:
        extra = ablations.list_changes(cfg, variant)
        now = settings.change_config(cfg, extra, variant)
        if variant in ("best", "bandit", "samples_4", "history_latest"):
            assert now == cfg, variant
        else:
            assert now != cfg and now.model_copy(update={"ppo": cfg.ppo, "rollout": cfg.rollout}) == cfg, (
                variant
            )


@pytest.mark.parametrize("scale", ["smoke", "mini", "released"])
def test_every_variant_works_at_every_scale_with_as_many_steps(scale):
    cfg = settings.load_config(scale)
    steps = cfg.rollout.users * cfg.rollout.samples / cfg.ppo.minibatch
    for variant in VARIANTS:
        now = settings.change_config(cfg, ablations.list_changes(cfg, variant), variant)
        assert now.rollout.users * now.rollout.samples / now.ppo.minibatch == steps, variant
        cohorts = cfg.ablations.iterations or cfg.ppo.iterations
        assert count_updates(now) == cohorts * (1 if variant == "mdp" else cfg.rollout.turns)


def test_what_changes_nothing_or_cannot_be_is_refused(tmp_path):
    run = runs.claim(settings.load_config("mini"), 0, tmp_path, "mini")
    with pytest.raises(InputError, match="samples_4 changes nothing"):
        ablations.apply_variant(run, "samples_4")
    across = replace(run, cfg=settings.change_config(run.cfg, ablations.list_changes(run.cfg, "mdp"), ""))
    with pytest.raises(InputError, match="ablations.variants: best: rollout.continuation"):
        ablations.apply_variant(across, "best")


def test_rewards_of_the_ablations_by_hand():
    true, reply = Profile((("Age", "34"), ("Location", "Rome"))), Reply(Profile((("Age", "34"),)), "x", True)
    marks = {name: name != "L" for name in REWARD_CRITERIA}
    totals = {}
    for parts in ("PRR", "PR", "RR", *ABLATED):
        reward = score(
            reply, true, frozenset(), [(0, 0)], Verdict(marks, dict.fromkeys(REWARD_CRITERIA, "")), parts
        )
        assert (reward.profile, reward.response) == (pytest.approx(2 / 3), 0)  # logged whatever is rewarded
        totals[parts] = reward.total
    assert totals == {
        "PRR": pytest.approx(2 / 3), "PR": pytest.approx(2 / 3), "RR": 0, "format": 1,
        "PRR-L": pytest.approx(5 / 3),
        **{f"PRR-{name}": pytest.approx(2 / 3) for name in REWARD_CRITERIA if name != "L"},
    }
    broken = score(replace(reply, format_ok=False), true, frozenset(), [], Verdict(marks, {}), "format")
    assert broken.total == 0


def weights(folder, name):
    return load_file(folder / "adapters" / name / "adapter_model.safetensors")


def test_ppo_keeps_the_adapter_at_which_ablations_are_compared(tmp_path):
    cfg = config(ppo={"iterations": 3}, ablations={"iterations": 2})
    whole = trainer(tmp_path / "whole", cfg)
    whole.train(say=quiet)
    assert count_updates(cfg) == 4
    halted = trainer(tmp_path / "halted", cfg)
    halted.train(until=4, say=quiet)  # what an ablation of its own does
    kept, own, last = (
        weights(tmp_path / "whole", "ablation-PRR"),
        weights(tmp_path / "halted", "ppo"),
        weights(tmp_path / "whole", "ppo"),
    )
    assert all(torch.equal(kept[name], own[name]) for name in kept)
    assert any(not torch.equal(kept[name], last[name]) for name in kept)
    found = ablations.find_training(whole.run, "PRR")
    assert [row["update"] for row in found.history] == [1, 2, 3, 4] and found.row.adapter == "ablation-PRR"
    assert ablations.find_training(whole.run, "PR") is None
    assert ablations.all_seeds(whole.run) == {5: {"PRR": found}}
    assert ablations.read_scores({"PRR": found}) == {}


def test_after_full_tuning_both_rewards_are_found_and_not_trained_again(tmp_path):
    cfg = config(policy={"tuning": "full"}, ppo={"iterations": 2, "lr": 1e-4}, ablations={"iterations": 1})
    made = trainer(tmp_path, cfg)
    made.train(say=quiet)
    found = ablations.find_training(made.run, "PRR")
    assert [row["update"] for row in found.history] == [1, 2]
    assert ablations.train_variant(made.run, "test", [], "PRR") == found
    one, last = (rows.find_weights(made.run, rows.Row("rlpa", weights=w)) for w in ("ablation-PRR", "ppo"))
    assert one.whole and last.whole and one.hash() != last.hash()


def test_an_ablation_starts_as_both_rewards_do_and_then_parts(tmp_path):
    """Same seeds: the first rollout is the same, whatever of it is rewarded."""
    both, alone = trainer(tmp_path / "both"), trainer(tmp_path / "alone", config(ppo={"reward_parts": "PR"}))
    first, second = both.train(say=quiet), alone.train(say=quiet)
    assert first[0]["reward_response"] == second[0]["reward_response"] > 0 == second[0]["reward_total"]
    assert not (tmp_path / "alone/adapters/ablation-PRR").exists()


def history(rewards, profile, response):
    return [
        {
            "update": i, "iteration": (i + 1) // 2, "reward_total": r, "reward_profile": p,
            "reward_response": q, "format_rate": 1.0,
        }
        for i, (r, p, q) in enumerate(zip(rewards, profile, response, strict=True), start=1)
    ]


def test_sum_adds_what_each_is_rewarded_for():
    one = {
        "PRR": history([1, 1.2, 1.4, 1.6], [0.5] * 4, [0.5, 0.7, 0.9, 1.1]),
        "PR": history([0.5] * 4, [0.5] * 4, [0.1] * 4),
        "RR": history([0.2, 0.4, 0.6, 0.8], [0.3] * 4, [0.2, 0.4, 0.6, 0.8]),
    }
    table = drawn_as.reward_rows({0: one, 1: one, 2: {"PRR": one["PRR"]}})
    total = table[(table["run"] == "Sum") & (table["seed"] == 0)]
    assert total["reward"].tolist() == pytest.approx([0.7, 0.9, 1.1, 1.3]) and total["profile"].isna().all()
    assert set(table.loc[table["run"] == "Sum", "seed"]) == {0, 1}
    figure, drawn = drawn_as.reward_progress(table)
    point = drawn[(drawn["panel"] == "reward") & (drawn["run"] == "PRR")].set_index("step")
    assert (
        point["mean"].to_dict() == pytest.approx({2: 1.1, 4: 1.5})
        and (point["seeds"] == 3).all()
        and (point["low"] == point["mean"]).all()
    )
    assert set(drawn["panel"]) == set(drawn_as.PANELS) and len(figure.axes) == 4
    alone = drawn_as.reward_progress(drawn_as.reward_rows({0: one}))[1]
    assert alone["low"].isna().all()  # one seed has no interval


def test_table_2_has_the_papers_rows_and_columns():
    scores = {
        variant: np.tile([[0, 1] * 5, [1] * 10], (4, 1)) * (variant != "PR")
        for variant in ("PRR", "PR", "RR")
    }
    table, printed = (
        ablations.ablation_table(scores, "Qwen/Qwen2.5-3B-Instruct"),
        pd.read_csv(PAPER_TABLES / "turnwise.csv").query("table == 'table2'"),
    )
    assert (
        table["method"].tolist() == printed["method"].tolist()
        and table["model"].tolist() == printed["model"].tolist()
    )
    assert set(printed.columns) - {"table", "setting"} <= set(table.columns) and {
        "k3_low", "avg_high", "n_ir_low",
    } <= set(table.columns)
    assert table["avg"].tolist() == [75, 0, 75] and table.loc[0, "k1"] == 50
    compared = ablations.comparison_table(scores).set_index("method")
    assert compared.loc["RLPA w/ PR", "difference"] == 75 and compared.loc["RLPA w/ RR", "difference"] == 0
    assert (compared["p_holm"] >= compared["p"]).all() and len(
        ablations.comparison_table({"PRR": scores["PRR"]})
    ) == 0
