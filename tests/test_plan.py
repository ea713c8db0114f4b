"""The plan: what a rehearsal counts, by hand, and against what a served run of the same settings really asks."""

import json
import re

import pytest
from scripted_server import ScriptedServer
from test_served_run import everybody

from rlpa_lib import runs
from rlpa_lib.agents import parties
from rlpa_lib.dialogue.profile import Profile, render_reply
from rlpa_lib.evaluation import benchmarks, rows
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.plan import gpu_cost, plan, rehearsal, rehearsal_analyses
from rlpa_lib.plan.rehearsal import TYPICAL, Ask
from rlpa_lib.runs.storage import hash_json
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError
from rlpa_lib.study import response_judge, rewrites, user_measures

URL = "http://127.0.0.1:9/v1"
SERVED = ["user.kind=llm", "judge.kind=llm", "evaluator.kind=llm", "policy.kind=endpoint", "run.prompt_set=en"]


def served(*more, url=URL):
    parties_ = ("user", "judge", "evaluator", "policy")
    return config.load_config("smoke", [*SERVED, *(f"{name}.{key}" for name in parties_ for key in ("model=m", f"base_url={url}")), *more])


def asked(load):
    return {role: round(ask.requests) for (role, _, _), ask in load.tally.asked.items()}


def test_requests_by_hand():
    """Five users of one benchmark, three turns, judged twice: base, self-critic and RLPA prompting, then the oracle."""
    sizes = ("evaluation.users=5", "evaluation.benchmarks=[vanilla]")
    cfg = served(*sizes, "evaluation.methods=[base, self_critic, rlpa_prompting, oracle]", "judge.kind=rule")
    loads = {load.notebook: asked(load) for load in plan.plan(cfg)}
    # Nobody is asked for "Hello". At temperature 0 the answer to it is the same for all users, and a draft is what base says: 1 + 2 + 1.
    # So own and swapped persona are the same questions there: five of ten, in each of the three rows.
    assert loads["10_prompting_baselines"] == {"user": 3 * 5 * 2, "policy": 4 + (1 + 3 + 1) * 5 * 2, "evaluator": 3 * (5 + 10 * 2)}
    assert loads["30_evaluation"] == {"user": 5 * 2, "policy": 5 * 3, "evaluator": 5 * 3 * 2}  # the oracle's prompts hold the profiles
    judged = {load.notebook: asked(load) for load in plan.plan(served(*sizes, "evaluation.methods=[oracle]"))}
    assert judged["30_evaluation"]["profile_judge"] == 5, "true against true profile is asked once a user"
    assert judged["03_rewards_and_judges"].keys() == {"response_judge", "profile_judge", "evaluator"}


def test_training_by_hand():
    cfg = config.load_config("smoke", ["judge.kind=llm", "judge.model=m", f"judge.base_url={URL}", "user.kind=llm", "user.model=m", f"user.base_url={URL}"])
    loads = {load.notebook: load for load in plan.plan(cfg)}
    # three cohorts of 8 users x 3 turns x 4 samples; at turn 1 the profile is empty, so nobody is asked to match it
    assert asked(loads["20_ppo"]) == {"user": 3 * 8 * 2, "response_judge": 3 * 8 * 3 * 4, "profile_judge": 3 * 8 * 2 * 4}
    assert loads["20_ppo"].tally.own.requests == loads["20_ppo"].trained.requests == 288
    assert loads["20_ppo"].trained.prompt == loads["20_ppo"].tally.own.prompt / 4, "a tree holds a prompt once"
    assert asked(loads["22_grpo"]) == {"user": 2 * 2, "response_judge": 2 * 3 * 4, "profile_judge": 2 * 2 * 4}
    assert {"11_sft", "12_dpo"} <= loads.keys() and loads["11_sft"].trained.requests == 8 * 3


def test_an_endpoint_policy_plans_no_training_and_conversion_is_counted(tmp_path):
    assert not {"11_sft", "12_dpo", "20_ppo", "22_grpo"} & {load.notebook for load in plan.plan(served("evaluation.methods=[base]"))}
    keys = ["personas.source=aloe", "personas.conversion=llm", "personas.train_users=100", "user.model=m", f"user.base_url={URL}"]
    [first, *_] = plan.plan(config.load_config("smoke", keys))
    assert (first.notebook, asked(first)) == ("01_profiles_and_data", {"converter": 174})


