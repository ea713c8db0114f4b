"""Whether a run's source has as many users as its settings ask for."""

from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import SOURCES, Supply, resolve
from rlpa_lib.settings.schema import Config


def check_people(cfg: Config, label: str, *, study: bool = False) -> None:
    """InputError when a run would ask for more users than its source has: key, what there is, what to set.
    Reads the persona files, whose own errors come first. `study`: whether notebook 34 is to run."""
    given = cfg.personas
    count, supplies = resolve(SOURCES[given.source].count), dict[str, Supply]()
    # a model rewrites the Vanilla users' profiles, then those of training users
    by_model = cfg.user.model is not None and not SOURCES[given.source].scripted
    others = cfg.evaluation.users if by_model else cfg.study.profiles
    asked = [
        ("personas.train_users", "train", given.train_users or 1, 0),
        ("rollout.users", "train", cfg.rollout.users, 0),
        ("grpo.users", "train", cfg.grpo.users if cfg.grpo.rounds else 1, 0),
        ("personas.test_users", "vanilla", given.test_users, 0),
        ("personas.test_users", "extended", given.test_users, 0),
    ]
    if study:
        asked.append(("study.personas", "vanilla", cfg.study.personas, 0))
        asked.append(("study.profiles", "train", cfg.study.profiles, others))
    for key, split, n, before in asked:
        supply = supplies[split] = supplies.get(split) or count(given, split)
        if n - before > supply.n and not supply.more:
            most = f"at most {supply.n + before}"
            value = "null (all of them)" if key == "personas.train_users" else most
            how = f"set {key} to {value}" if supply.n else "nobody is left"
            raise InputError(f"{label}: {key}: {n:,} asked for, but {supply.how}; {how}")
