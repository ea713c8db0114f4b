"""ALOE's training users are pairs of profile and personality that share neither with a test user; whoever
asks for more users than there are is told before anything is written."""

import json
from collections import Counter

import pytest

from rlpa_lib import runs
from rlpa_lib.methods import preferences
from rlpa_lib.personas import aloe
from rlpa_lib.personas.sources import count_train, find_near_duplicates, load_personas, tell_train
from rlpa_lib.personas.text import are_near, find_stems
from rlpa_lib.reproduce import runner
from rlpa_lib.rlpa import rollout, training
from rlpa_lib.settings import config, people
from rlpa_lib.settings.config import InputError

JOBS = "baker diver judge clerk miner nurse pilot tailor warden zoologist".split()
SKILLS = "archery bowling curling drumming embroidery fencing golf hiking judo karate".split()
TRAITS = "calm brisk shy loud witty stern kind bold wry frank merry aloof".split()


def who(i):
    town = f"He lives in town{i}ville."
    return f"He is a {20 + i}-year-old {JOBS[i % 10]} who loves {SKILLS[i // 2 % 10]}. {town}"


def nature(j):
    return f"She is {TRAITS[j]} and {TRAITS[j]}ish at {SKILLS[j % 10]}s."


def folder(path, n=20, natures=12, talks=()):
    """An ALOE folder; `talks`: (profile, personality) of its conversations."""
    path.mkdir(exist_ok=True)
    for name, texts in (("profile", map(who, range(n))), ("personality", map(nature, range(natures)))):
        (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, texts)))
    turn = {"user": "u", "assistant": {"preferred": "p", "rejected": "r"}, "chosen": "preferred"}
    lines = [{"profile": a, "personality": b, "conversations": [turn]} for a, b in talks]
    if lines:
        (path / "conversations.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


def settings(path, *more):
    return config.load_config("smoke", ["personas.source=aloe", f"personas.path={path}", *more])


def texts_of(people):
    return {p.description for p in people}, {p.personality.replace("He ", "She ", 1) for p in people}


def test_pairs_share_neither_profile_nor_personality_with_a_test_user(tmp_path):
    cfg = settings(folder(tmp_path)).personas
    train, test = (load_personas(cfg, split, None, 0) for split in ("train", "vanilla"))
    assert len(test) == 5 and len(train) == 15 * aloe.PER_PROFILE == count_train(cfg)
    (known, natures), (others, held) = texts_of(train), texts_of(test)
    assert not known & others and not natures & held and len(held) == 1 and len(natures) == 11
    assert set(Counter(p.description for p in train).values()) == {aloe.PER_PROFILE}
    assert len({p.id for p in train}) == len(train)
    assert find_near_duplicates(train, test) == []
    lines = (tmp_path / "personality.jsonl").read_text().splitlines()
    (tmp_path / "personality.jsonl").write_text("\n".join(reversed(lines)))
    again = [(p.description, p.personality) for p in load_personas(cfg, "train", None, 0)]
    assert sorted(again) == sorted((p.description, p.personality) for p in train), "the texts alone decide"


def test_pairs_of_the_conversations_come_first_and_leave_test_users_out(tmp_path):
    cfg = settings(folder(tmp_path)).personas
    test = load_personas(cfg, "vanilla", None, 0)
    held = aloe.read_texts(cfg).held[0]
    known = sorted({p.description for p in load_personas(cfg, "train", None, 0)})
    theirs = test[0].description
    talks = [
        (known[0], "She has a mind of her own."), (known[0], "She has a mind of her own."),  # twice one pair
        ("She sells quince jam in Oslo.", nature(0)),  # a profile that no other file has
        (theirs, "She is new."), (known[1], held), (known[2], held.replace("She", "He")),
        (f"{known[3]} {theirs}", "She is odd."),  # ALOE's line 7 holds two profiles
    ]
    folder(tmp_path, talks=talks)
    texts = aloe.read_texts(cfg)
    pairs = {(pair.description, pair.personality) for pair in texts.train}
    given = nature(0) not in texts.held
    assert talks[0] in pairs and (talks[2] in pairs) == given and not pairs & set(talks[3:])
    assert len(pairs) == len(texts.train) == 15 * aloe.PER_PROFILE + given
    stems = find_stems(held)
    assert not any(theirs in a or are_near(find_stems(b), stems) for a, b in pairs)
    assert f"({1 + given} from conversations.jsonl, " in texts.made
    assert "5 profiles and 1 personalities are kept for test users" in texts.made
    loaded = preferences.load_preferences(settings(tmp_path), None, None, 0)
    assert {(t.profile, t.personality) for t in loaded} == pairs & set(talks), "SFT and DPO by the same rule"


def test_one_personality_is_everybodys(tmp_path):
    cfg = settings(folder(tmp_path, natures=1)).personas
    assert count_train(cfg) == 15 and "with the one personality" in tell_train(cfg)


ASKED = [
    (["personas.train_users=151"], "personas.train_users: 151 asked for, but .* gives 150 training users"),
    (["personas.test_users=6"], "personas.test_users: 6 asked for, but .* gives 5 test users.*at most 5"),
    (["rollout.users=160", "ppo.minibatch=160"], "rollout.users: 160 asked for.*at most 150"),
    (["grpo.users=200"], "grpo.users: 200 asked for"),
    (["study.personas=6"], "study.personas: 6 asked for"),
    (["study.profiles=300", "user.model=m"], "study.profiles: 300 asked for.*at most 153"),
    (["sft.conversations=151"], "sft.conversations: 151 asked for.*at most 150"),
    (["dpo.conversations=151"], "dpo.conversations: 151 asked for"),
]


@pytest.mark.parametrize(("asked", "told"), ASKED)
def test_too_many_users_are_refused_before_anything_is_written(tmp_path, asked, told):
    few = ["personas.test_users=3", "evaluation.users=3", "study.personas=3"]
    keys = ["personas.source=aloe", f"personas.path={folder(tmp_path / 'aloe')}", *few, *asked]
    with pytest.raises(InputError, match=told):
        runner.reproduce("smoke", 0, tmp_path / "run", overrides=keys)
    if not asked[0].startswith(("study", "sft", "dpo")):  # which a notebook opened alone may not need
        with pytest.raises(InputError, match=told):
            runs.open_run("smoke", 0, tmp_path / "run", keys)
    assert not (tmp_path / "run").exists()


def test_own_personas_of_personachats_form_are_counted_too(tmp_path):
    words = [a + b for a in "amber birch cedar delta".split() for b in "fox elk hen owl bee".split()]
    rows = "".join(f'"I like {w}s.\nI own a {w}house.","I hate {w}rain.\nI eat {w}cake.",x\n' for w in words)
    file = tmp_path / "own.csv"
    file.write_text(f"user 1 personas,user 2 personas,Best Generated Conversation\n{rows}")
    keys = ["personas.source=personachat", f"personas.path={file}", "evaluation.users=8"]
    with pytest.raises(InputError, match="test_users: 74 asked for, but .*own.csv gives 24 test users"):
        runner.reproduce("smoke", 0, tmp_path / "run", overrides=keys)
    assert not (tmp_path / "run").exists()
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:7]))  # the head and two rows
    few = ["personas.test_users=5", "evaluation.users=5", "study.personas=5"]
    more = ["personas.source=aloe", f"personas.path={folder(tmp_path / 'aloe')}", *few]
    with pytest.raises(InputError, match="own.csv gives 4 different personas to the extended benchmark"):
        people.check_people(settings(tmp_path / "aloe", *more, f"personas.personachat_path={file}"), "x")


