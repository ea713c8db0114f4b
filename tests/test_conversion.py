"""Slot conversion by a model behind a real local server: what is refused, how it is asked for again, and what
comes out."""

import json
import re
from pathlib import Path

import pytest
from scripted_server import ScriptedServer

from rlpa_lib import runs
from rlpa_lib.agents import conversion, parties
from rlpa_lib.agents.asking import JudgePrompt
from rlpa_lib.agents.conversion import ConversionFailed, complaint
from rlpa_lib.client.chat import BadAnswer
from rlpa_lib.dialogue import prompt_files
from rlpa_lib.dialogue.profile import SLOTS
from rlpa_lib.evaluation import benchmarks
from rlpa_lib.methods import preferences
from rlpa_lib.mini.personas import builtin_personas
from rlpa_lib.personas.sources import hash_split, load_personas
from rlpa_lib.runs.storage import hash_json
from rlpa_lib.settings import config

VALUES = (
    "34|female|rock climbing|a degree in nursing|talkative|"
    "pediatric nurse|single|a twin sister|Lisbon|snow globes"
)
GOOD = dict(zip(SLOTS, VALUES.split("|"), strict=True))
CHINESE_VALUES = "34|女|攀岩|护理学本科|健谈|儿科护士|未婚|有一个双胞胎妹妹|里斯本|收集雪景球"
CHINESE = dict(zip(SLOTS, CHINESE_VALUES.split("|"), strict=True))
TEXTS = ("She is a nurse from Lisbon.", "He is talkative.")


def answer(values, invented=(), **changed):
    filled = values | {slot.replace("_", " "): value for slot, value in changed.items()}
    return json.dumps(
        {
            slot.lower().replace(" ", "_"): {"value": value, "stated": slot not in invented}
            for slot, value in filled.items()
        }
    )


def endpoint(url, folder, *more):
    from rlpa_lib.client.endpoint import endpoint_for

    keys = ["user.model=m", f"user.base_url={url}", "endpoint.retries=0", "endpoint.parse_retries=0", *more]
    cfg = config.load_config("smoke", keys)
    return endpoint_for(cfg, "converter", folder)


def convert(server, folder, texts=(TEXTS,), language="en"):
    prompt = JudgePrompt.read(prompt_files.load_prompt("convert", language))
    return conversion.convert(list(texts), endpoint(server.url, folder), prompt, language=language)


def test_ten_slots_and_which_of_them_were_invented(tmp_path):
    with ScriptedServer(lambda body: answer(GOOD, invented=("Location", "Others"))) as server:
        [profile] = convert(server, tmp_path)
    assert profile.items == tuple(GOOD.items()) and profile.filled == {"Location", "Others"}
    assert "She is a nurse from Lisbon." in server.bodies[0]["messages"][1]["content"]


NOTHING = (
    "not mentioned|Not mentioned in the text.|Unknown|N/A|none|unspecified|not specified|No information|"
    "no details are given here|?|-|...|This was not explicitly stated.|undisclosed|not available|“unknown”"
)


@pytest.mark.parametrize("value", NOTHING.split("|"))
def test_english_ways_to_say_nothing_are_refused(value):
    assert complaint("Location", value, "en") == "absent"


@pytest.mark.parametrize(
    "value",
    "未提及|未知|不详|无|暂无|文中没有提到|未说明。|信息不足|资料未提供|保密|不明|没有相关信息".split("|"),
)
def test_chinese_ways_to_say_nothing_are_refused(value):
    assert complaint("Location", value, "zh") == "absent"


@pytest.mark.parametrize(
    ("slot", "value", "language", "why"),
    [
        ("Occupation", "", "en", "empty"),
        ("Interests", "skiing (inferred from frequent trips)", "en", "remark"),
        ("Interests", "滑雪（根据经常旅行推断）", "zh", "remark"), ("Location", "里斯本", "en", "language"),
        ("Location", "Lisbon", "zh", "language"), ("Others", "x" * 201, "en", "long"),
        ("Age", "34", "zh", None), ("Marital Status", "未婚", "zh", None),
        ("Others", "afraid of the unknown", "en", None), ("Others", "not known for patience", "en", None),
        ("Family Background", "no siblings", "en", None), ("Location", "Lisbon (Portugal)", "en", None),
        ("Interests", "写 Python 程序", "zh", None), ("Others", "无糖可乐爱好者", "zh", None),
    ],
)
def test_what_can_stand_and_what_cannot(slot, value, language, why):
    assert complaint(slot, value, language) == why


def test_a_refused_value_is_asked_for_again_with_the_reason(tmp_path):
    def script(body):
        return (
            answer(GOOD, Marital_Status="not mentioned", Others="雪景球")
            if len(body["messages"]) == 2
            else answer(GOOD)
        )

    with ScriptedServer(script) as server:
        [profile] = convert(server, tmp_path)
    assert profile.get("Marital Status") == "single"
    first, second = server.bodies
    assert [m["role"] for m in second["messages"]] == ["system", "user", "assistant", "user"]
    told = second["messages"][-1]["content"]
    assert (
        re.search(r"marital_status: says that nothing is known", told)
        and "others: is not in English" in told
        and "age" not in told
    )
    assert json.loads(second["messages"][2]["content"])["marital_status"]["value"] == "not mentioned"


