"""Notebooks with user, judges and policy all served by one real server (settings by `--set` alone): what is
on record, and the plan of it."""

import json

from test_served_run import cli, holding, served

from rlpa_lib.plan import plan
from rlpa_lib.settings import config

# the tiny model knows no chat but its own: its texts run to their limits, and some are cut off there
SIZES = [
    "personas.test_users=8", "evaluation.users=2", "evaluation.turns=2",
    "evaluation.methods=[base, rlpa_prompting, oracle, rlpa]", "user.max_tokens=700", "judge.max_tokens=800",
    "evaluator.max_tokens=800", "endpoint.timeout=900.0", "endpoint.max_wait=2000.0",
    "endpoint.concurrency=64", "run.max_judge_failure_rate=0.5",
]


def test_all_parties_behind_one_server(vllm_server_tiny, tmp_path):
    switches = [
        word.replace(".model=m", f".model={vllm_server_tiny.name}")
        for word in served(vllm_server_tiny.base_url, *SIZES)
    ]
    done = cli("reproduce", "--scale", "smoke", "--run-dir", tmp_path / "run", *switches)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("skipped: an endpoint policy cannot be trained") >= 4
    usage = [
        json.loads(line) for line in (tmp_path / "run" / "metrics" / "usage.jsonl").read_text().splitlines()
    ]
    assert {line["role"] for line in usage} == {
        "user", "user_judge", "policy", "profile_judge", "response_judge", "evaluator",
    }
    assert sum(line.get("completion_tokens", 0) for line in usage) > 0 and not any(
        "estimated" in line for line in usage
    )
    assert len((tmp_path / "run" / "tables" / "table1.csv").read_text().splitlines()) == 4, (
        "three rows; rlpa needs weights and is not run"
    )
    assert (tmp_path / "run" / "tables" / "judge_attacks.csv").is_file() and holding(
        tmp_path / "run", "sk-test"
    ) == []
    cfg = config.load_config("smoke", switches[1::2])
    for name, (predicted, actual) in plan.compare(cfg, tmp_path / "run").items():
        print(f"\n{name}: planned {predicted:,.0f}, asked {actual:,.0f}")
