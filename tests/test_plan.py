"""The plan: requests and tokens by hand, and what a small pilot predicts of a larger run, held against what
that really asks."""

import pytest
from scripted_server import ScriptedServer
from typical_parties import answer, settings

from rlpa_lib import runs
from rlpa_lib.agents import parties
from rlpa_lib.client.usage import NOTEBOOK_VARIABLE
from rlpa_lib.dialogue.prompt_files import load_prompt
from rlpa_lib.evaluation import benchmarks, conflict, long_term, rows
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.plan import gpu, pilot, plan, speeds
from rlpa_lib.plan.gpu import Work
from rlpa_lib.plan.pilot import Pilot, Rate, Texts
from rlpa_lib.rlpa import memory
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError
from rlpa_lib.study import judge_attacks, response_judge, rewrites, user_measures

URL = "http://127.0.0.1:9/v1"
NOBODY = Pilot()  # no run: every request is made once, and lengths are those of the dialogue alone


def served(*more, url=URL):
    return config.load_config("smoke", [*settings(url), *more])


def asked(load):
    return {(role, model): round(work.requests) for (role, model, _), work in load.asked.items()}


def by_role(load):
    assert len({role for role, _, _ in load.asked}) == len(load.asked)
    return {role: n for (role, _), n in asked(load).items()}


def loads(cfg, known=NOBODY):
    return {load.notebook: load for load in plan.plan(cfg, known)}


def test_requests_by_hand():
    """Five users of one benchmark, three turns, judged twice: base, self-critic and RLPA prompting, then the
    oracle."""
    sizes = ("evaluation.users=5", "evaluation.benchmarks=[vanilla]")
    cfg = served(*sizes, "evaluation.methods=[base, self_critic, rlpa_prompting, oracle]", "judge.kind=rule")
    found = {notebook: by_role(load) for notebook, load in loads(cfg).items()}
    # Nobody is asked for "Hello". At temperature 0 the answer to it is the same for all users: 1 + 3 + 1.
    # So own and swapped persona are the same questions there: five of ten, in each of the three rows.
    assert found["10_prompting_baselines"] == {
        "user": 3 * 5 * 2, "policy": 5 + (1 + 3 + 1) * 5 * 2, "evaluator": 3 * (5 + 10 * 2),
    }
    # the oracle's prompts hold the profiles
    assert found["30_evaluation"] == {"user": 5 * 2, "policy": 5 * 3, "evaluator": 5 * 3 * 2}
    judged = loads(served(*sizes, "evaluation.methods=[oracle]"))
    assert by_role(judged["30_evaluation"])["profile_judge"] == 5, (
        "true against true profile is asked once a user"
    )
    assert by_role(judged["03_rewards_and_judges"]).keys() == {"response_judge", "profile_judge", "evaluator"}


SERVED_TRAINING = [
    f"{name}.{key}" for name in ("user", "judge") for key in ("kind=llm", "model=m", f"base_url={URL}")
]


def test_training_by_hand():
    cfg = config.load_config("smoke", SERVED_TRAINING)
    found = loads(cfg)
    # three cohorts of 8 users x 3 turns x 4 samples; at turn 1 the profile is empty, so nobody is asked to
    # match it
    assert by_role(found["20_ppo"]) == {
        "user": 3 * 8 * 2, "response_judge": 3 * 8 * 3 * 4, "profile_judge": 3 * 8 * 2 * 4,
    }
    assert (found["20_ppo"].own.requests, found["20_ppo"].own.replies) == (72, 288)
    assert by_role(found["22_grpo"]) == {
        "user": 2 * 2, "response_judge": 2 * 3 * 4, "profile_judge": 2 * 2 * 4,
    }
    assert {"11_sft", "12_dpo"} <= found.keys() and found["11_sft"].trained.replies == 8 * 3
    assert found["12_dpo"].trained.replies == 2 * 3 * 3
    independent = loads(config.load_config("smoke", [*SERVED_TRAINING, "rollout.continuation=independent"]))[
        "20_ppo"
    ]
    assert by_role(independent)["user"] == 4 * by_role(found["20_ppo"])["user"], (
        "each sample has a talk of its own"
    )
    assert independent.own.requests == independent.own.replies == 288


