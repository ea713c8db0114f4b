"""The benchmarks of section 4.1: Vanilla (ten slots, held-out content) and Extended (free slots), which share
nobody with training or with each other. The paper announces 74 users for both, its table 5 fits 73:
`evaluation.extended_users` chooses."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from rlpa_lib.agents import parties
from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.personas.sources import NEAR_DUPLICATE, find_near_duplicates, hash_split
from rlpa_lib.runs.run import Run
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.kinds import SOURCES


def load_benchmarks(run: Run) -> dict[str, list[Persona]]:
    """The scored users of each benchmark in `evaluation.benchmarks`, always from the start of its test set.
    InputError: a persona file is missing, empty or broken, or holds too few personas."""
    cfg = run.cfg
    n_users, n_extended = cfg.evaluation.users, cfg.evaluation.extended_users or cfg.evaluation.users
    sizes = {name: n_extended if name == "extended" else n_users for name in cfg.evaluation.benchmarks}
    return {name: parties.load_people(cfg, name, n, run.seed, run) for name, n in sizes.items()}


def disjointness(
    cfg: Config, seed: int, benchmarks: dict[str, Sequence[Persona]], run: Run | Path | None = None
) -> dict[str, dict[str, Any]]:
    """Size, hash, and what is shared, of the training users and each benchmark; for the run's record.
    `seen_values` is the share of the test users' (slot, value) items that some training user has, too. `run`
    is needed where a language model fills the slots. InputError: a test user is, exactly or nearly (60 % of
    the content words), a training user or a user of the other benchmark."""
    train = parties.load_people(cfg, "train", cfg.personas.train_users, seed, run)
    known = {item for person in train for item in person.profile.items}
    facts: dict[str, dict[str, Any]] = {"train": {"n": len(train), "hash": hash_split(train)}}
    for name, people in benchmarks.items():
        refuse_shared("train", train, name, people)
        items = [item for person in people for item in person.profile.items]
        seen = sum(item in known for item in items) / len(items)
        facts[name] = {"n": len(people), "hash": hash_split(people), "near_duplicates": 0,
                       "slots": len({slot for slot, _ in items}), "seen_values": seen}  # fmt: skip
    pairs = () if SOURCES[cfg.personas.source].one_test_set else combinations(benchmarks.items(), 2)
    for (name, people), (other, others) in pairs:
        refuse_shared(other, others, name, people)
    return facts


def refuse_shared(where: str, known: Sequence[Persona], name: str, people: Sequence[Persona]) -> None:
    """InputError: one of `people` (benchmark `name`) is, or nearly is, one of `known` (split `where`)."""
    profiles = {person.profile.items: person.id for person in known}
    for person in people:
        if twin := profiles.get(person.profile.items):
            raise InputError(f"personas: {person.id} of {name} has the very profile of {twin} of {where}")
    if near := find_near_duplicates(people, known):
        mine, theirs = near[0]
        raise InputError(
            f"personas: {mine.id} of {name} shares {NEAR_DUPLICATE:.0%} or more of its words with "
            f"{theirs.id} of {where} ({len(near)} such pairs); a test user must not be known from elsewhere"
        )
