"""Everybody whom a run asks over the network, behind one local server and in Chinese: simulated users, both
training judges, the evaluator, the judges of notebook 34, the converter, the rewriter, and other models as
rows of the tables.

An answer is drawn from a digest of the request, so the same question has the same answer.
"""

import json
import random
import re

from rlpa_lib.dialogue.profile import Profile, render_reply
from rlpa_lib.runs.storage import hash_json

CHINESE = re.compile(r"[\u4e00-\u9fff]")
SAID = (
    "周末我常去爬山，回来总要喝一碗热汤。", "我在医院上班，最近夜班很多。", "我家就在成都，女儿刚上小学。",
    "说实话，我不太喜欢热闹的地方。", "上学的时候我念的是护理，也喜欢画画。",
)  # fmt: skip
ANSWERED = (
    "听起来很充实！你一般和谁一起去？", "夜班辛苦了，记得给自己留点休息的时间。",
    "成都真好，我也想去住一阵子。",
)  # fmt: skip
VALUES = tuple(
    "三十四岁上下 女 爬山和做陶艺 护理专业本科 安静细心 儿科护士 已婚 有一个女儿 成都 养了一只猫".split()
)
ENGLISH = (
    "34", "female", "hill walking", "a degree in nursing", "calm", "pediatric nurse", "married",
    "one daughter", "Chengdu", "keeps a cat",
)  # fmt: skip
NAMES = {VALUES: ("爱好", "职业", "家庭", "宠物"), ENGLISH: ("Hobby", "Work", "Family", "Pets")}
REASONS = ("语言自然，接得上上一句话。", "与画像一致，没有矛盾。", "有具体内容，也让人愿意聊下去。")


def answer(body):
    """What the server says to the body of a chat request: by the schema that it asks for, or as a chat
    model."""
    messages = body["messages"]
    draw = random.Random(hash_json([body["model"], messages, body.get("seed")]))
    schema = body.get("response_format", {}).get("json_schema", {})
    if not schema:
        return _chat(messages, draw)
    name, form = schema["name"], schema["schema"]
    if name == "UserMessage":
        said = _speak(messages, draw)
    else:
        # the prompt's own words say in which language values are wanted
        words = VALUES if CHINESE.search(messages[0]["content"]) else ENGLISH
        said = _fill(form, form, draw, words)
    return json.dumps(_make_distinct(name, said, draw), ensure_ascii=False)


def _speak(messages, draw):
    """A user's next words, and the items that it may tell now: what the notes ask for comes first."""
    notes = json.loads(messages[-1]["content"])
    wanted = [notes["tell_now"]] if "tell_now" in notes else []
    untold = [n for n in range(1, 11) if n not in notes["already_told"] and n not in wanted]
    return {"message": draw.choice(SAID), "revealed": [*wanted, *untold[: notes["new_items_allowed"]]][:2]}


def _chat(messages, draw):
    """A chat model as a row: the profile block where it is asked for, thoughts where those are."""
    system, said = messages[0]["content"], draw.choice(ANSWERED)
    if "<profile>" in system:
        return render_reply(Profile((("Interests", "爬山"), ("Location", "成都"))), said)
    return f"Thought: 用户在聊自己的生活。\nReply: {said}" if "Thought:" in system else said


def _fill(schema, root, draw, words):
    """An object of this JSON schema."""
    if "$ref" in schema:
        return _fill(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root, draw, words)
    if "const" in schema or "enum" in schema:
        options = schema.get("enum") or [schema["const"]]
        # a mark: most replies pass
        return int(draw.random() < 0.85) if options == [0, 1] else draw.choice(options)
    if "anyOf" in schema:
        return _fill(schema["anyOf"][0], root, draw, words)
    if schema["type"] == "object":
        named = enumerate(schema.get("properties", {}).items())
        return {key: _fill_part(key, part, root, draw, words, i) for i, (key, part) in named}
    if schema["type"] == "array":
        low = schema.get("minItems", 1)
        size = draw.randint(low, max(low, min(schema.get("maxItems", 2), low + 1)))
        return [_fill(schema["items"], root, draw, words) for _ in range(size)]
    if schema["type"] == "boolean":
        return draw.random() < 0.8
    low = schema.get("minimum", 1)
    return low if schema["type"] == "integer" else draw.choice(words)


def _fill_part(key, part, root, draw, words, i):
    found = _fill(part, root, draw, words)
    if key == "reason":
        return draw.choice(REASONS)
    if key == "slot":  # of the model's own naming
        return draw.choice(NAMES[words])
    if isinstance(found, dict) and "value" in found:  # the i-th of a profile's slots
        return {**found, "value": words[i % len(words)]}
    return found


def _make_distinct(name, said, draw):
    """Two columns of a rewriter differ from what was there; no two people live in the same place."""
    for key, mark in (("paraphrased", "也就是"), ("altered", "改成了")):
        if key in said:
            said[key] = [f"{mark}{value}{draw.randint(1, 99)}" for value in said[key]]
    if name == "TenSlots":
        for key in ("location", "others"):
            said[key]["value"] += f" {draw.randint(1, 999)}"
    return said
