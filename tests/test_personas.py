"""Persona readers on small files with the real files' defects, splits, statistics and slot conversion
(appendix C.2)."""

import json
from types import SimpleNamespace

import pytest

from rlpa_lib.dialogue.persona import Persona
from rlpa_lib.dialogue.profile import SLOTS, Profile, parse_reply, render_reply
from rlpa_lib.personas.extraction import extract_free_profile, extract_profile, find_evidence
from rlpa_lib.personas.sources import (
    count_slots,
    find_near_duplicates,
    hash_split,
    load_personas,
    read_aloe,
    read_personachat,
)
from rlpa_lib.personas.text import adjust_pronouns
from rlpa_lib.settings.config import InputError

ANNA = (
    "She is a 41-year-old tram driver who enjoys rowing and baking her own bread. "
    "She is divorced with two small sons."
)
BEN = (
    "He is a 19-year-old college student studying geology. He collects fossils. "
    "He lives in a dorm with two friends."
)
CARA = "She is a 63-year-old retired judge. She is widowed and has a pet goose named Otto. She loves to swim."
CALM = "She is calm, never losing her temper. She is honest. Friends trust her."


def jsonl(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def aloe(tmp_path):
    jsonl(tmp_path / "profile.jsonl", json.dumps(ANNA), json.dumps(BEN) + json.dumps(CARA), "")
    jsonl(tmp_path / "personality.jsonl", json.dumps(CALM), json.dumps("He is quick and bold."))
    return tmp_path


def settings(path, source="aloe", personachat_path=None):
    return SimpleNamespace(
        source=source, path=path and str(path), personachat_path=personachat_path and str(personachat_path)
    )


def test_two_texts_in_a_line_are_two_profiles(aloe):
    anna, ben, cara = read_aloe(aloe / "profile.jsonl", aloe / "personality.jsonl")
    assert [p.description for p in (anna, ben, cara)] == [ANNA, BEN, CARA]
    assert len({anna.id, ben.id, cara.id}) == 3
    assert ben.personality == "He is quick and bold."
    assert cara.personality == anna.personality == CALM, "personalities go round"
    assert all(p.profile.slots() == SLOTS for p in (anna, ben, cara))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"no end', "not JSON"), ('{"a": 1}', "dict"), ("7", "int"), ('"ok" trailing', "not JSON"),
        ('"  "', "empty"),
    ],
)
def test_a_broken_line_is_named(aloe, line, message):
    path = jsonl(aloe / "profile.jsonl", json.dumps(ANNA), line)
    with pytest.raises(InputError, match=rf"profile\.jsonl: line 2: .*{message}"):
        read_aloe(path, aloe / "personality.jsonl")


def test_unreadable_files_are_named(aloe):
    with pytest.raises(InputError, match="nowhere.jsonl"):
        read_aloe(aloe / "nowhere.jsonl", aloe / "personality.jsonl")
    with pytest.raises(InputError, match="holds no text"):
        read_aloe(jsonl(aloe / "empty.jsonl", ""), aloe / "personality.jsonl")
    (aloe / "latin.jsonl").write_bytes(b'"ok"\n"caf\xe9"\n')
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        read_aloe(aloe / "latin.jsonl", aloe / "personality.jsonl")


HEADER = "user 1 personas,user 2 personas,Best Generated Conversation\n"