def test_trained_tokens_and_memory_take_the_pilots_prompts():
    """Three turns, 24 prompts each. Utterance 20, response 40, 5 around a message: an exchange has 70.
    Profiles 0, 10, 20 tokens."""
    texts = Texts(
        bytes_per_token=4.0, per_message=5.0, utterance=20.0, response=40.0, value=10.0, items=0.0, more=1.0
    )
    known = Pilot(texts, {"20_ppo": {"policy": Rate(1.0, 300.0, 7.0)}})
    tree, packed = (
        loads(config.load_config("smoke", [f"ppo.packing={packing}"]), known)["20_ppo"]
        for packing in ("tree", "rows")
    )
    system = len(load_prompt("policy", "mini", None).encode()) / 4.0
    # of the history only the latest profile is shown: at turn 1 the system prompt, at turn 2 one exchange, at
    # turn 3 two and a profile
    prompts = 24 * (300 + system) + 24 * (300 + system + 70 + 0) + 24 * (300 + system + 140 + 10)
    completions = 4 * 24 * ((7 + 40) + (7 + 40 + 10) + (7 + 40 + 20))
    assert tree.own == Work(72, pytest.approx(prompts), 288, pytest.approx(completions))
    assert tree.trained == tree.own, "a tree holds a prompt once, for all its samples"
    assert packed.trained == Work(288, pytest.approx(4 * prompts), 288, pytest.approx(completions))
    cfg = config.load_config("paper")
    mean, reply = prompts / 72, completions / 288
    predicted = sum(
        memory.predict(gpu.shape(cfg), cfg, round(mean), round(reply)).values()
    )
    for load in (tree, packed):
        assert gpu.memory(cfg, Work(), load.trained) == pytest.approx(predicted / 1e9), (
            "as long as prompts are, packed or not"
        )


def test_an_endpoint_policy_plans_no_training_and_conversion_is_counted():
    assert not {"11_sft", "12_dpo", "20_ppo", "22_grpo"} & loads(served("evaluation.methods=[base]")).keys()
    keys = [
        "personas.source=aloe", "personas.conversion=llm", "personas.train_users=100", "user.model=m",
        f"user.base_url={URL}",
    ]
    [first, *_] = plan.plan(config.load_config("smoke", keys), NOBODY)
    assert (first.notebook, by_role(first)) == ("01_profiles_and_data", {"converter": 174})


STUDY = "34_user_and_reward_model_evaluation"
STUDIED = [  # another user model, another profile judge, and personas that no lexicon knows
    f"study.user_models={{other: {{kind: llm, model: n, base_url: '{URL}'}}}}",
    f"study.profile_judges={{second: {{kind: llm, model: j, base_url: '{URL}'}}}}",
    "personas.source=aloe",
]


def test_the_study_of_users_and_judges_by_hand():
    """Three user models (own, other, impostor), five personas, three turns; 20 rewritten profiles and two
    judges."""
    found = loads(served(*STUDIED, "study.personas=5", "study.turns=3", "study.profiles=20"))[STUDY]
    assert asked(found) == {
        # the run's own model speaks for the impostor too; nobody is asked for "Hello"
        ("user", "m"): 2 * 5 * (3 - 1), ("user", "n"): 5 * (3 - 1),
        ("policy", "m"): 1 + 3 * 5 * (3 - 1),  # one answer to all the "Hello"s
        ("user_judge", "m"): 3 * 5,  # what is claimed in each dialogue
        # replies to the first user model, since an endpoint policy leaves no training log
        ("response_judge", "m"): 1 + 5 * (3 - 1),
        ("rewriter", "m"): 20, ("profile_judge", "m"): 20, ("profile_judge", "j"): 20,
    }  # fmt: skip
    more = asked(loads(served(*STUDIED, "study.personas=5", "study.turns=3", "study.profiles=300"))[STUDY])
    assert more["rewriter", "m"] == more["profile_judge", "j"] == 300 and more["user", "m"] == 20


def test_the_study_with_a_training_log_and_with_the_built_in_personas():
    """With a local policy the points come from the log; the built-in personas are rewritten twice, by the
    lexicon; rules report their words."""
    keys = [
        *SERVED_TRAINING, "study.user_models={rules: {kind: agenda}}", "study.personas=3", "study.turns=3",
        "study.profiles=20",
    ]
    found = loads(config.load_config("smoke", keys))[STUDY]
    assert asked(found) == {
        ("user", "m"): 2 * 3 * 2, ("user_judge", "m"): 2 * 3, ("profile_judge", "m"): 2 * 20,
    }
    assert found.own.replies == 3 * 3 * 3, "the partner's replies, at every turn"


