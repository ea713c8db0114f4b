"""A run that tunes all weights goes all the way: its notebooks train, find and evaluate whole models."""

import pandas as pd
import pytest

from rlpa_lib.reproduce import runner
from rlpa_lib.runs import record

SMALL = [
    "policy.tuning=full", "ppo.lr=3.0e-5", "rollout.users=2", "rollout.turns=2", "rollout.max_new_tokens=48",
    "ppo.minibatch=8", "ppo.iterations=2", "ablations.iterations=1", "ablations.variants=[PR]",
    "sft.conversations=4", "evaluation.users=4", "evaluation.extended_users=4", "evaluation.turns=2",
    "evaluation.methods=[base, sft, rlpa_prompting, rlpa, style_only_empty, style_only_other]",
    "conflict.methods=[sft, rlpa]", "conflict.turns=4", "conflict.at=3", "conflict.users=3",
    "long_term.turns=3", "long_term.every=2", "long_term.users=2", "run.tensorboard=false",
]


@pytest.mark.slow
def test_a_fully_tuned_run_is_evaluated_and_compared(tmp_path):
    books = ["11_sft", "20_ppo", "21_ablations", "30_evaluation", "31_preference_conflict", "32_long_term"]
    assert runner.reproduce("smoke", 0, tmp_path / "run", only=books, overrides=SMALL, jobs=1) == 0
    trained = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").glob("[am]*/*")}
    assert {"adapters/sft", "models/ppo", "models/ablation-PRR", "models/ablation-PR"} <= trained
    assert not {"adapters/ppo", "adapters/ablation-PRR", "metrics/ablation-PRR.jsonl"} & trained
    table2 = pd.read_csv(tmp_path / "run/tables/table2.csv")
    assert list(table2["method"]) == ["RLPA", "RLPA w/ PR"]
    for name, row in (("table1", "RLPA"), ("conflict", "RLPA"), ("long_term", "rlpa")):
        assert row in set(pd.read_csv(tmp_path / f"run/tables/{name}.csv")["method"]), name
    roles = record.read(tmp_path / "run")["devices"]
    assert {"sft", "ppo", "ablation-PR", "play"} <= roles.keys()