def test_only_the_refused_ones_are_asked_again_and_order_is_kept(tmp_path):
    texts = [("first", ""), ("second", ""), ("third", "")]

    def script(body):
        who = next(name for name, _ in texts if name in body["messages"][1]["content"])
        bad = who == "second" and len(body["messages"]) < 6
        return answer(GOOD, Occupation="unknown" if bad else f"{who} trade")

    with ScriptedServer(script) as server:
        profiles = convert(server, tmp_path, texts)
    assert [p.get("Occupation") for p in profiles] == ["first trade", "second trade", "third trade"]
    assert len(server.bodies) == 3 + 1 + 1


def test_what_never_stands_is_an_error_that_names_the_slot(tmp_path):
    with (
        ScriptedServer(lambda body: answer(GOOD, Location="unknown")) as server,
        pytest.raises(ConversionFailed, match="number 1: Location says"),
    ):
        convert(server, tmp_path)
    assert len(server.bodies) == conversion.ROUNDS


def test_an_unreadable_answer_is_an_error_and_no_profile(tmp_path):
    with ScriptedServer(lambda body: '{"age": {"value": "34"}}') as server, pytest.raises(BadAnswer):
        convert(server, tmp_path)


def test_chinese_output_by_a_switch(tmp_path):
    with ScriptedServer(lambda body: answer(CHINESE)) as server:
        [profile] = convert(server, tmp_path, language="zh")
    assert profile.get("Marital Status") == "未婚" and profile.get("Age") == "34"


def test_line_ends_and_reply_tags_cannot_break_a_profile(tmp_path):
    with ScriptedServer(lambda body: answer(GOOD, Others="snow\nglobes </profile>and \u200bbells")) as server:
        [profile] = convert(server, tmp_path)
    assert profile.get("Others") == "snow globes and bells"


def test_people_are_converted_only_where_the_params_say_so_and_texts_have_ten_slots(tmp_path):
    texts = [p.description for p in builtin_personas("train", 20, 0)]
    (tmp_path / "profile.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (tmp_path / "personality.jsonl").write_text(json.dumps("She is talkative."))
    with ScriptedServer(lambda body: answer(GOOD, invented=("Location",))) as server:
        keys = [
            "personas.source=aloe", f"personas.path={tmp_path}", "user.model=m",
            f"user.base_url={server.url}",
        ]
        rules = parties.load_people(config.load_config("smoke", keys), "train", 3, 0)
        asked = parties.load_people(
            config.load_config("smoke", [*keys, "personas.conversion=llm"]), "train", 3, 0, tmp_path / "run"
        )
        cfg = config.load_config("smoke", [*keys, "personas.conversion=llm"])
        free = parties.load_people(cfg, "extended", 3, 0, tmp_path / "run")
    assert rules == load_personas(cfg.personas, "train", 3, 0) and free == load_personas(
        cfg.personas, "extended", 3, 0
    )
    assert [p.id for p in asked] == [p.id for p in rules] and len(server.bodies) == 3
    assert all(p.profile.items == tuple(GOOD.items()) and p.profile.filled == {"Location"} for p in asked)


def test_all_parts_of_a_run_meet_the_same_converted_people(tmp_path):
    """Training users, test users, their comparison and generated preferences: one conversion a text, paid
    once."""
    texts = [p.description for p in builtin_personas("train", 20, 0)]
    (tmp_path / "profile.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (tmp_path / "personality.jsonl").write_text(json.dumps("She is talkative."))
    with ScriptedServer(lambda body: answer(GOOD, Others=hash_json(body["messages"][1])[:12])) as server:
        keys = [
            "personas.source=aloe", f"personas.path={tmp_path}", "personas.conversion=llm", "user.model=m",
            f"user.base_url={server.url}", "evaluation.users=3", "evaluation.benchmarks=[vanilla]",
            "rollout.turns=2",
        ]
        cfg = config.load_config("smoke", keys)
        run = runs.claim(cfg, 0, tmp_path / "run", "smoke")
        train = parties.load_people(cfg, "train", None, 0, run)
        test = benchmarks.load_benchmarks(run)
        facts = benchmarks.disjointness(cfg, 0, test, run)
        talks = preferences.load_preferences(cfg, parties.make_user(cfg, "train", 0), 4, 0, run)
    assert facts["train"] == {"n": len(train), "hash": hash_split(train)} and facts["vanilla"][
        "hash"
    ] == hash_split(test["vanilla"])
    assert [t.profile for t in talks] == [p.description for p in train[:4]]
    told = " ".join(e.user for t in talks for e in t.exchanges)
    assert any(
        GOOD[slot] in told for slot in ("Interests", "Occupation", "Location", "Educational Background")
    )
    assert len(server.bodies) == len(train) + 3


def test_nobody_goes_past_the_conversion():
    """`load_personas` knows rules alone: it is called where files are checked, texts alone are compared,
    and notebooks play the offline world, which speaks of slots that rules have read."""
    allowed = {"sources.py", "world.py", "parties.py", "preferences.py", "runner.py", "people.py"}
    allowed |= {"02_simulated_user.ipynb", "03_rewards_and_judges.ipynb"}
    root = Path(parties.__file__).parents[1]
    files = [
        f
        for f in [*root.rglob("*.py"), *(root.parent / "notebooks").glob("*.ipynb")]
        if f.name not in allowed
    ]
    assert [f.name for f in files if "load_personas(" in f.read_text(encoding="utf-8")] == []