def test_the_study_of_the_miniature_asks_nobody():
    """Users, judges and rewriters are rules: only the partner's replies are generated."""
    found = loads(config.load_config("mini"))[STUDY]
    assert not found.asked and found.total() == Work() and found.own.replies == 2 * 10 * 5


def test_a_study_that_lacks_a_model_is_told_so_before_it_is_paid():
    keys = ["user.kind=llm", "user.model=m", f"user.base_url={URL}"]
    with pytest.raises(InputError, match="judge.model: is needed as user_judge of notebook 34"):
        plan.plan(config.load_config("smoke", keys), NOBODY)


def test_prompts_grow_with_the_dialogue_up_to_their_limit():
    texts = Texts(per_message=5.0, utterance=20.0, response=40.0)
    keys = (
        "evaluation.methods=[base]", "evaluation.benchmarks=[vanilla]", "evaluation.users=2",
        "user.max_prompt_tokens=200",
    )
    work = {}
    for turns in (3, 5):
        load = loads(served(*keys, f"evaluation.turns={turns}"), Pilot(texts))["10_prompting_baselines"]
        [work[turns]] = [work for (role, _, _), work in load.asked.items() if role == "user"]
    assert work[3].prompt == 2 * (70 + 140)
    assert work[5].prompt == 2 * (70 + 140 + 200 + 200), "two turns reach the limit of the user's prompt"


def test_money_and_time():
    cfg = config.load_config(
        "smoke", ["judge.kind=llm", "judge.model=gpt-4o-mini", "endpoint.concurrency=1000"]
    )
    server = "https://api.openai.com/v1"
    work = Work(1000, 2e6, 1000, 1e6)
    assert plan.usd(cfg, {("response_judge", "gpt-4o-mini", server): work}) == pytest.approx(2 * 0.15 + 0.60)
    assert plan.usd(cfg, {("judge", "unheard-of", server): work}) is None
    assert plan.usd(cfg, {("judge", "unheard-of", URL): work}) == 0
    assert plan.hours(cfg, work, rpm=100, tpm=1e9) == pytest.approx(10 / 60)
    assert plan.hours(cfg, work, rpm=1e9, tpm=1e5) == pytest.approx(30 / 60)
    slower = cfg.model_copy(
        update={"endpoint": config.load_config("smoke", ["endpoint.concurrency=4"]).endpoint}
    )
    half = plan.hours(slower, Work(7200), 1e9, 1e9)
    assert half == pytest.approx(1.0)  # 7,200 requests of two seconds, four at a time


def test_lengths_can_be_assumed():
    found = NOBODY.assume(["response=120", "bytes_per_token=2.5"]).texts
    assert (found.response, found.bytes_per_token, found.utterance) == (120, 2.5, Texts().utterance)
    for bad in ("respons=1", "response=0", "response=x", "response"):
        with pytest.raises(InputError, match=f"--assume {bad}"):
            NOBODY.assume([bad])


def busy(cfg, own, trained, notebook="20_ppo", epochs=1):
    return speeds.hours(cfg, notebook, own, trained, epochs).busy


def test_gpu_rules_by_hand():
    cfg = config.load_config("paper", ["policy.kind=local", "ppo.baseline=critic"])
    known = gpu.shape(cfg)
    assert gpu.shape(config.load_config("mini")) is None and 3.0e9 < known.weights() < 3.2e9
    # in a Python loop at most 30 steps a second, of 16 prompts at a time, and the longest reply has 4 means
    assert busy(cfg, Work(1, 0, 1, 30 * 16 * 3600), Work()) == pytest.approx(4.0)
    # training alone, at 20 % of 312 TFLOP/s: reference and critic look (2 + 2), both take a step (4 + 4)
    reached = 3600 * 0.20 * 312e12 / known.weights()
    assert busy(cfg, Work(), Work(1, 0, 1, reached / 12)) == pytest.approx(1.0)
    # where servers sample, the trainer computes the old log-probabilities itself
    served = config.load_config("paper", ["ppo.baseline=critic"])
    assert busy(served, Work(), Work(1, 0, 1, reached / 14)) == pytest.approx(1.0)
    # as the params are no critic looks or takes a step: 6 less
    assert busy(config.load_config("paper"), Work(), Work(1, 0, 1, reached / 8)) == pytest.approx(1.0)
    # all weights: a backward pass of 4
    full = config.load_config("released")
    assert busy(full, Work(), Work(1, 0, 1, reached / 16)) == pytest.approx(1.0)
    # SFT has neither reference nor critic, DPO the reference
    assert busy(cfg, Work(), Work(1, 0, 1, reached / 4), "11_sft") == pytest.approx(1.0)
    assert busy(cfg, Work(), Work(1, 0, 1, reached / 6), "12_dpo") == pytest.approx(1.0)
    # sampling alone: weights in bf16, and 2 x 36 layers x 2 heads x 128 numbers a token for 16 prompts of 100
    # + 50 tokens
    held = 2 * known.weights() + 16 * 150 * 2 * 36 * 256 * 2
    assert gpu.memory(cfg, Work(2, 200, 2, 100), Work()) == pytest.approx(held / 1e9)


