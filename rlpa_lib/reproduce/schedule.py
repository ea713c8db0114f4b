"""Which notebook waits for which, and several of them side by side, each in a kernel of its own."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

from rlpa_lib.runs.notebooks import NEEDS

# Minutes at mini on one core of the long ones: they start first, and the others fill the gaps at the end.
MINUTES = {"10_prompting_baselines": 7, "20_ppo": 6, "30_evaluation": 6, "21_ablations": 5, "32_long_term": 3,
           "35_difficult_users": 2}  # fmt: skip


def waits_for(name: str, names: Sequence[str]) -> set[str]:
    """Those of the ordered notebooks `names` that must be finished before `name` starts."""
    return set(NEEDS[name]) & set(names) if name in NEEDS else {other for other in names if other < name}


def run(names: Sequence[str], jobs: int, execute: Callable[[str], Any]) -> Any:
    """Execute `names`, at most `jobs` at once: first those that most others wait for, of these the longest;
    with one job in the order given. `execute` gives None for success; any other outcome starts nothing more
    and is returned once what is running has ended."""
    if jobs == 1:
        return next((failure for name in names if (failure := execute(name)) is not None), None)
    behind = {name: {name} for name in names}  # itself and all that wait for it, directly or through others
    for name in names:  # in order, and nothing waits for a later one
        for waiting in behind.values():
            if waits_for(name, names) & waiting:
                waiting.add(name)
    left = sorted(names, key=lambda name: (-len(behind[name]), -MINUTES.get(name, 0), name))
    finished: set[str] = set()
    failure, running = None, {}
    with ThreadPoolExecutor(jobs) as pool:
        while running or (left and failure is None):
            ready = [name for name in left if failure is None and waits_for(name, names) <= finished]
            for name in ready[: jobs - len(running)]:
                left.remove(name)
                running[pool.submit(execute, name)] = name
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                finished.add(running.pop(future))
                failure = failure if failure is not None else future.result()
    return failure
