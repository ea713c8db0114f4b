"""Replies as people write them, in English and in Chinese: profile blocks, chains of thought, thinking; and
the response judge, who goes by the inferred profile."""

import time

import pytest

from rlpa_lib.client.thinking import find_open_thought, split_thinking
from rlpa_lib.dialogue.profile import Profile, parse_released_reply, parse_reply, render_reply
from rlpa_lib.dialogue.prompt_files import load_prompt
from rlpa_lib.methods.prompting import split_thought


def block(lines, response="你好！"):
    return f"<profile>\n{lines}\n</profile>\n\n<response>\n{response}\n</response>"


@pytest.mark.parametrize(
    "line",
    [
        "- 年龄：25岁", "- 年龄: 25岁", "- 年龄:25岁", "-年龄：25岁",
        "- 年龄 ： 25岁", "－ 年龄：25岁", "— 年龄：25岁",
        "• 年龄：25岁", "·年龄：25岁", "* 年龄：25岁", "\u3000- 年龄：\u300025岁\u3000",
    ],
)  # fmt: skip
def test_an_item_in_chinese_punctuation(line):
    reply = parse_reply(block(f"{line}\n- Age:25"))
    assert reply.format_ok and reply.profile.items == (("年龄", "25岁"), ("Age", "25"))
    assert parse_reply(render_reply(reply.profile, "好")).profile == reply.profile


@pytest.mark.parametrize(
    "line", ["- 25岁", "年龄：25岁", "- ：25岁", "- 年龄：", "-", "- 年龄：25\n- 年龄:26"]
)
def test_what_is_no_item_is_none_in_either_language(line):
    reply = parse_reply(block(line))
    assert not reply.format_ok and reply.response == "你好！"


def test_a_slot_holds_neither_colon():
    with pytest.raises(ValueError, match="colon"):
        Profile((("年龄：岁", "25"),))
    kept = Profile((("Others", "起床：7:30"),))
    assert parse_reply(render_reply(kept, "好")).profile == kept


def test_the_released_reading_takes_free_traits():
    text = block("- likes tea\n- 喜欢爬山\n- Age: 25\n- Age: 26\n- Trait 9: odd")
    assert not parse_reply(text).format_ok
    reply = parse_released_reply(text)
    assert reply.format_ok and reply.profile.items == (
        ("Trait 1", "likes tea"), ("Trait 2", "喜欢爬山"), ("Age", "25"), ("Trait 4", "Age: 26"),
        ("Trait 5", "Trait 9: odd"),
    )  # fmt: skip
    shown = render_reply(reply.profile, "你好！", "released")
    assert shown == text and parse_released_reply(shown) == reply
    assert not parse_released_reply(block("likes tea")).format_ok, "a trait stands behind a dash"


THOUGHTS = [
    ("Thought：对方是面包师。\nReply：好香！", "对方是面包师。"),
    ("Thought：对方是面包师。Reply：好香！", "对方是面包师。"),
    ("思考：对方是面包师。\n回复：好香！", "对方是面包师。"),
    ("想法:对方是面包师。回复:好香！", "对方是面包师。"),
    ("**Thought:** 对方是面包师。\n**Reply:** 好香！", "对方是面包师。"),
    ("Reply：好香！", ""), ("好香！", ""),
    # the labels as headings, in lists, quotation marks and brackets, and behind the reply
    ("### 思考\n对方是面包师。\n\n### 回复\n好香！", "对方是面包师。"),
    ("## Thought:\n对方是面包师。\n## Reply:\n好香！", "对方是面包师。"),
    ("- Thought: 对方是面包师。\n- Reply: 好香！", "对方是面包师。"),
    ("1. Thought：对方是面包师。\n2. Reply：好香！", "对方是面包师。"),
    ("【思考】对方是面包师。\n【回复】好香！", "对方是面包师。"),
    ("“Thought:” 对方是面包师。\n“Reply:” 好香！", "对方是面包师。"),
    ("__Thought:__ 对方是面包师。\n__Reply:__ 好香！", "对方是面包师。"),
    ("思考过程：对方是面包师。\n最终回复：好香！", "对方是面包师。"),
    ("Thought: 对方是面包师。\nResponse: 好香！", "对方是面包师。"),
    ("Reply: 好香！\nThought: 对方是面包师。", "对方是面包师。"),
    ("思考：甲\n回复：好香！\n思考：乙\n回复：丙", "甲\n乙\n回复：丙"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "thought"), THOUGHTS)
def test_a_chain_of_thought_in_either_language(text, thought):
    assert split_thought(text) == (thought, "好香！")


