"""Pooling of seeds for figures/: what is averaged, what is refused, and that failures are kept."""

import json

import pandas as pd
import pytest

from rlpa_lib import runs
from rlpa_lib.report import publish
from rlpa_lib.runs import storage
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError


def finished(folder, seed, marks, status="done", overrides=()):
    """A run directory with two rows of three users and two turns; `marks` are RLPA's scores of the first
    user."""
    cfg = config.load_config(
        "mini", ["evaluation.methods=[base, rlpa]", "evaluation.benchmarks=[vanilla]", *overrides]
    )
    run = runs.claim(cfg, seed, folder, "params/mini.yaml")
    for method, first in (("base", (0, 0)), ("rlpa", marks)):
        scores = {"a": first, "b": (0, 1), "c": (1, 0)}
        rows = [
            {"user": user, "turn": k + 1, "score": score}
            for user, given in scores.items()
            for k, score in enumerate(given)
        ]
        run.write_jsonl(f"judgements/{method}-vanilla.jsonl", rows)
    parts = {
        "reward_total": 1.0, "reward_profile": 0.5, "reward_response": 0.5, "format_rate": 1.0, "kl": 0.0,
    }
    run.write_jsonl("metrics/ppo.jsonl", [{"update": k, "iteration": k, "turn": 1, **parts} for k in (1, 2)])
    for k in (1, 2):
        reward = {"total": 1.0, "profile": 0.5, "response": 0.5, "format_ok": True}
        rows = [{"dialogue": f"000{k}-{user}", "turn": 1, "chosen": True, "reward": reward} for user in "ab"]
        run.write_jsonl(f"dialogues/ppo/update-{k:04d}.jsonl", rows)
    facts = json.loads((folder / "record.json").read_text())
    storage.write_json(folder / "record.json", {**facts, "status": status})
    return folder


def test_three_seeds_are_averaged_over_seeds_and_users(tmp_path):
    folders = [finished(tmp_path / f"mini-{s}", s, marks) for s, marks in enumerate([(1, 1), (1, 1), (1, 0)])]
    publish.publish(folders, tmp_path / "figures")
    table = pd.read_csv(tmp_path / "figures" / "mini_seeds.csv").set_index("method")
    # RLPA: 4 of 6 marks, 4 of 6, 3 of 6; Base: 2 of 6 in every seed.
    assert table.loc["RLPA", "avg"] == pytest.approx(100 * 11 / 18)
    assert table.loc["Base", "avg"] == pytest.approx(100 / 3)
    assert table.loc["Base", "rlpa_minus"] == pytest.approx(100 * (11 / 18 - 1 / 3))
    # AL of RLPA falls from 6/9 to 5/9: over two turns any fall is the whole range. Base stays at 1/3.
    assert table.loc["RLPA", "n_ir"] == pytest.approx(-1) and table.loc["Base", "n_ir"] == 0
    assert -1 <= table.loc["RLPA", "n_ir_low"] <= -1 < table.loc["RLPA", "n_ir_high"]
    drawn = pd.read_csv(tmp_path / "figures" / "mini_alignment.csv")
    assert drawn.query("method == 'rlpa'")["al"].tolist() == pytest.approx([100 * 2 / 3, 100 * 5 / 9])
    facts = json.loads((tmp_path / "figures" / "mini_alignment.json").read_text())
    assert facts["runs"] == ["mini-0", "mini-1", "mini-2"] and facts["data_sha256"]


def test_runs_under_another_credit_scheme_beside_them_are_compared(tmp_path):
    folders = [finished(tmp_path / f"mini-{s}", s, (1, 1)) for s in range(3)]
    for s in range(3):
        finished(
            tmp_path / f"mdp-{s}", s, (0, 1),
            overrides=["ppo.turn_discount=0.9", "ppo.update_every=dialogue", "rollout.continuation=random"],
        )
    publish.publish(folders, tmp_path / "figures")
    held = pd.read_csv(tmp_path / "figures" / "mini_credit_held_out.csv")
    assert held["seeds"].tolist() == [3, 3] and set(held["avg"].round(3)) == {50.0, 66.667}
    assert json.loads((tmp_path / "figures" / "mini_credit_schemes.json").read_text())["runs"][:2] == [
        "mdp-0",
        "mdp-1",
    ]


def test_figures_of_single_notebooks_are_copied_from_the_right_run(tmp_path):
    folders = [finished(tmp_path / f"mini-{s}", s, (1, 1)) for s in range(3)]
    for k, folder in enumerate(folders):
        record = json.loads((folder / "record.json").read_text())
        # the second ended last
        storage.write_json(folder / "record.json", {**record, "end": f"2026-01-0{[2, 3, 1][k]}"})
        for file in (
            "figures/fig18.csv", "figures/fig18.png", "figures/fig4a.csv", "tables/table2_seeds.csv",
        ):
            storage.write_bytes(folder / file, f"{file} of {k}".encode())
    written = publish.publish(folders, tmp_path / "figures")
    text = {
        name: (tmp_path / "figures" / f"mini_{name}").read_text()
        for name in ("fig18.csv", "fig18.png", "fig4a.csv", "table2_seeds.csv")
    }
    assert [text[name][-1] for name in text] == ["1", "1", "0", "1"]
    assert (
        tmp_path / "figures" / "mini_fig18.png" in written
        and not (tmp_path / "figures" / "mini_fig5.csv").exists()
    )


def test_a_failed_run_is_remembered_and_not_pooled(tmp_path):
    folders = [finished(tmp_path / f"mini-{s}", s, (1, 1)) for s in range(3)]
    failed = finished(tmp_path / "mini-9", 9, (0, 0), status="failed")
    publish.publish([*folders, failed], tmp_path / "figures")
    publish.publish([*folders, failed], tmp_path / "figures")
    rows = storage.read_jsonl(tmp_path / "figures" / "runs.jsonl")
    assert [(row["run"], row["status"]) for row in rows] == [
        ("mini-0", "done"), ("mini-1", "done"), ("mini-2", "done"), ("mini-9", "failed"),
    ]
    assert json.loads((tmp_path / "figures" / "mini_seeds.json").read_text())["seeds"] == [0, 1, 2]


def test_what_cannot_be_pooled_is_refused(tmp_path):
    folders = [finished(tmp_path / f"mini-{s}", s, (1, 1)) for s in range(2)]
    with pytest.raises(InputError, match="2 finished runs"):
        publish.publish(folders, tmp_path / "figures")
    other = finished(tmp_path / "other", 5, (1, 1), overrides=["ppo.lr=1.0e-4"])
    with pytest.raises(InputError, match="other: its settings"):
        publish.publish([*folders, other], tmp_path / "figures")
    again = finished(tmp_path / "again", 1, (1, 1))
    with pytest.raises(InputError, match="again: seed 1 is already"):
        publish.publish([*folders, again], tmp_path / "figures")
