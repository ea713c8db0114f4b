"""Benchmarks: sizes, 73 or 74 users, and proof that test users are nobody's neighbours."""

import dataclasses

import pytest

from rlpa_lib import runs
from rlpa_lib.dialogue.profile import SLOTS
from rlpa_lib.evaluation import benchmarks
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError


@pytest.fixture
def open_run(tmp_path):
    def make(*overrides, scale="smoke"):
        return runs.claim(
            config.load_config(scale, list(overrides)), 0, tmp_path / "run", f"params/{scale}.yaml"
        )

    return make


def test_sizes_are_chosen_apart_and_a_smaller_one_is_a_beginning(open_run):
    run = open_run("evaluation.users=5", "evaluation.extended_users=4")
    small = benchmarks.load_benchmarks(run)
    assert {name: len(people) for name, people in small.items()} == {"vanilla": 5, "extended": 4}
    cfg = config.load_config("smoke", ["evaluation.users=74", "evaluation.extended_users=73"])
    large = benchmarks.load_benchmarks(dataclasses.replace(run, cfg=cfg))
    assert {name: len(people) for name, people in large.items()} == {"vanilla": 74, "extended": 73}
    assert all(large[name][: len(people)] == people for name, people in small.items())


def test_the_miniature_shares_nobody_and_extended_is_new_in_every_way(open_run):
    run = open_run("evaluation.users=74")
    people = benchmarks.load_benchmarks(run)
    facts = benchmarks.disjointness(run.cfg, 0, people)
    assert facts["train"]["n"] == 3821 and facts["vanilla"]["n"] == facts["extended"]["n"] == 74
    assert len({f["hash"] for f in facts.values()}) == 3
    assert facts["extended"]["seen_values"] == 0  # unseen slots, so unseen values
    # ages and genders recur, two of ten slots; nothing else does
    assert facts["vanilla"]["seen_values"] == 0.2
    assert not {s for p in people["extended"] for s in p.profile.slots()} & set(SLOTS) - {
        "Interests", "Age", "Gender",
    }
    planted = {**people, "extended": [*people["extended"], people["vanilla"][0]]}  # a user of both benchmarks
    with pytest.raises(
        InputError,
        match=f"{people['vanilla'][0].id} of vanilla has the very profile of "
        f"{people['vanilla'][0].id} of extended",
    ):
        benchmarks.disjointness(
            run.cfg, 0, {"vanilla": people["vanilla"][:1], "extended": planted["extended"][-1:]}
        )


def test_somebody_known_from_elsewhere_is_refused():
    train, people = builtin_personas("train", 5, 0), builtin_personas("vanilla", 3, 0)
    benchmarks.refuse_shared("train", train, "vanilla", people)
    near = dataclasses.replace(people[0], id="copy", description=f"{train[2].description} He whistles.")
    with pytest.raises(
        InputError, match=f"copy of vanilla shares 60% or more of its words with {train[2].id} of train"
    ):
        benchmarks.refuse_shared("train", train, "vanilla", [*people, near])
    same = dataclasses.replace(people[0], id="copy", profile=train[2].profile)
    with pytest.raises(InputError, match=f"copy of vanilla has the very profile of {train[2].id} of train"):
        benchmarks.refuse_shared("train", train, "vanilla", [*people, same])


def test_an_empty_persona_file_is_named(open_run, tmp_path):
    for name in ("profile.jsonl", "personality.jsonl"):
        (tmp_path / name).write_text("")
    run = open_run("personas.source=aloe", f"personas.path={tmp_path}")
    with pytest.raises(InputError, match="profile.jsonl: holds no text"):
        benchmarks.load_benchmarks(run)
    (tmp_path / "chat.csv").write_text("user 1 personas,user 2 personas\n")
    run = dataclasses.replace(
        run,
        cfg=config.load_config(
            "smoke", ["personas.source=personachat", f"personas.path={tmp_path / 'chat.csv'}"]
        ),
    )
    with pytest.raises(InputError, match="chat.csv: holds no personas"):
        benchmarks.load_benchmarks(run)