def test_served_sampling_waits_for_the_longest_reply_of_each_turn():
    cfg = config.load_config("paper", ["evaluation.users=74", "policy.servers=[http://a/v1, http://b/v1]"])
    steps = 0.30 * 2.0e12 / (2 * gpu.shape(cfg).weights())
    own = Work(740, 0, 740, 740 * 100)  # 74 users, ten turns, replies of 100 tokens
    found = speeds.hours(cfg, "30_evaluation", own, Work(), 1)
    passes = 740 * 100 / (steps * 64 * 2) + 10 * 3 * 100 / steps
    assert found.sampling == pytest.approx(passes / 3600) and found.busy == pytest.approx(2 * passes / 3600)
    assert found.waiting == pytest.approx(10 * 3 * 100 / steps / 3600)


def test_the_plan_of_the_paper_tells_money_memory_and_assumptions():
    text = plan.table(config.load_config("paper", ["evaluation.methods=[base, rlpa]"]))
    assert "143,360" in text and "gpt-4o-2024-11-20" in text and "A100" in text and "no price" not in text
    assert "- pilot: " in text and "commit" in text and "no pilot asked" not in text, (
        "the pilot that ships knows every role"
    )
    [study] = [line.split() for line in text.splitlines() if line.startswith(STUDY)]
    assert study[6] == str(2 * 10 * 5)


def play(run, monkeypatch):
    """What the notebooks that ask a server do, each under its name; 33 and 36 read back what others have
    played."""
    cfg, made = run.cfg, lambda split: parties.make_user(cfg, split, 0, run)

    def enter(name):
        monkeypatch.setenv(NOTEBOOK_VARIABLE, name)
        run.path(f"notebooks/{name}.ipynb").write_text("{}")

    enter("03_rewards_and_judges")
    judge_attacks.attack_judges(
        run,
        [
            *judge_attacks.read_attacks(runs.record.REPOSITORY / "tests/data/judge_attacks.jsonl"),
            *judge_attacks.make_controls(),
        ],
    )
    users, evaluator, judge = (
        benchmarks.load_benchmarks(run),
        parties.make_evaluation_judge(cfg, run),
        parties.make_reward_judge(cfg, run),
    )
    stage = rows.Stage(run)
    for row in stage.rows:
        enter("10_prompting_baselines" if row.method != "oracle" else "30_evaluation")
        for benchmark, people in users.items():
            stage.load_judgements(row, benchmark, people, made("test"), evaluator, judge)
    enter("31_preference_conflict")
    people = parties.load_analysis_people(cfg, cfg.conflict, 0, run)
    shifts = conflict.draw_shifts(people, 0)
    user = parties.make_shifting_user(cfg, shifts, 0, run)
    for row in rows.select_rows(cfg, cfg.conflict.methods):
        stage.load_judgements(
            row, conflict.NAME, people, user, evaluator, judge, turns=cfg.conflict.turns, swap=False,
            valid=user.valid,
        )
        if row.method == "rlpa_prompting":
            conflict.check_profiles(rows.rows.read_dialogues(run, row.name, conflict.NAME), shifts, judge)
    enter("32_long_term")
    people, turns = parties.load_analysis_people(cfg, cfg.long_term, 0, run), cfg.long_term.turns
    for row in rows.select_rows(cfg, cfg.long_term.methods):
        stage.load_judgements(
            row, long_term.NAME, people, made("vanilla"), evaluator, judge, turns=turns, swap=False
        )
        talks = rows.rows.read_dialogues(run, row.name, long_term.NAME)
        marks = long_term.list_checkpoints(turns, cfg.long_term.every)
        long_term.track_revealed(people, talks, marks, parties.make_reveal_judge(cfg, run), by_judge=True)
    enter("35_difficult_users")
    people = parties.load_analysis_people(cfg, cfg.difficult, 0, run)
    for manner in cfg.difficult.manners:
        for row in rows.select_rows(cfg, cfg.difficult.methods):
            user = parties.make_user(cfg, "vanilla", 0, run, manner)
            stage.load_judgements(
                row, f"difficult_{manner}", people, user, evaluator, judge, turns=cfg.difficult.turns,
                swap=False,
            )
    enter(STUDY)
    people = builtin_personas("vanilla", cfg.study.personas, 0)
    partner, models = user_measures.make_partner(run), user_measures.make_user_models(run, people)
    played = {
        name: user_measures.play_dialogues(run, name, user, people, partner) for name, user in models.items()
    }
    user_measures.find_claims(
        run, {name: list(zip(people, talks, strict=True)) for name, talks in played.items()}
    )
    for some in rewrites.make_sets(run, builtin_personas("vanilla", cfg.study.profiles, 0)).values():
        rewrites.count_overlaps(some, rewrites.make_judges(run))
    response_judge.judge_points(next(iter(played.values())), judge)