STUDIED = [  # another user model, another profile judge, and personas that no lexicon knows
    f"study.user_models={{other: {{kind: llm, model: n, base_url: '{URL}'}}}}",
    f"study.profile_judges={{second: {{kind: llm, model: j, base_url: '{URL}'}}}}",
    "personas.source=aloe",
]


def of_models(tally):
    return {(role, model): round(ask.requests) for (role, model, _), ask in tally.asked.items()}


def test_the_study_of_users_and_judges_by_hand():
    """Three user models (own, other, impostor), five personas, three turns; 20 rewritten profiles and two judges."""
    found = rehearsal_analyses.study(served(*STUDIED, "study.personas=5", "study.turns=3", "study.profiles=20"), TYPICAL)
    assert of_models(found) == {
        ("user", "m"): 2 * 5 * (3 - 1), ("user", "n"): 5 * (3 - 1),  # the run's own model speaks for the impostor too; nobody is asked for "Hello"
        ("policy", "m"): 1 + 3 * 5 * (3 - 1),  # one answer to all the "Hello"s
        ("user_judge", "m"): 3 * 5,  # what is claimed in each dialogue
        ("response_judge", "m"): 1 + 5 * (3 - 1),  # replies to the first user model, since an endpoint policy leaves no training log
        ("rewriter", "m"): 20, ("profile_judge", "m"): 20, ("profile_judge", "j"): 20,
    }  # fmt: skip
    more = rehearsal_analyses.study(served(*STUDIED, "study.personas=5", "study.turns=3", "study.profiles=300"), TYPICAL)
    assert of_models(more)["rewriter", "m"] == of_models(more)["profile_judge", "j"] == 300, "three times a rehearsal of 100"
    assert of_models(more)["user", "m"] == 20


def test_the_study_with_a_training_log_and_with_the_built_in_personas():
    """With a local policy the points come from the log; the built-in personas are rewritten twice, by the lexicon; rules report their words."""
    keys = [f"{name}.{key}" for name in ("user", "judge") for key in ("kind=llm", "model=m", f"base_url={URL}")]
    cfg = config.load_config("smoke", [*keys, "study.user_models={rules: {kind: agenda}}", "study.personas=3", "study.turns=3", "study.profiles=20"])
    found = rehearsal_analyses.study(cfg, TYPICAL)
    assert of_models(found) == {("user", "m"): 2 * 3 * 2, ("user_judge", "m"): 2 * 3, ("profile_judge", "m"): 2 * 20}
    assert found.own.requests == 3 * 3 * 3, "the partner's replies, at every turn"


def test_the_study_of_the_miniature_asks_nobody():
    """Users, judges and rewriters are rules: only the partner's replies are generated."""
    found = rehearsal_analyses.study(config.load_config("mini"), TYPICAL)
    assert not found.asked and found.total() == Ask() and found.own.requests == 2 * 10 * 5


def test_a_study_that_lacks_a_model_is_told_so_before_it_is_paid():
    keys = ["user.kind=llm", "user.model=m", f"user.base_url={URL}"]
    with pytest.raises(InputError, match="judge.model: is needed as user_judge of notebook 34"):
        rehearsal_analyses.study(config.load_config("smoke", keys), TYPICAL)


def test_money_time_and_lengths():
    cfg = config.load_config("smoke", ["judge.kind=llm", "judge.model=gpt-4o-mini", "endpoint.concurrency=1000"])
    tally = rehearsal.Tally({("response_judge", "gpt-4o-mini", "https://api.openai.com/v1"): Ask(1000, 2e6, 1e6)})
    assert plan.usd(cfg, tally) == pytest.approx(2 * 0.15 + 0.60)
    assert plan.usd(cfg, rehearsal.Tally({("judge", "unheard-of", "https://api.openai.com/v1"): Ask(1, 1, 1)})) is None
    assert plan.usd(cfg, rehearsal.Tally({("judge", "unheard-of", URL): Ask(1, 1, 1)})) == 0
    assert plan.hours(cfg, Ask(1000, 2e6, 1e6), rpm=100, tpm=1e9) == pytest.approx(10 / 60)
    assert plan.hours(cfg, Ask(1000, 2e6, 1e6), rpm=1e9, tpm=1e5) == pytest.approx(30 / 60)
    half = plan.hours(cfg.model_copy(update={"endpoint": config.load_config("smoke", ["endpoint.concurrency=4"]).endpoint}), Ask(7200, 0, 0), 1e9, 1e9)
    assert half == pytest.approx(1.0)  # 7,200 requests of two seconds, four at a time


