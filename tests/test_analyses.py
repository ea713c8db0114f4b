"""Settings and rows of the analyses: which rows are played, for whom, what is read back, and what it will
cost."""

import pytest

from rlpa_lib import runs
from rlpa_lib.agents import parties
from rlpa_lib.evaluation import long_term, rows
from rlpa_lib.plan import plan
from rlpa_lib.plan.pilot import Pilot
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError


@pytest.fixture
def open_run(tmp_path):
    def make(*overrides):
        return runs.claim(
            config.load_config("smoke", ["evaluation.turns=2", *overrides]), 0, tmp_path / "run",
            "params/smoke.yaml",
        )

    return make


def test_the_papers_settings():
    cfg = config.load_config("paper")
    assert (cfg.conflict.at, cfg.conflict.turns, cfg.conflict.users) == (6, 10, 74)
    assert (cfg.long_term.turns, long_term.list_checkpoints(cfg.long_term.turns, cfg.long_term.every)) == (
        70,
        [1, 10, 20, 30, 40, 50, 60, 70],
    )
    for scale in ("mini", "released", "smol"):
        other = config.load_config(scale)
        assert (other.conflict.at, other.conflict.turns, other.long_term.turns, other.long_term.every) == (
            6, 10, 70, 10,
        )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("conflict.at=2", "conflict.at"),
        ("conflict.at=5", "conflict.at: 5 is behind the last turn, conflict.turns = 4"),
        ("long_term.methods=[base]", "long_term.methods"),  # it writes no profile
        ("difficult.manners=[rude]", "difficult.manners"),
        ("conflict.methods=[base, base]", "conflict.methods: holds a name twice"),
    ],
)
def test_a_bad_setting_is_named(override, message):
    with pytest.raises(InputError) as error:
        config.load_config("smoke", [override])
    assert message in str(error.value)


def test_rows_that_the_run_does_not_evaluate_are_left_out():
    cfg = config.load_config(
        "smoke", ["evaluation.methods=[rlpa, base]", "evaluation.comparators={X: {model: x, method: base}}"]
    )
    assert rows.select_rows(cfg, ["base", "dpo", "rlpa"]) == [rows.Row("base"), rows.Row("rlpa")]
    assert rows.select_rows(cfg, ["dpo"]) == []


def test_the_people_of_an_analysis_are_the_first_of_the_evaluation():
    cfg = config.load_config("smoke", ["evaluation.users=6", "conflict.users=4", "difficult.users=null"])
    everybody = parties.load_people(cfg, "vanilla", 6, 0)
    assert (
        parties.load_analysis_people(cfg, cfg.conflict, 0) == everybody[:4]
        and parties.load_analysis_people(cfg, cfg.difficult, 0) == everybody
    )
    fewer = config.load_config("smoke", ["evaluation.users=3", "conflict.users=4"])
    assert parties.load_analysis_people(fewer, fewer.conflict, 0) == everybody[:3]


def test_rows_of_the_main_evaluation_are_read_back_for_these_people(open_run):
    run = open_run()
    stage, row = rows.Stage(run, [rows.Row("oracle")]), rows.Row("oracle")
    people, user = parties.load_people(run.cfg, "vanilla", 5, 0), parties.make_user(run.cfg, "vanilla", 0)
    judges = (parties.make_evaluation_judge(run.cfg), parties.make_reward_judge(run.cfg))
    assert stage.find_judgements(row, "vanilla", people[:2]) is None  # not played yet
    played = stage.load_judgements(row, "vanilla", people[:4], user, *judges)
    found = stage.find_judgements(row, "vanilla", people[:2])
    assert found == [r for r in played if r["user"] in (people[0].id, people[1].id)] and len(found) == 4
    assert stage.find_judgements(row, "vanilla", people) is None  # the fifth was not played


def test_an_analysis_has_turns_judgements_and_a_log_of_its_own(open_run):
    run = open_run("long_term.max_prompt_tokens=300")
    assert (
        long_term.widen_window(run).cfg.rollout.max_prompt_tokens == 300
        and run.cfg.rollout.max_prompt_tokens == 1024
    )
    stage, people = rows.Stage(run, []), parties.load_people(run.cfg, "vanilla", 3, 0)
    user, judges = (
        parties.make_user(run.cfg, "vanilla", 0),
        (parties.make_evaluation_judge(run.cfg), parties.make_reward_judge(run.cfg)),
    )
    played = stage.load_judgements(
        rows.Row("oracle"), "long_term", people, user, *judges, turns=5, swap=False, log="long_term"
    )
    assert (
        max(r["turn"] for r in played) == 5
        and {r["swapped_score"] for r in played} == {None}
        and {r["n_dropped"] for r in played} == {0}
    )
    lines = run.read_metrics("long_term")
    assert [line["turn"] for line in lines] == [1, 2, 3, 4, 5] and run.read_metrics("evaluation") == []
    assert all(line["memory_mb"] is None or line["memory_mb"] > 10 for line in lines)
    assert (
        stage.load_judgements(
            rows.Row("oracle"), "long_term", people, user, *judges, turns=5, swap=False, log="long_term"
        )
        == played
    )
    assert len(run.read_metrics("long_term")) == 5  # read back, not played again
    # two turns are what the main evaluation has
    assert rows.read_finished(run, "oracle", "long_term") is None


def test_the_plan_counts_the_analyses_by_hand():
    """Users and judges behind a server, four of them; base and RLPA in process."""
    llm = [
        f"{role}.{key}"
        for role in ("user", "judge", "evaluator")
        for key in ("kind=llm", "model=m", "base_url=http://127.0.0.1:9/v1")
    ]
    more = [
        "evaluation.methods=[base, rlpa]", "evaluation.users=4", "run.prompt_set=en",
        "difficult.manners=[terse, reluctant]",
    ]
    known = Pilot()  # no run: every request is made once
    loads = {load.notebook: load for load in plan.plan(config.load_config("smoke", [*llm, *more]), known)}
    asked = {
        name: {role: round(work.requests) for (role, _, _), work in load.asked.items()}
        for name, load in loads.items()
    }
    # Nobody is asked for "Hello"; at turn 1 the profile is empty, and nobody is asked to match it.
    conflict_ = asked["31_preference_conflict"]  # two rows x four users x four turns
    # Greedy answers to "Hello" were judged in 30_evaluation already, so turn 1 comes from the cache.
    assert (conflict_["user"], conflict_["evaluator"]) == (2 * 4 * 3, 2 * 4 * 3)
    assert conflict_["profile_judge"] == 4 * 3 * 3  # the whole profile, the new value, the old value
    # and three checkpoints
    assert asked["32_long_term"]["user"] == 4 * 5 and asked["32_long_term"]["profile_judge"] == 4 * (5 + 3)
    assert asked["35_difficult_users"]["user"] == 2 * 2 * 4 * 2
    assert (
        loads["32_long_term"].own.requests == 4 * 6
        and loads["31_preference_conflict"].own.requests == 2 * 4 * 4
    )
