"""Annotation: items that hide what they must, answers that survive, and the page's keys, without a
browser."""

import json

import pandas as pd
import pytest

from rlpa_lib.settings.config import InputError
from rlpa_lib.settings.kinds import REWARD_CRITERIA
from rlpa_lib.study import annotation
from rlpa_lib.study.annotation import PAIRS, RESPONSES, USERS, Answers, Item
from rlpa_lib.study.annotation_page import Page, annotate, escape, render_item

DANGEROUS = "<img src=x onerror='window.hacked=1'> costs $5 or $x^2$, \\(y\\) & more"


def dialogue_items(n):
    """n dialogues of a hidden model; each says something that must not be read as markup."""
    talk = (("user", "Hello"), ("assistant", "Hi!"), ("user", DANGEROUS))
    return [
        Item(
            f"model-x|{i}",
            (("Persona", (("Age", str(30 + i)),)), ("Conversation", talk)),
            {"model": "model-x"},
        )
        for i in range(n)
    ]


@pytest.fixture
def work(tmp_path):
    annotation.prepare(tmp_path, USERS, dialogue_items(5), seed=0)
    return tmp_path


def test_items_hide_model_and_order_and_key_keeps_them(work):
    folder = annotation.locate_task(work, USERS)
    assert "model-x" not in (folder / "items.json").read_text()
    key = json.loads((folder / "key.json").read_text())
    assert sorted(key) == [f"users-000{i}" for i in range(1, 6)] and {
        row["model"] for row in key.values()
    } == {"model-x"}
    assert [row["was"] for row in key.values()] != [f"model-x|{i}" for i in range(5)]
    orders = [[item.id for item in Answers(work, USERS, who).items] for who in ("ann", "bob", "ann")]
    assert orders[0] == orders[2] != orders[1] and sorted(orders[0]) == sorted(orders[1])


def test_answers_are_kept_resumed_and_corrected(work):
    full = dict.fromkeys(("coherence", "stability", "proactivity", "persona_fit"), 4)
    first = Answers(work, USERS, "ann")
    first.save(first.items[0], full)
    first.save(first.items[1], full)
    first.save(first.items[0], {**full, "stability": 1})
    assert Answers(work, USERS, "ann").next_open() == 2
    with open(first.file, "a") as file:
        file.write('{"item": "users-')  # the process died while it wrote
    with pytest.warns(UserWarning, match="torn"):
        again = Answers(work, USERS, "ann")
    assert again.given[first.items[0].id]["stability"] == 1 and again.next_open() == 2
    with pytest.warns(UserWarning, match="torn"):
        again.save(again.items[2], full)
    table = annotation.load_answers(work, USERS)
    assert (
        len(table) == 3
        and set(table["model"]) == {"model-x"}
        and table.loc[table["item"] == first.items[0].id, "stability"].tolist() == [1]
    )
    assert pd.read_csv(annotation.export_answers(work, USERS)).shape == table.shape
    with pytest.raises(ValueError, match="proactivity"):
        again.save(again.items[3], {**full, "proactivity": 6})


def test_answers_never_move_to_other_items(work):
    done = Answers(work, USERS, "ann")
    done.save(done.items[0], dict.fromkeys(("coherence", "stability", "proactivity", "persona_fit"), 4))
    # the same items: nothing happens to the answers
    annotation.prepare(work, USERS, dialogue_items(5), seed=0)
    assert Answers(work, USERS, "ann").next_open() == 1
    with pytest.raises(InputError, match="answers to other items"):
        annotation.prepare(work, USERS, dialogue_items(4), seed=0)
    (done.file.parents[1] / "items.json").write_text(
        json.dumps({"task": "users", "seed": 0, "sha256": "other", "items": []})
    )
    with pytest.raises(InputError, match="other items"):
        Answers(work, USERS, "ann")


@pytest.mark.parametrize("name", ["", "../ann", "a b", "x" * 41])
def test_a_name_that_is_no_file_name_is_refused(work, name):
    with pytest.raises(InputError, match="annotator"):
        Answers(work, USERS, name)


def test_nothing_prepared_and_no_such_task(tmp_path):
    with pytest.raises(InputError, match="34_user"):
        Answers(tmp_path, PAIRS, "ann")
    with pytest.raises(InputError, match="users, pairs, responses"):
        annotate(tmp_path, "user")


def test_texts_show_as_themselves():
    assert (
        escape("<b>$x$ \\(y\\)") == "&lt;b&gt;<span>$</span>x<span>$</span> <span>\\</span>(y<span>\\</span>)"
    )
    html = render_item(dialogue_items(1)[0])
    assert "<img" not in html and "onerror=&#x27;" in html and 'class="user"' in html


def values(made):
    return [choice.value for choice in made.choices.values()]


def test_keys_rate_save_go_back_and_finish(work):
    made = Page(work, USERS, "ann")
    made.keys.value = "45"
    assert values(made) == [4, 5, None, None] and "0 of 5" in made.head.value
    made.keys.value = "4"
    assert values(made) == [4, None, None, None]
    made.choices["persona_fit"].value = 2  # by mouse
    made.keys.value = "43"
    assert values(made) == [4, 3, None, 2]
    made.keys.value = "43\n"
    assert "still open" in made.note.value and "0 of 5" in made.head.value and made.keys.value == "43"
    made.keys.value = "4312\n"
    assert "1 of 5" in made.head.value and made.keys.value == "" and values(made) == [None] * 4
    made.keys.value = "b"
    assert values(made) == [4, 3, 1, 2] and made.keys.value == "4312"
    made.keys.value = "1111\n"
    for _ in range(4):
        made.keys.value = "5555\n"
    assert "finished" in made.head.value and made.form.layout.display == "none"
    assert len(made.work.file.read_text().splitlines()) == 6
    assert made.work.given[made.work.items[0].id] == {
        "coherence": 1, "stability": 1, "proactivity": 1, "persona_fit": 1,
    }
    made.back()
    assert "item 5" in made.head.value and values(made) == [5] * 4


def test_a_wrong_key_is_told_and_dropped(work):
    made = Page(work, USERS, "ann")
    made.keys.value = "40"
    assert (
        "no answer to stability" in made.note.value
        and made.keys.value == "4"
        and values(made) == [4, None, None, None]
    )


def test_pairs_and_responses_have_their_own_keys(tmp_path):
    pair = Item("a", (("Age", (("first", "34"), ("second", "thirty-four"))),), {"system": "same"})
    annotation.prepare(tmp_path, PAIRS, [pair], seed=0)
    made = Page(tmp_path, PAIRS, "ann")
    made.keys.value = "u\n"
    assert annotation.load_answers(tmp_path, PAIRS)[["label", "system"]].to_numpy().tolist() == [
        ["uncertain", "same"]
    ]
    annotation.prepare(tmp_path, RESPONSES, [Item("b", pair.blocks, {"verdict": 1})], seed=0)
    made = Page(tmp_path, RESPONSES, "ann")
    made.keys.value = "".join("0" if name == "L" else "1" for name in REWARD_CRITERIA) + "\n"
    row = annotation.load_answers(tmp_path, RESPONSES).iloc[0]
    assert all(row[name] == int(name != "L") for name in REWARD_CRITERIA) and row["verdict"] == 1


def test_the_page_asks_for_a_name(work):
    box = annotate(work, "users")
    name, start = box.children[0].children
    name.value = "no/name"
    start.click()
    assert "annotator" in box.children[1].value
    name.value = "ann"
    start.click()
    assert "0 of 5" in box.children[0].children[0].value