def test_assumptions_can_be_changed():
    found = rehearsal.assumed(["response=120", "bytes_per_token=2.5"])
    assert (found.response, found.bytes_per_token, found.utterance) == (120, 2.5, TYPICAL.utterance)
    for bad in ("respons=1", "response=0", "response=x", "response"):
        with pytest.raises(InputError, match=f"--assume {bad}"):
            rehearsal.assumed([bad])


def test_gpu_rules_by_hand():
    cfg = config.load_config("paper")
    known = gpu_cost.shape(cfg)
    assert gpu_cost.shape(config.load_config("mini")) is None and 3.0e9 < known.weights() < 3.2e9
    # in a Python loop at most 30 steps a second, of 16 prompts at a time
    assert gpu_cost.hours(cfg, Ask(1, 0, 30 * 16 * 3600), Ask(), 1, gpu_cost.A100) == pytest.approx(1.0)
    # training alone: with an adapter for the critic, (4 x 2 + 2) x weights a token at 35 % of 312 TFLOP/s
    tokens = 3600 * 0.35 * 312e12 / (10 * known.weights())
    assert gpu_cost.hours(cfg, Ask(), Ask(1, 0, tokens), 1, gpu_cost.A100) == pytest.approx(1.0)
    # sampling alone: weights in bf16, and 2 x 36 layers x 2 heads x 128 numbers a token for 16 prompts of 100 + 50 tokens
    held = 2 * known.weights() + 16 * 150 * 2 * 36 * 256 * 2
    assert gpu_cost.memory(cfg, Ask(2, 200, 100), Ask()) == pytest.approx(held / 1e9)


def test_the_plan_of_the_paper_tells_money_memory_and_assumptions():
    text = plan.table(config.load_config("paper", ["evaluation.methods=[base, rlpa]"]))
    assert "143,360" in text and "gpt-4o-2024-11-20" in text and "A100" in text and "no price" not in text
    [study] = [line.split() for line in text.splitlines() if line.startswith("34_user_and_reward_model_evaluation")]
    # own and impostor, ten personas, four turns after "Hello"; a claim finder for each dialogue; 100 profiles rewritten and counted
    assert study[1] == str(2 * 10 * 4 + 2 * 10 + 100 + 100) and study[6] == str(2 * 10 * 5)


def test_the_plan_agrees_with_what_is_really_asked(tmp_path):
    """Settings of the smoke scale, served by a real local server whose texts are as long as the plan assumes; it counts tokens by bytes."""

    def script(body):
        answer, own = everybody(body), hash_json(body["messages"])[:8]  # other questions, other words
        if answer.startswith("{"):
            answer = json.loads(answer)
            if "message" in answer:
                answer["message"] = f"{own} {'word ' * 20}"[:95]
            answer = json.dumps({name: {"reason": "word " * 13, "mark": 1} if isinstance(value, dict) else value for name, value in answer.items()})
        else:
            answer = answer.replace("So you say", f"{own} {'word ' * 28}")
        prompt = sum(len(m["content"].encode()) / TYPICAL.bytes_per_token + TYPICAL.per_message for m in body["messages"])
        return {"content": answer, "usage": {"prompt_tokens": round(prompt), "completion_tokens": round(len(answer) / TYPICAL.bytes_per_token)}}

    with ScriptedServer(script) as server:
        cfg = served("evaluation.users=4", "evaluation.methods=[base, reminder, rlpa_prompting, oracle]", url=server.url)
        run = runs.claim(cfg, 0, tmp_path / "run", "smoke")
        users, user = benchmarks.load_benchmarks(run), parties.make_user(cfg, "test", 0, run)
        evaluator, judge = parties.make_evaluation_judge(cfg, run), parties.make_reward_judge(cfg, run)
        stage = rows.Stage(run)
        for row in stage.rows:
            for benchmark, people in users.items():
                stage.load_judgements(row, benchmark, people, user, evaluator, judge)
        for name in ("10_prompting_baselines", "30_evaluation"):
            run.path(f"notebooks/{name}.ipynb").write_text("{}")
    found = plan.against(cfg, run.dir)
    assert found["requests"][1] == len(server.bodies)
    for name in ("requests", "prompt tokens", "answer tokens", "tokens"):
        assert found[name][0] == pytest.approx(found[name][1], rel=0.1), (name, found)


