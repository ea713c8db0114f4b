"""Which notebook waits for which, and several of them side by side, each in a kernel of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from rlpa_lib.runs.notebooks import NEEDS

Outcome = TypeVar("Outcome")

# Minutes at mini on one core of the long ones: they start first, and the others fill the gaps at the end.
MINUTES = {"10_prompting_baselines": 7, "20_ppo": 6, "30_evaluation": 6, "21_ablations": 5, "32_long_term": 3,
           "35_difficult_users": 2}  # fmt: skip


def waits_for(name: str, names: Sequence[str]) -> set[str]:
    """Those of the ordered notebooks `names` that must be finished before `name` starts."""
    if name not in NEEDS:
        return {other for other in names if other < name}
    return set(NEEDS[name]) & set(names)


def _waiting(name: str, names: Sequence[str]) -> int:
    """How many notebooks wait for this one, directly or through others."""
    behind = {name}
    for other in names:  # in order, and nothing waits for a later one
        if waits_for(other, names) & behind:
            behind.add(other)
    return len(behind) - 1


def run(names: Sequence[str], jobs: int, execute: Callable[[str], Outcome | None]) -> Outcome | None:
    """Execute `names`, at most `jobs` at once: first those that most others wait for, of these the longest;
    with one job in the order given. `execute` gives None for success; any other outcome starts nothing more
    and is returned once what is running has ended."""
    if jobs == 1:
        return next((failure for name in names if (failure := execute(name)) is not None), None)
    left = sorted(names, key=lambda name: (-_waiting(name, names), -MINUTES.get(name, 0), name))
    finished: set[str] = set()
    failure: Outcome | None = None
    running: dict[Future, str] = {}
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