def test_personachat_gives_each_persona_once(tmp_path):
    path = tmp_path / "chat.csv"
    rows = (
        '"I have a dog named rex.\nI am a nurse.","I hate rain.",x\n'
        '"I hate rain.","I like to bake.\nMy favorite color is red.",y\n'
    )
    path.write_text(HEADER + rows, encoding="utf-8")
    first, second, third = read_personachat(path)
    assert first.description == "I have a dog named rex. I am a nurse."
    assert first.profile.items == (("Pet", "a dog named rex"), ("Job", "nurse"))
    assert second.profile.items == (("Dislike", "rain"),)
    assert third.profile.items == (("Hobby", "baking"), ("Favorite Color", "red"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user 1 personas,other\na,b\n", "column 'user 2 personas' is missing"),
        ("", "column 'user 1 personas' is missing"),
        (HEADER, "holds no personas"),
        (HEADER + '"a.","",x\n', "line 2: column 'user 2 personas' is empty"),
        (HEADER + '"a."\n', "line 2: column 'user 2 personas' is empty"),
        (HEADER + '"a.","b.",x\n"never closed\n', "not CSV"),
    ],
)
def test_broken_personachat_files_are_named(tmp_path, text, message):
    path = tmp_path / "chat.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"chat.csv: .*{message}"):
        read_personachat(path)


def many(tmp_path, n=20):
    jobs = "baker diver judge clerk miner nurse pilot tailor warden zoologist".split()
    hobbies = "archery bowling curling drumming embroidery fencing golf hiking judo karate".split()
    towns = [f"town{i}ville" for i in range(n)]
    texts = [
        f"He is a {20 + i}-year-old {jobs[i % 10]} who loves {hobbies[i // 2 % 10]}. He lives in {towns[i]}."
        for i in range(n)
    ]
    jsonl(tmp_path / "profile.jsonl", *map(json.dumps, texts))
    jsonl(tmp_path / "personality.jsonl", json.dumps(CALM))
    return tmp_path


def test_splits_share_nobody_and_depend_on_the_texts_alone(tmp_path):
    cfg = settings(many(tmp_path))
    train, test = load_personas(cfg, "train", None, 0), load_personas(cfg, "vanilla", None, 0)
    assert len(test) == 5 and 0 < len(train) <= 15
    assert not {p.description for p in train} & {p.description for p in test}
    assert find_near_duplicates(train, test) == []
    assert load_personas(cfg, "vanilla", 2, 9) == test[:2]
    assert hash_split(load_personas(cfg, "train", None, 7)) == hash_split(train)
    assert {p.id for p in load_personas(cfg, "train", 3, 7)} <= {p.id for p in train}
    lines = (tmp_path / "profile.jsonl").read_text().splitlines()
    jsonl(tmp_path / "profile.jsonl", *reversed(lines))
    assert {p.description for p in load_personas(cfg, "vanilla", None, 0)} == {p.description for p in test}


def test_a_near_copy_of_a_test_user_is_kept_out_of_training(tmp_path):
    cfg = settings(many(tmp_path))
    test = load_personas(cfg, "vanilla", None, 0)
    copies = [p.description.replace("He lives", "He now lives") for p in test]
    lines = (tmp_path / "profile.jsonl").read_text().splitlines()
    jsonl(tmp_path / "profile.jsonl", *lines, *map(json.dumps, copies))
    train, test = load_personas(cfg, "train", None, 0), load_personas(cfg, "vanilla", None, 0)
    assert find_near_duplicates(train, test) == []


def test_asking_for_too_many_says_how_many_there_are(tmp_path):
    with pytest.raises(InputError, match="split vanilla of source aloe has 5"):
        load_personas(settings(many(tmp_path)), "vanilla", 74, 0)
    with pytest.raises(InputError, match="train"):
        load_personas(settings(tmp_path), "train", 21, 0)
    with pytest.raises(InputError, match="unknown split"):
        load_personas(settings(tmp_path), "test", 1, 0)
    with pytest.raises(InputError, match="personas.path"):
        load_personas(settings(None), "train", 1, 0)
    with pytest.raises(InputError, match="not a folder"):
        load_personas(settings(tmp_path / "profile.jsonl"), "train", 1, 0)


