"""The params of the paper's scale with a random Qwen2.5 model of tiny width: every branch but CUDA's is
run."""

import json

import pytest
from paper_world import aloe_folder, answer, run_of, tiny_qwen
from scripted_server import ScriptedServer

from rlpa_lib.rlpa import training

FEWER = [
    "personas.train_users=12", "rollout.users=4", "rollout.turns=3", "rollout.max_new_tokens=48",
    "ppo.iterations=2", "ppo.minibatch=16",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    return tiny_qwen(folder / "model"), aloe_folder(folder / "aloe", 120)


@pytest.fixture
def server(monkeypatch):
    with ScriptedServer(answer) as made:
        monkeypatch.setenv("OPENAI_BASE_URL", made.url)
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        yield made


@pytest.mark.parametrize(("scale", "updates", "made"), [("paper", 2, "adapters"), ("released", 6, "models")])
def test_the_params_train(tmp_path, world, server, scale, updates, made):
    run = run_of(tmp_path / "run", scale, *world, *FEWER)
    trainer = training.prepare(run)
    rows = trainer.train(say=lambda line: None)
    assert [row["update"] for row in rows] == list(range(1, updates + 1))
    assert rows[0]["format_rate"] > 0.5 and rows[0]["unjudged_share"] == 0 and 0 < rows[0]["reward_total"] < 2
    assert all(row["grad_norm_policy"] > 0 for row in rows)
    assert all(row.get("grad_norm_critic", 0) > 0 for row in rows) == (scale == "released"), "ppo.baseline"
    assert (tmp_path / "run" / made / "ppo").is_dir()
    asked = {body["model"] for body in server.bodies}
    assert asked == ({"gpt-4o-mini"} if scale == "paper" else {"gpt-4o-mini", "deepseek-v3"})
    said = json.loads((tmp_path / "run/dialogues/ppo/update-0001.jsonl").read_text().splitlines()[0])[
        "completion"
    ]
    assert isinstance(said, str)
    kept = rows[0]["turn"] == 3
    assert kept == (scale == "paper"), (
        "the paper's scheme updates once a dialogue, the release after every turn"
    )
