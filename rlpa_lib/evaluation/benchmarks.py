"""The two benchmarks of section 4.1: Vanilla (the ten slots, held-out content) and Extended (free slots), and the proof that they share
nobody with training or with each other.

The paper announces 74 users for both, but the numbers of its table 5 fit 73: `evaluation.extended_users` chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from rlpa_lib.agents import parties
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.personas.sources import NEAR_DUPLICATE, find_near_duplicates, hash_split
from rlpa_lib.runs.run import Run
from rlpa_lib.settings.config import Config, InputError


def load_benchmarks(run: Run) -> dict[str, list[Persona]]:
    """The scored users of each benchmark in `evaluation.benchmarks`, always from the start of its test set.

    InputError: a persona file is missing, empty or broken, or holds too few personas.
    """
    cfg = run.cfg
    sizes = {"vanilla": cfg.evaluation.users, "extended": cfg.evaluation.extended_users or cfg.evaluation.users}
    return {name: parties.load_people(cfg, name, sizes[name], run.seed, run) for name in cfg.evaluation.benchmarks}


def disjointness(
    cfg: Config, seed: int, benchmarks: dict[str, Sequence[Persona]], run: Run | Path | None = None
) -> dict[str, dict[str, Any]]:
    """Size, hash, and what is shared, of the training users and each benchmark; for the run's record.

    `seen_values` is the share of the test users' (slot, value) items that some training user has, too: values may be shared, persons
    may not. `run` is needed where a language model fills the slots. InputError: a test user is, word for word or nearly (at least 60 % of
    the content words), a training user or a user of the other benchmark.
    """
    train = parties.load_people(cfg, "train", cfg.personas.train_users, seed, run)
    known = {item for person in train for item in person.profile.items}
    facts: dict[str, dict[str, Any]] = {"train": {"n": len(train), "hash": hash_split(train)}}
    for name, people in benchmarks.items():
        refuse_shared("train", train, name, people)
        items = [item for person in people for item in person.profile.items]
        facts[name] = {"n": len(people), "hash": hash_split(people), "find_near_duplicates": 0,
                       "slots": len({slot for slot, _ in items}), "seen_values": sum(i in known for i in items) / len(items)}  # fmt: skip
    # With PersonaChat as the only source one test set stands for both benchmarks.
    pairs = combinations(benchmarks.items(), 2) if cfg.personas.source != "personachat" else ()
    for (name, people), (other, others) in pairs:
        refuse_shared(other, others, name, people)
    return facts


def refuse_shared(where: str, known: Sequence[Persona], name: str, people: Sequence[Persona]) -> None:
    """InputError: somebody of `people` (of benchmark `name`) is, exactly or nearly, somebody of `known` (of split `where`)."""
    profiles = {person.profile.items: person.id for person in known}
    for person in people:
        if person.profile.items in profiles:
            raise InputError(f"personas: {person.id} of {name} has the very profile of {profiles[person.profile.items]} of {where}")
    near = find_near_duplicates(people, known)
    if near:
        mine, theirs = near[0]
        raise InputError(
            f"personas: {mine.id} of {name} shares {NEAR_DUPLICATE:.0%} or more of its words with {theirs.id} of {where} "
            f"({len(near)} such pairs); a test user must not be known from elsewhere"
        )