def test_personachat_as_a_source_keeps_its_test_users_out_of_training(tmp_path):
    words = "amber birch cedar delta ember fjord grove haven inlet jolly".split()
    rows = "".join(
        f'"I like {a} {a}boats.\nI own a {a}house.","I hate {a}rain.\nI eat {a}cake.",x\n' for a in words
    )
    (tmp_path / "chat.csv").write_text(HEADER + rows, encoding="utf-8")
    cfg = settings(tmp_path / "chat.csv", "personachat")
    train, test = load_personas(cfg, "train", None, 0), load_personas(cfg, "extended", None, 0)
    assert train and test and not {p.id for p in train} & {p.id for p in test}
    aloe_cfg = settings(many(tmp_path), "aloe", tmp_path / "chat.csv")
    assert len(load_personas(aloe_cfg, "extended", None, 0)) == 20


def test_slot_statistics_count_and_share():
    full = Profile((("Age", "20"), ("Location", "Rome")), frozenset({"Location"}))
    personas = [Persona("a", "", "", full), Persona("b", "", "", Profile((("Age", "30"),)))]
    table = count_slots(personas)
    assert table.values.tolist() == [["Age", 2, 1.0, 0.0], ["Location", 1, 0.5, 1.0]]
    assert list(table.columns) == ["slot", "count", "share", "filled_share"]


def test_split_hash_ignores_order_and_ids_but_not_content():
    a, b = Persona("a", "x", "", Profile()), Persona("b", "y", "", Profile())
    assert hash_split([a, b]) == hash_split([b, Persona("z", "x", "", Profile())])
    assert hash_split([a]) != hash_split([b])


def test_evidence_by_hand():
    assert find_evidence(ANNA, CALM) == {
        "Age": "41", "Gender": "female", "Interests": "rowing and baking bread",
        "Personality Traits": "calm and honest", "Occupation": "tram driver", "Marital Status": "divorced",
        "Family Background": "two small sons",
    }
    ben = find_evidence(BEN, "")
    assert (
        ben["Educational Background"] == "an unfinished degree in geology"
        and ben["Interests"] == "collecting fossils"
    )
    assert ben["Location"] == "a dorm with two friends" and ben["Occupation"] == "college student"
    cara = find_evidence(CARA, "")
    assert (cara["Marital Status"], cara["Interests"], cara["Others"]) == (
        "widowed", "swimming", "a pet goose named Otto",
    )


def test_statements_about_relatives_are_not_about_the_person():
    found = find_evidence(
        "He is single and has an older sister who is married and who loves chess. He likes judo.", ""
    )
    assert found["Marital Status"] == "single" and found["Interests"] == "judo"


def test_slots_without_evidence_are_filled_and_listed():
    profile = extract_profile(ANNA, CALM, seed=1)
    assert profile.slots() == SLOTS
    assert profile.filled == {"Educational Background", "Location", "Others"}
    assert profile == extract_profile(ANNA, CALM, seed=1), "the same texts give the same profile"
    assert len({extract_profile(ANNA, CALM, seed=s).get("Location") for s in range(8)}) > 1
    assert parse_reply(render_reply(profile, "ok")).profile.items == profile.items


def test_empty_texts_are_filled_throughout():
    assert extract_profile("", "").filled == set(SLOTS)


@pytest.mark.parametrize(
    ("text", "about", "expected"),
    [
        (
            "She loves her friends and they trust her.", "He is 30.",
            "He loves his friends and they trust him.",
        ),
        ("He keeps his calm; friends ask him.", "She is 30.", "She keeps her calm; friends ask her."),
        ("She is kind and she helps.", "A non-binary baker.", "They are kind and they help."),
        ("She is kind.", "A 30-year-old baker.", "She is kind."),
    ],
)
def test_personality_takes_the_gender_of_the_profile(text, about, expected):
    assert adjust_pronouns(text, about) == expected


def test_free_slots_number_repeats_and_keep_odd_sentences():
    lines = [
        "I like to sing.", "I like to skate.", "The moon is far.", "Time: flies.", "I love pie.",
        "I love pie.",
    ]
    profile = extract_free_profile(lines)
    assert profile.items[:2] == (("Hobby", "singing"), ("Hobby 2", "skating"))
    assert profile.get("Fact 1") == "the moon is far" and profile.get("Fact 2") == "time: flies"
    assert len(profile) == 5
