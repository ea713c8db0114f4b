"""Reasoning tokens (section 5.4): what counts as reasoning for each kind of method, by hand, and the figures
of the analyses."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from rlpa_lib import runs
from rlpa_lib.agents.endpoint_policy import EndpointCompletion
from rlpa_lib.dialogue.dialogue import Dialogue, Turn, Utterance
from rlpa_lib.dialogue.profile import Profile, Reply
from rlpa_lib.evaluation import conflict, long_term, reasoning
from rlpa_lib.figures import evaluation as drawn
from rlpa_lib.methods.prompting import Prompted
from rlpa_lib.methods.table import Step
from rlpa_lib.settings import config

BLOCK = "<profile>\n- Age: 30\n</profile>\n\n<response>\nHi there.\n</response>"


def words(text):
    return len(text.split())


def talk(name, *completions):
    return Dialogue(
        name, name, tuple(Turn(Utterance("x"), text, Reply(Profile(), "y", True)) for text in completions)
    )


def row(user, turn, method, *hidden):
    return {"user": user, "turn": turn, "method": method, "hidden": [vars(step) for step in hidden]}


def test_the_profile_block_is_what_stands_before_the_response():
    assert words(reasoning.cut_profile(BLOCK)) == 5  # <profile> - Age: 30 </profile>
    assert reasoning.cut_profile("Hi there.") == ""
    assert words(reasoning.cut_profile("<profile>\n- Age: 30")) == 4  # broken: all that was noted
    assert reasoning.count_empty_block(words) == 2
    rows = [row("a", 1, "rlpa"), row("a", 2, "rlpa"), row("b", 1, "rlpa"), row("b", 2, "rlpa")]
    table = reasoning.count_reasoning(rows, [talk("a", BLOCK, "Hi."), talk("b", BLOCK, BLOCK)], words)
    assert table.tolist() == [[5, 0], [5, 5]]


def test_thoughts_drafts_critiques_and_hidden_thinking_by_hand():
    thinking = Step("reasoning", "Let me think", 80)
    rows = [
        row("a", 1, "cot", Step("thought", "They like tea.")),
        row("a", 2, "self_critic", Step("draft", "Hi", 7), Step("critique", "Bad", 4)), row("a", 3, "base"),
        row("a", 4, "base@R1", thinking), row("a", 5, "base@R1", Step("reasoning", "Let me think")),
        row("a", 6, "rag", Step("retrieved", "turn 1 (0.5)")),
    ]
    assert reasoning.count_reasoning(rows, [talk("a", *["Hi."] * 6)], words).tolist() == [
        [3, 11, 0, 80, 3, 0]
    ]
    # A comparator that writes profiles, and thinks besides.
    both = [row("a", 1, "rlpa_prompting@R1", Step("reasoning", "", 80))]
    assert reasoning.count_reasoning(both, [talk("a", BLOCK)], words).tolist() == [[85]]


def test_thinking_that_a_server_counts_but_does_not_show_is_kept():
    method = Prompted("base@o3", None, "", False)
    answer = method.read(EndpointCompletion((), (), (), "Hi.", True, "", 90, 80))
    assert answer.hidden == (Step("reasoning", "", 80),) and answer.n_tokens == 90
    assert method.read(EndpointCompletion((), (), (), "Hi.", True, "", 3, 0)).hidden == ()


def test_tokens_are_counted_by_the_policys_tokenizer():
    count = reasoning.make_counter(config.load_config("smoke"))
    assert count("") == 0 and count("<profile>") == 1 and count("Lisbon") >= 1
    estimated = reasoning.make_counter(
        config.load_config(
            "smoke", ["policy.kind=endpoint", "evaluation.methods=[base]", "policy.base_url=http://x"]
        )
    )
    assert estimated("") == 0 and estimated("some words here") > 0


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return {name: (rng.random((6, 5)) < 0.6).astype(float) for name in ("rlpa", "cot", "base@R1")}


def test_figure_5s_table_by_hand(scores):
    flat = {name: np.full((6, 5), 10.0 * i) for i, name in enumerate(scores)}
    table = reasoning.figure_table({**scores, "rlpa": np.ones((6, 5))}, flat, "tiny")
    assert table["method"].tolist() == ["Base", "CoT", "RLPA"] and table["model"].tolist() == [
        "R1", "tiny", "tiny",
    ]
    last = table.iloc[-1]
    assert (last["avg"], last["avg_high"], last["tokens"], last["per_point"]) == (100, 100, 0, 0)
    # six of six users: the exact binomial bound
    assert last["avg_low"] == pytest.approx(100 * 0.025 ** (1 / 6))
    assert table.iloc[0]["tokens"] == table.iloc[0]["tokens_low"] == 20


def test_the_figures_draw_what_their_data_say(scores, tmp_path):
    """Bars and lines of the pictures hold the numbers of the CSV; what was not run has a name and no bar."""
    run = runs.claim(config.load_config("smoke"), 0, tmp_path / "run", "params/smoke.yaml")
    curves = conflict.alignment_curves(scores, {"rlpa": scores["cot"]})
    figure, data = drawn.conflict_alignment(curves, 3)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[2].lines}  # panels: R1, CoT, RLPA
    assert figure.axes[2].get_title() == "RLPA" and lines["the user changes"] == pytest.approx(
        100 * scores["rlpa"].mean(axis=0)
    )
    assert (
        lines["same users, no change"] == pytest.approx(100 * scores["cot"].mean(axis=0))
        and "change" in lines
    )
    saved = run.save_figure(figure, "fig4a", data, caption="c", alt="a")
    assert len(pd.read_csv(saved.with_suffix(".csv"))) == len(curves)

    table = reasoning.figure_table(scores, {name: np.full((6, 5), 12.0) for name in scores}, "tiny")
    figure, data = drawn.score_and_reasoning(table, [("QwQ-32B", "Base")])
    left, right = figure.axes
    assert [patch.get_width() for patch in left.patches] == pytest.approx(table["avg"]) and len(data) == 3
    assert [patch.get_width() for patch in right.patches] == pytest.approx([12.0] * 3)
    assert [text.get_text() for text in left.get_yticklabels()][-1] == "Base\nQwQ-32B"
    assert "  not run" in [text.get_text() for text in right.texts]

    held = pd.DataFrame(
        [(u, t, 0.0, 1.0) for u in "abc" for t in (1, 2, 3)],
        columns=["user", "turn", "holds_new", "holds_old"],
    )
    figure, _ = drawn.conflict_profiles(conflict.profile_curves({"rlpa": held}), 2)
    assert {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}["old value"] == [
        100, 100, 100,
    ]

    lines = [
        {"method": "rlpa", "turn": t, "method_s": t, "user_s": 0, "judges_s": 0, "memory_mb": 100}
        for t in (1, 2, 3)
    ]
    figure, data = drawn.time_and_memory(lines, 10)
    assert (
        list(figure.axes[0].lines[0].get_ydata()) == [100, 200, 300] and list(data["memory_mb"]) == [100] * 3
    )
    assert plt.get_fignums() == []


def test_figure_4b_draws_its_table():
    rows = [
        {"user": u, "turn": t, "n_matched": t, "n_true": 10, "profile_f1": 0.1 * t}
        for u in "abc"
        for t in (1, 2)
    ]
    told = pd.DataFrame([(u, t, 2 * t) for u in "abc" for t in (1, 2)], columns=["user", "turn", "told"])
    figure, data = drawn.long_term_progress(long_term.progress_table({"rlpa": rows}, {"rlpa": told}))
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert lines["Theoretical Max"] == pytest.approx([20, 40]) and lines["profile score"] == pytest.approx(
        [10, 20]
    )
    assert lines["AVG of the profile score"] == pytest.approx([15, 15]) and len(data) == 8