def typical_study_answer(body):
    """All parties of notebook 34, in words as long as the plan assumes and other words for other questions."""
    name = body.get("response_format", {}).get("json_schema", {}).get("name", "")
    own = hash_json([body["model"], body["messages"], body.get("seed")])[:8]
    value, sizes = f"{own} word word"[: round(TYPICAL.value * TYPICAL.bytes_per_token)], [int(n) for n in re.findall(r"\d+", name)]
    if name == "UserMessage":
        answer = {**json.loads(everybody(body)), "message": f"{own} {'word ' * 20}"[:95]}
    elif name == "Claims":  # two turns after "Hello", two claims in each
        answer = {"claims": [{"utterance": 2, "claim": value, "against_persona": 1, "against_earlier": 1}] * 4}
    elif name.startswith("Rewritten"):
        answer = {"paraphrased": [value] * sizes[0], "altered": [value] * sizes[0]}
    elif name.startswith("Pairs"):
        answer = {"pairs": [{"inferred": i, "true": i} for i in range(1, min(sizes) + 1)]}
    elif name == "CriteriaAnswer":
        answer = {k: {"reason": "word " * 13, "mark": 1} if isinstance(v, dict) else v for k, v in json.loads(everybody(body)).items()}
    else:
        return render_reply(Profile((("Age", "30"),)), f"{own} {'word ' * 44}".strip())
    return json.dumps(answer)


def test_the_study_agrees_with_what_notebook_34_really_asks(tmp_path):
    def script(body):
        answer = typical_study_answer(body)
        prompt = sum(len(m["content"].encode()) / TYPICAL.bytes_per_token + TYPICAL.per_message for m in body["messages"])
        return {"content": answer, "usage": {"prompt_tokens": round(prompt), "completion_tokens": round(len(answer) / TYPICAL.bytes_per_token)}}

    with ScriptedServer(script) as server:
        studied = [key.replace(URL, server.url) for key in STUDIED]
        cfg = served(*studied, "study.personas=6", "study.turns=3", "study.profiles=12", "evaluation.methods=[base]", url=server.url)
        run, people = runs.claim(cfg, 0, tmp_path / "run", "smoke"), builtin_personas("vanilla", 6, 0)
        partner, models = user_measures.make_partner(run), user_measures.make_user_models(run, people)
        played = {name: user_measures.play_dialogues(run, name, user, people, partner) for name, user in models.items()}
        user_measures.find_claims(run, {name: list(zip(people, dialogues, strict=True)) for name, dialogues in played.items()})
        for some in rewrites.make_sets(run, builtin_personas("vanilla", 12, 0)).values():
            rewrites.count_overlaps(some, rewrites.make_judges(run))
        response_judge.judge_points(played["m"], parties.make_reward_judge(cfg, run))
    [load] = [load for load in plan.plan(cfg) if load.notebook == "34_user_and_reward_model_evaluation"]
    run.path(f"notebooks/{load.notebook}.ipynb").write_text("{}")
    found = plan.against(cfg, run.dir)
    assert round(load.tally.total().requests) == round(found["requests"][0]) == found["requests"][1] == len(server.bodies)
    for name in ("prompt tokens", "answer tokens", "tokens"):
        assert found[name][0] == pytest.approx(found[name][1], rel=0.1), (name, found)
