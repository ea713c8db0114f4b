"""Extended ALOE: the model names the slots of PersonaChat's users, in the run's language."""

import json
import re
from collections import deque

import pytest
from scripted_server import ScriptedServer

from rlpa_lib import runs
from rlpa_lib.agents import conversion, parties
from rlpa_lib.agents.conversion import ConversionFailed, complain_name
from rlpa_lib.dialogue.profile import parse_reply, render_reply
from rlpa_lib.plan import plan
from rlpa_lib.settings import config

NAMES = "宠物 职业 最爱的食物 害怕的事 梦想".split()
TWO = '"I like {w} {w}boats.\nThe {w}moon is far.","I hate {w}rain.\nI eat {w}cake.\nI have a {w}dog.",x\n'
WORDS = "amber birch cedar delta ember fjord".split()


def personachat(tmp_path):
    rows = "".join(TWO.replace("{w}", word) for word in WORDS)
    file = tmp_path / "chat.csv"
    file.write_text(f"user 1 personas,user 2 personas,Best Generated Conversation\n{rows}")
    return file


def settings(url, *more):
    keys = ["personas.conversion=llm", "user.model=m", f"user.base_url={url}", *more]
    return config.load_config("smoke", keys)


def n_facts(body):
    return int(re.search(r"FreeSlots_(\d+)", body["response_format"]["json_schema"]["name"])[1])


def chinese(body):
    return json.dumps(facts(*((NAMES[i], f"内容{i + 1}") for i in range(n_facts(body)))))


def test_personachat_is_converted_by_the_model_in_the_runs_language(tmp_path):
    keys = [f"personas.personachat_path={personachat(tmp_path)}", "personas.language=zh"]
    with ScriptedServer(chinese) as server:
        for source in ("aloe", "personachat"):
            where = [f"personas.source={source}", f"personas.path={personachat(tmp_path)}"]
            cfg = settings(server.url, *keys, *where)
            run = runs.claim(cfg, 0, tmp_path / source, "smoke")
            people = parties.load_people(cfg, "extended", 5, 0, run)
            assert [len(p.profile) for p in people] == [2 + p.description.count("I hate") for p in people]
            for person in people:
                assert all(slot in NAMES for slot in person.profile.slots()) and not person.profile.filled
                assert all("内容" in value for _, value in person.profile.items)
                assert parse_reply(render_reply(person.profile, "好")).profile.items == person.profile.items
    shown = server.bodies[0]["messages"]
    assert "slot" in shown[0]["content"] and "画像" in shown[0]["content"]
    assert "moon is far" in "".join(body["messages"][1]["content"] for body in server.bodies)


def convert(server, tmp_path, answers, language="en"):
    told = deque(answers)
    cfg = settings(server.url, f"personas.language={language}")
    run = runs.claim(cfg, 0, tmp_path / "run", "smoke")
    endpoint = parties.open_endpoint(cfg, "converter", run)
    words = parties.JudgePrompt.read(parties.prompt_files.load_prompt("convert_free", language, None))
    server.script = lambda body: json.dumps(told.popleft())
    return conversion.convert_freely([("I own a cat. I like pie.", 2)], endpoint, words, language=language)


def facts(*pairs):
    return {f"fact_{i}": {"slot": s, "value": v} for i, (s, v) in enumerate(pairs, start=1)}


GOOD = facts(("Pet", "a cat"), ("Favorite food", "pie"))


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (facts(("Fact 1", "a cat"), ("Favorite food", "pie")), "- fact_1: has no slot name"),
        (facts(("Pet", "a cat"), ("Other", "pie")), "- fact_2: has no slot name"),
        (facts(("Pet: cat", "a cat"), ("Food", "pie")), "- fact_1: has no slot name"),
        (facts(("Pet", "not mentioned"), ("Food", "pie")), "- fact_1: says that nothing is known"),
        (facts(("宠物", "a cat"), ("Food", "pie")), "- fact_1: is not in English"),
    ],
)
def test_what_cannot_stand_is_asked_for_again(tmp_path, first, told):
    with ScriptedServer(None) as server:
        [profile] = convert(server, tmp_path, [first, GOOD])
    assert profile.items == (("Pet", "a cat"), ("Favorite food", "pie"))
    assert told in server.bodies[1]["messages"][-1]["content"]


def test_a_model_that_keeps_to_it_stops_the_run(tmp_path):
    bad = facts(("Fact 1", "a cat"), ("Fact 2", "pie"))
    with (
        ScriptedServer(None) as server,
        pytest.raises(ConversionFailed, match="number 1: fact_1 has no slot name"),
    ):
        convert(server, tmp_path, [bad] * 3)


def test_a_name_given_twice_is_numbered_and_a_fact_told_twice_counts_once(tmp_path):
    three = facts(("Pet", "a cat"), ("Pet", "a dog"))
    with ScriptedServer(None) as server:
        [profile] = convert(server, tmp_path, [three])
    assert profile.items == (("Pet", "a cat"), ("Pet 2", "a dog"))
    with ScriptedServer(None) as server:
        [profile] = convert(server, tmp_path / "again", [facts(("Pet", "a cat"), ("Pet", "a cat"))])
    assert profile.items == (("Pet", "a cat"),)


def test_names_by_hand():
    assert [complain_name(n, "zh") for n in ("宠物", "事实一", "事实 2", "其他", "Pet", "")] == [
        None, "name", "name", "name", "language", "name",
    ]  # fmt: skip
    assert [complain_name(n, "en") for n in ("Pet", "Fact", "slot_3", "Hobby 2", "x" * 41)] == [
        None, "name", "name", "name", "name",
    ]  # fmt: skip


def test_built_in_extended_users_are_translated_for_a_chinese_run(tmp_path):
    cfg = settings("http://127.0.0.1:9/v1", "personas.source=aloe", f"personas.path={tmp_path}")
    chosen = {split: parties.pick_conversion(cfg, split) for split in ("train", "vanilla", "extended")}
    assert chosen == {"train": "convert", "vanilla": "convert", "extended": None}
    zh = config.change_config(cfg, ["personas.language=zh"], "x")
    assert parties.pick_conversion(zh, "extended") == "convert_free"
    rules = config.change_config(cfg, ["personas.conversion=rules"], "x")
    assert parties.pick_conversion(rules, "train") is None


def test_the_plan_counts_extended_users_too(tmp_path):
    keys = ["personas.source=aloe", "personas.train_users=100", "user.base_url=http://127.0.0.1:9/v1"]
    more = ["personas.personachat_path=x.csv"]
    counted = []
    for changes in (keys, keys + more, [*keys, *more, "personas.source=personachat"]):
        [load] = plan.plan(settings("http://127.0.0.1:9/v1", *changes), only=("01_profiles_and_data",))
        counted.append(round(load.total().requests))
    assert counted == [174, 248, 174]
