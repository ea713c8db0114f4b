"""Whole notebooks with user, judges and policy behind a server: what is skipped, what is on record, what it
cost, and where the key is not."""

import json
import os
import subprocess
import sys

import pytest
from endpoint_client import KEY
from scripted_server import ScriptedServer
from test_cli import OPEN, write_notebook

from rlpa_lib import runs
from rlpa_lib.dialogue.judging import DIMENSIONS
from rlpa_lib.dialogue.profile import Profile, render_reply
from rlpa_lib.settings.kinds import REWARD_CRITERIA

FIELDS = tuple(criterion.field for criterion in REWARD_CRITERIA.values())
VARIABLE = "RLPA_TEST_KEY"


def everybody(body):
    """All parties of a run in one server, told apart by the answer that is asked for."""
    name = body.get("response_format", {}).get("json_schema", {}).get("name", "")
    if name == "UserMessage":
        notes = json.loads(body["messages"][-1]["content"])
        untold = [n for n in range(1, 11) if n not in notes["already_told"]]
        return json.dumps(
            {"message": f"I say {len(body['messages'])}.", "revealed": untold[: notes["new_items_allowed"]]}
        )
    if name.startswith("Pairs"):
        return json.dumps({"pairs": [{"inferred": 1, "true": 1}]})
    if name == "CriteriaAnswer":
        return json.dumps(
            {**{f: {"reason": "seen", "mark": 1} for f in FIELDS}, **dict.fromkeys(DIMENSIONS, 0)}
        )
    return render_reply(Profile((("Age", "30"),)), f"So you say: {body['messages'][-1]['content'][:80]}")


def served(url, *more):
    """Settings of a run whose every party is behind this server."""
    keys = [
        f"{role}.{key}"
        for role in ("user", "judge", "evaluator", "policy")
        for key in ("model=m", f"base_url={url}", f"api_key_env={VARIABLE}")
    ]
    keys += [
        "user.kind=llm", "judge.kind=llm", "evaluator.kind=llm", "policy.kind=endpoint", "run.prompt_set=en",
        *more,
    ]
    return [word for key in keys for word in ("--set", key)]


def cli(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != runs.OWNER_VARIABLE} | {
        VARIABLE: KEY
    }
    command = [sys.executable, "-m", "rlpa_lib", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def holding(folder, secret):
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    )


@pytest.mark.slow
def test_notebooks_that_train_are_skipped_where_the_policy_cannot_be_trained(tmp_path):
    for name in ("00_first", "20_ppo"):
        write_notebook(tmp_path / "books", name, OPEN)
    command = (
        "reproduce", "--scale", "smoke", "--notebooks", tmp_path / "books", "--run-dir", tmp_path / "run",
        *served("http://127.0.0.1:9/v1"),
    )
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    assert "[2/2] 20_ppo    skipped: an endpoint policy cannot be trained" in done.stdout
    facts = json.loads((tmp_path / "run" / "record.json").read_text())
    assert facts["skipped_notebooks"] == {"20_ppo": "an endpoint policy cannot be trained"}
    assert [path.name for path in (tmp_path / "run" / "notebooks").iterdir()] == ["00_first.ipynb"]
    named = cli(*command, "--only", "20_ppo")
    assert (named.returncode, named.stderr) == (
        2,
        "rlpa_lib: --only 20_ppo: an endpoint policy cannot be trained (policy.kind); use local or vllm\n",
    )


@pytest.mark.slow
def test_a_served_run_leaves_tables_usage_and_no_key(tmp_path):
    """The server says the key back in every answer; errors and a bad judgement are among them."""
    visits = iter(range(10**6))

    def script(body):
        visit = next(visits)
        if visit in (5, 40):
            return 503
        said = everybody(body)
        return (
            f"{said[:-1]} {server.key}"
            if visit in (7, 60)
            else said.replace("seen", f"seen {server.key}").replace("So you say", server.key)
        )

    sizes = ("personas.test_users=4", "evaluation.users=2", "evaluation.turns=2",
             "evaluation.methods=[base, rlpa_prompting, random, oracle, sft, rlpa]")  # fmt: skip
    with ScriptedServer(script) as server:
        only = [word for name in ("03", "10", "30", "50") for word in ("--only", name)]
        done = cli(
            "reproduce", "--scale", "smoke", "--run-dir", tmp_path / "run", *served(server.url, *sizes), *only
        )
        assert done.returncode == 0, done.stderr
        assert server.key == KEY
    assert holding(tmp_path / "run", KEY) == []
    assert "record.json" in holding(tmp_path / "run", VARIABLE), "the search works: the variable is named"
    assert "cache/responses.sqlite" in holding(tmp_path / "run", "[api key]"), "and the key did come back"
    rows = (tmp_path / "run" / "tables" / "table1.csv").read_text().splitlines()
    assert len(rows) == 5, "four rows were played; sft and rlpa need weights and are not run"
    usage = [
        json.loads(line) for line in (tmp_path / "run" / "metrics" / "usage.jsonl").read_text().splitlines()
    ]
    assert {line["role"] for line in usage} == {
        "user", "policy", "profile_judge", "response_judge", "evaluator",
    }
    # A request whose connection drops on a busy machine is counted as sent and never seen by the server.
    assert sum(line.get("sent", 0) for line in usage) >= len(server.bodies)
