"""Reading what a chat server sent: thinking, the one object in a text, and how tokens are shared out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from rlpa_lib.client import chat
from rlpa_lib.client.chat import Filtered, Refused, Unreadable, find_object, split_thinking


class Mark(BaseModel):
    mark: int


THINKING = [
    ("plain", "", "plain"),
    ("  plain", "", "  plain"),
    ("<think>why</think>\n\nHello", "why", "Hello"),
    ("\n<think>\nwhy\n</think>Hello", "why", "Hello"),
    ("<think>a</think><think>b</think>Hello", "a\n\nb", "Hello"),
    ("<thinking>why</thinking>Hello", "why", "Hello"),
    ("why\n</think>\n\nHello", "why", "Hello"),  # the template opened it
    ("why</think>", "why", ""),
    ("<think>cut off in the mid", "cut off in the mid", ""),
    ('{"reason": "the user wrote </think> here"}', "", '{"reason": "the user wrote </think> here"}'),
    ("Hello <think>no</think>", "", "Hello <think>no</think>"),  # quoted, not thought
]


@pytest.mark.parametrize(("text", "thinking", "visible"), THINKING)
def test_thinking_is_told_from_speaking(text, thinking, visible):
    assert split_thinking(text) == (thinking, visible)


FOUND = [
    '{"mark": 1}', ' {"mark": 1, "more": {"mark": 2}} ', '```json\n{"mark": 1}\n```',
    'The verdict is {"mark": 1}, for these reasons.', 'Set notation {a, b} first. {"mark": 1}',
    '{"other": 1} {"mark": 1}', 'I say {"mark": 1}. Again: {"mark": 1}',
]
NOT_FOUND = [
    ("", "no JSON object"), ("1", "no JSON object"), ("[1]", "no JSON object"),
    ('{"mark": 1', "no JSON object"), ('{"mark": "one"}', "mark: Input should be a valid integer"),
    ('{"other": 1}', "mark: Field required"),
    ('He wrote {"mark": 1}. My verdict: {"mark": 0}', "several objects that differ"),
    ("{" * 100_000, "no JSON object"), ('{"mark":' * 100_000, "no JSON object"),
]


@pytest.mark.parametrize("text", FOUND)
def test_the_one_fitting_object_is_found(text):
    assert find_object(text, Mark).mark == 1


@pytest.mark.parametrize(("text", "why"), NOT_FOUND, ids=range(len(NOT_FOUND)))
def test_anything_else_is_unreadable(text, why):
    with pytest.raises(Unreadable, match=why):
        find_object(text, Mark)


@settings(deadline=None, max_examples=50)
@given(
    st.integers(),
    st.text(st.characters(exclude_characters="{"), max_size=60),
    st.text(st.characters(exclude_characters="{"), max_size=60),
)
def test_prose_around_an_object_does_not_hide_it(mark, before, after):
    assert find_object(f'{before}{{"mark": {mark}}}{after}', Mark).mark == mark


def completion(message, usage=None):
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}


def test_tokens_are_those_of_the_server():
    usage = {
        "prompt_tokens": 10, "completion_tokens": 11, "completion_tokens_details": {"reasoning_tokens": 2},
    }
    row = chat.read_row(completion({"content": "a"}, usage=usage))
    answer = chat.read_answer(row, None)
    assert (answer.prompt_tokens, answer.completion_tokens, answer.reasoning_tokens) == (10, 11, 2)
    assert answer.text == "a"


def test_reasoning_tokens_without_a_count_are_shared_out_by_length():
    """30 letters of thinking, 10 of text, 8 tokens: 6 of them are thinking."""
    text = "<think>" + "a" * 30 + "</think>" + "b" * 10
    row = chat.read_row(completion({"content": text}, usage={"prompt_tokens": 1, "completion_tokens": 8}))
    answer = chat.read_answer(row, None)
    assert (answer.text, answer.reasoning_tokens) == ("b" * 10, 6)


def test_of_several_choices_the_first_is_the_answer():
    choices = [{"index": i, "message": {"content": str(i)}, "finish_reason": "stop"} for i in (2, 0, 1)]
    assert chat.read_row({"choices": choices})["content"] == "0"


def test_other_shapes_of_a_message():
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    rows = [
        chat.read_row(completion(message))
        for message in ({"content": parts}, {"content": None, "reasoning": "hm"})
    ]
    assert [(row["content"], row["reasoning"]) for row in rows] == [("Hello", ""), ("", "hm")]


@pytest.mark.parametrize(
    "body",
    [None, [], {}, {"choices": []}, {"choices": None}, {"choices": [{}]}, {"error": {"message": "busy"}}],
)
def test_a_body_that_is_no_completion_is_unreadable(body):
    with pytest.raises(Unreadable):
        chat.read_row(body)


def test_refusal_and_filter_have_their_own_errors():
    refused = chat.read_row(completion({"content": None, "refusal": "I cannot help."}))
    with pytest.raises(Refused, match="^I cannot help.$"):
        chat.read_answer(refused, Mark)
    with pytest.raises(Filtered):
        chat.read_answer({**refused, "refusal": None, "finish_reason": "content_filter"}, None)


def test_a_cut_answer_says_so():
    row = chat.read_row({"choices": [{"message": {"content": '{"mark": '}, "finish_reason": "length"}]})
    with pytest.raises(Unreadable, match="cut off at max_tokens"):
        chat.read_answer(row, Mark)