ROWS = [
    "evaluation.methods=[base, reminder, self_critic, cot, rlpa_prompting, oracle]",
    "conflict.methods=[base, rlpa_prompting]", "long_term.methods=[rlpa_prompting]",
    "difficult.methods=[base, rlpa_prompting]", "endpoint.concurrency=64",
]
SMALL = ["evaluation.users=4", "evaluation.turns=3", "difficult.turns=3"]
LARGE = [
    "evaluation.users=8", "evaluation.turns=4", "conflict.users=8", "conflict.turns=6", "long_term.users=8",
    "long_term.turns=9", "difficult.users=8", "difficult.turns=4", "study.personas=6", "study.turns=5",
    "study.profiles=30",
]


@pytest.mark.slow
def test_a_pilot_predicts_what_a_larger_run_really_asks(tmp_path, monkeypatch):
    """Four users and three turns predict eight users and more turns, in every notebook that asks a policy,
    users or judges."""
    with ScriptedServer(answer) as server:
        for name, sizes in (("pilot", SMALL), ("large", LARGE)):
            cfg = served(*ROWS, *sizes, url=server.url)
            before = len(server.bodies)
            play(runs.claim(cfg, 0, tmp_path / name, "smoke"), monkeypatch)
    known = pilot.measure([tmp_path / "pilot"])
    own = plan.compare(served(*ROWS, *SMALL, url=server.url), tmp_path / "pilot", known)
    for name, (predicted, actual) in own.items():
        assert predicted == pytest.approx(actual, rel=1e-6), name
    found = plan.compare(cfg, tmp_path / "large", known)
    assert found["requests"][1] == len(server.bodies) - before
    for name, (predicted, actual) in found.items():
        print(f"{name}: planned {predicted:,.0f}, asked {actual:,.0f}, {predicted / actual - 1:+.1%}")
        assert predicted == pytest.approx(actual, rel=0.1), name


@pytest.mark.parametrize("made", ["{}", "[]", '{"params": {"run": 1}}'])
def test_a_record_of_something_else_is_no_pilot(tmp_path, made):
    (tmp_path / "record.json").write_text(made)
    with pytest.raises(InputError, match=f"{tmp_path}: no pilot"):
        pilot.measure([tmp_path])


USAGE = ["7", '{"sent": 1, "notebook": "n"}', '{"sent": "x", "notebook": "n", "role": "r"}']


@pytest.mark.parametrize("line", USAGE)
def test_a_usage_line_of_something_else_is_no_pilot(tmp_path, line):
    runs.claim(served("evaluation.methods=[base]"), 0, tmp_path, "smoke")
    (tmp_path / "metrics").mkdir(exist_ok=True)
    (tmp_path / "metrics/usage.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=f"{tmp_path}: no pilot: record"):
        pilot.measure([tmp_path])


def test_a_run_without_notebooks_in_its_usage_is_no_pilot(tmp_path):
    runs.claim(served("evaluation.methods=[base]"), 0, tmp_path, "smoke")
    with pytest.raises(InputError, match="no pilot"):
        pilot.measure([tmp_path])