def test_fewer_users_mean_fewer_cohorts_and_not_more_passes(tmp_path):
    keys = ["rollout.users=40", "ppo.minibatch=160", "ppo.iterations=14"]
    many = settings(folder(tmp_path), *keys)
    once = settings(tmp_path, *keys, "ppo.episodes=1")
    assert [rollout.count_cohorts(cfg) for cfg in (many, once)] == [14, 3]
    assert training.count_updates(once) == 3, "ablations are compared at the real end"
    asked = settings(tmp_path, *keys, "ppo.episodes=2", "personas.train_users=50")
    assert rollout.count_cohorts(asked) == 2
    assert rollout.count_cohorts(settings(tmp_path, *keys, "ppo.episodes=9")) == 14


def test_the_paper_scale_takes_what_there_is():
    for scale in ("paper", "released"):
        cfg = config.load_config(scale)
        assert cfg.personas.train_users is None and cfg.ppo.episodes == 1


@pytest.mark.parametrize("name", ["profile.jsonl", "personality.jsonl"])
def test_a_file_that_is_missing_is_named_with_the_key(tmp_path, name):
    (folder(tmp_path / "aloe") / name).unlink()
    cfg = config.load_config("smoke", ["personas.source=aloe", f"personas.path={tmp_path}/aloe"])
    with pytest.raises(InputError, match=f"personas.path: .*aloe holds no {name}"):
        people.check_people(cfg, "params/smoke.yaml")


def test_chinese_slots_need_a_model_that_writes_them():
    with pytest.raises(InputError, match="personas.language: zh needs personas.conversion=llm"):
        config.load_config("smoke", ["personas.language=zh"])
