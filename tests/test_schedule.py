"""Notebooks side by side: none starts before what it needs, and the order of ending does not matter."""

import threading
import time

import pytest

from rlpa_lib.reproduce import schedule
from rlpa_lib.runs.notebooks import NEEDS, list_notebooks

NAMES = [path.stem for path in list_notebooks()]


def test_every_need_is_a_notebook_that_comes_before():
    for name, needs in NEEDS.items():
        assert name in NAMES
        assert all(need in NAMES and need < name for need in needs), name


def test_a_notebook_that_nobody_described_waits_for_all_before_it():
    assert schedule.waits_for("50_report", NAMES) == {name for name in NAMES if name < "50_report"}
    assert schedule.waits_for("30_evaluation", ["20_ppo", "30_evaluation"]) == {"20_ppo"}, (
        "what is not run is not waited for"
    )


def test_one_job_keeps_the_order_and_stops_at_the_first_failure():
    seen = []
    assert (
        schedule.run(
            NAMES, 1, lambda name: seen.append(name) or ("broken" if name.startswith("12") else None)
        )
        == "broken"
    )
    assert seen == [name for name in NAMES if name <= "12_dpo"]


@pytest.mark.parametrize("jobs", [2, 3, 20])
def test_needs_are_finished_first_and_never_more_at_once_than_allowed(jobs):
    lock, running, finished, most = threading.Lock(), set(), set(), 0

    def execute(name):
        nonlocal most
        with lock:
            assert schedule.waits_for(name, NAMES) <= finished, name
            running.add(name)
            most = max(most, len(running))
        time.sleep(0.01 * (1 + hash(name) % 3))
        with lock:
            running.remove(name)
            finished.add(name)

    assert schedule.run(NAMES, jobs, execute) is None
    assert finished == set(NAMES) and 1 < most <= jobs


def test_trainings_that_others_wait_for_come_first():
    seen = []
    schedule.run(NAMES, 2, lambda name: seen.append(name) or time.sleep(0.01))
    assert set(seen[:2]) == {"11_sft", "20_ppo"}
    assert seen.index("22_grpo") < seen.index("00_replication_map")
    assert seen.index("35_difficult_users") < seen.index("33_reasoning_models"), (
        "short ones fill the gaps at the end"
    )
    assert set(schedule.MINUTES) <= set(NAMES)


def test_after_a_failure_what_runs_ends_and_nothing_more_starts():
    started = []

    def execute(name):
        started.append(name)
        time.sleep(0.02 if name == "20_ppo" else 0.2)
        return "broken" if name == "20_ppo" else None

    assert schedule.run(NAMES, 2, execute) == "broken"
    assert len(started) <= 3


def test_an_error_of_the_program_itself_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        schedule.run(NAMES, 2, lambda name: 1 / 0)