@pytest.mark.parametrize("said", ["“好香！”他说。", '"Hi," he said.', "**Hi** you", "_Hi_", "(Hm) hi"])
@pytest.mark.parametrize("label", ["Reply: ", "回复： ", "**Reply:** ", "“Reply:” ", "### Reply\n"])
def test_what_a_reply_opens_itself_stays(label, said):
    assert split_thought(f"Thought: a baker\n{label}{said}") == ("a baker", said)


@pytest.mark.parametrize("text", ["Facts.\nAnswer: 42", "先想一想\n思路：三步。", "In reply: no."])
def test_other_labels_leave_a_plain_reply_alone(text):
    assert split_thought(text) == ("", text)


def test_a_thought_without_a_reply_shows_nothing():
    assert split_thought("思考：对方是面包师，") == ("对方是面包师，", "")
    assert split_thought("我收到了他的回复：很好。") == ("", "我收到了他的回复：很好。")


@pytest.mark.parametrize(
    ("before", "thought"),
    [
        ("<think>\n\n</think>\n\n", ""), ("<think>\n想一想\n</think>\n\n", "想一想"),
        ("想一想\n</think>\n\n", "想一想"),
        ("<THINK>a</THINK>", "a"), ("[THINK]a[/THINK]", "a"), ("<thought>a</thought>\n", "a"),
        ("<think><think>a</think></think>\n", "<think>a"), ("<think>a</think><think></think>", "a"),
    ],
)  # fmt: skip
def test_thinking_is_no_part_of_the_reply(before, thought):
    text = block("- Age：25岁")
    assert split_thinking(before + text) == (thought, text)
    assert parse_reply(before + text) == parse_reply(text) and parse_reply(text).format_ok


def test_thinking_that_a_template_opens_is_found():
    assert find_open_thought("<|im_start|>assistant\n<think>\n") == "<think>\n"
    assert find_open_thought("<|im_start|>assistant\n<think>\n\n</think>\n\n") == ""


ITEMS = [
    "- **Age**: 25岁", "- **Age:** 25岁", "- **Age：**25岁", "* **Age**：25岁", "- *Age*: 25岁",
    "- __Age__: 25岁", "- `Age`: 25岁", "● Age：25岁", "◆ Age: 25岁", "■Age：25岁", "+ Age: 25岁",
    "﹣Age：25岁", "- Age﹕25岁", "- Age∶25岁",
]  # fmt: skip


@pytest.mark.parametrize("read", [parse_reply, parse_released_reply])
@pytest.mark.parametrize("line", ITEMS)
def test_marks_around_a_slot_are_no_part_of_it(line, read):
    reply = read(block(line))
    assert reply.format_ok and reply.profile.items == (("Age", "25岁"),)


@pytest.mark.parametrize("read", [parse_reply, parse_released_reply])
@pytest.mark.parametrize("line", ["**Age**: 25", "**Age：** 25", "---", "***", "-- Age: 25"])
def test_emphasis_and_rules_are_no_bullets(line, read):
    assert not read(block(line)).format_ok


@pytest.mark.parametrize("lines", ["- **Age:**", "- **年龄**：", "- Age: 25\n- **Age**: 26", "- ****: 25"])
def test_emphasis_hides_no_broken_item(lines):
    assert not parse_reply(block(lines)).format_ok


HOSTILE = {
    "pairs": "<profile>" + "</profile><response>" * 20000 + "</response>x" * 20000,
    "nested": "<respo" * 20000 + "<response>" + "nse>" * 20000,
    "thoughts": "<think></think>" * 20000, "ends": "</think>" * 20000, "opened": "<think>" * 20000,
    "blanks": "<profile>\n-" + " " * 100000 + "x\n</profile><response>a</response>",
    "items": block("- a:b\n" * 20000), "labels": "Thought:" + " Reply" * 20000, "stars": "*" * 100000,
    "emphasis": block("- " + "*" * 50000 + "a:" + "*" * 50000),
    "titles": "Thought:" + "\n# ** 1. reply" * 8000,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("read", [parse_reply, parse_released_reply, split_thought])
def test_long_hostile_text_takes_linear_time(name, read):
    start = time.process_time()
    read(HOSTILE[name])
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", ["judge_criteria", "judge_holistic"])
def test_the_response_judge_goes_by_the_inferred_profile(language, name):
    """Section 3.3: the talk alone supports nothing, so that an empty profile earns nothing once something was
    told."""
    text = load_prompt(name, language)
    assert "profile or the talk" not in text and "画像或对话" not in text
    wanted = ["must stand in", "with an empty profile" if "holistic" in name else "the profile is empty"]
    if language == "zh":
        wanted = ["必须写在画像里", "画像为空"]
    assert all(words in text for words in wanted)
