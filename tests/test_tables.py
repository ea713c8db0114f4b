"""Tables by hand: levels, intervals, order, "not run", the paper's values where they may be shown; and what a
score is made of."""

import numpy as np
import pandas as pd
import pytest

from rlpa_lib.evaluation import breakdown, tables
from rlpa_lib.figures import evaluation as drawn_as
from rlpa_lib.settings import config, kinds

SCORES = {
    ("rlpa", "vanilla"): np.array([[0, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 0]], dtype=float),
    ("self_critic@GPT-4o", "vanilla"): np.array([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 0]], dtype=float),
    ("base", "vanilla"): np.array([[0, 0, 1], [0, 1, 1], [0, 0, 0], [1, 0, 0]], dtype=float),
}


def test_tables_by_hand():
    turnwise = tables.turnwise_table(SCORES, "vanilla", "tiny").set_index("method")
    assert turnwise.loc["Base", ["k1", "k2", "k3", "avg"]].tolist() == pytest.approx([25, 25, 50, 100 / 3])
    assert turnwise.loc["Base", "n_ir"] == pytest.approx(0.5)  # 0, 0, 1 against 1, 2, 3: slope 1/2
    assert turnwise.loc["Base", "n_r2"] == pytest.approx(0.75)
    assert turnwise.loc["Base", "k1_low"] == pytest.approx(0.63, abs=0.01)  # Clopper-Pearson of 1 in 4
    paired = tables.paired_table(SCORES)
    assert paired["method"].tolist() == ["GPT-4o, Self-Critic", "Base"]
    assert paired["difference"].tolist() == pytest.approx([100 * (9 - 10) / 12, 100 * (9 - 4) / 12])
    assert paired["p_holm"].max() <= 1 and (paired["p_holm"] >= paired["p"]).all()
    later = tables.without_first_turn(SCORES)
    assert later["difference"].tolist() == pytest.approx([0, 100 * (7 - 3) / 8])


def test_rows_stand_in_the_papers_order():
    table = tables.main_table(SCORES, "Qwen/Qwen2.5-3B-Instruct")
    assert table["model"].tolist() == ["GPT-4o", "Qwen2.5-3B-Instruct", "Qwen2.5-3B-Instruct"]
    assert table["method"].tolist() == ["Self-Critic", "Base", "RLPA"]
    assert "extended_avg" not in table
    assert tables.arrange_rows(["oracle", "rlpa", "dpo", "cot@X", "base"]) == [
        "cot@X", "base", "dpo", "rlpa", "oracle",
    ]


def test_what_was_not_run_says_so_and_a_miniature_stands_alone():
    cfg = config.load_config("mini")
    shown = tables.format_paper_table(tables.main_table(SCORES, "tiny"), "table1", cfg)
    assert set(shown.index.get_level_values("source")) == {"ours"}
    assert shown.loc[("tiny", "Base", "ours"), "vanilla_avg"].startswith("33.3 [")
    assert (shown.loc[("tiny", "RAG(Top-5)", "ours")] == "not run").all()
    assert (shown.loc[("QwQ-32B", "Base", "ours")] == "not run").all()
    assert len(shown) == 5 + 8 + 3  # closed models, methods of the paper, reasoning models


def test_the_paper_stands_beside_ours_at_its_own_scale():
    cfg = config.load_config("paper")
    shown = tables.format_paper_table(tables.main_table(SCORES, cfg.policy.model), "table1", cfg)
    assert shown.loc[("Qwen2.5-3B-Instruct", "RLPA", "paper"), "vanilla_avg"] == "73.38"
    assert shown.loc[("GPT-4o", "Self-Critic", "paper"), "vanilla_n_r2"] == "0.380"
    assert shown.loc[("GPT-4o", "Self-Critic", "ours"), "vanilla_avg"].startswith("83.3 [")
    table5 = tables.format_paper_table(
        tables.turnwise_table(SCORES, "vanilla", cfg.policy.model), "table5", cfg
    )
    # the paper adds a date to this name
    assert table5.loc[("Claude-3.5-Haiku", "Self-Critic", "paper"), "k2"] == "17.81"
    for changed in ("policy.model=tiny", "evaluator.kind=rule", "user.kind=agenda"):
        assert not tables.comparable(config.load_config("paper", [changed, "run.prompt_set=en"]))


def test_seeds_widen_what_users_alone_cannot_show():
    by_seed = [
        {("rlpa", "vanilla"): np.full((4, 2), level), ("base", "vanilla"): np.zeros((4, 2))}
        for level in (0.4, 0.5, 0.6)
    ]
    table = tables.seeds_table(by_seed, "tiny").set_index("method")
    assert table.loc["RLPA", "avg"] == pytest.approx(50) and table.loc[
        "RLPA", ["seeds", "users"]
    ].tolist() == [3, 4]
    half = 4.303 * 10 / 3**0.5  # t with 2 degrees of freedom, no spread between users
    assert table.loc["RLPA", "avg_high"] == pytest.approx(50 + half, abs=0.1)
    assert table.loc["Base", "rlpa_minus"] == pytest.approx(50) and np.isnan(table.loc["RLPA", "rlpa_minus"])
    with pytest.raises(ValueError, match="at least 3 seeds"):
        tables.seeds_table(by_seed[:2], "tiny")


def test_figures_draw_what_was_run_and_say_what_was_not():
    scores = {**SCORES, ("oracle", "vanilla"): np.ones((4, 3))}
    table = tables.turnwise_table(scores, "vanilla", "tiny")
    figure, data = drawn_as.turnwise_panels(table, "vanilla", drawn_as.FIGURE_14, 4, "tiny")
    assert [axes.get_title() for axes in figure.axes] == [
        model or method for model, method in drawn_as.FIGURE_14
    ]
    by_title = {axes.get_title(): axes for axes in figure.axes}
    assert [t.get_text() for t in by_title["SFT"].texts] == ["not run"] and not by_title["RLPA"].texts
    drawn = by_title["RLPA"].lines[-1].get_ydata().tolist()
    assert drawn == data.query("method == 'RLPA'")["al"].tolist() == [50, 100, 75]
    assert by_title["GPT-4o"].lines[-1].get_ydata().tolist() == [75, 100, 75]
    assert by_title["SFT"].lines[0].get_ydata().tolist() == [100] * 3  # the ceiling is in every panel
    assert set(data["source"]) == {"ours"}
    _, data = drawn_as.turnwise_panels(table, "vanilla", drawn_as.FIGURE_3, 2, "tiny", "Qwen2.5-3B-Instruct")
    assert data.query("source == 'paper' and method == 'RLPA' and turn == 1")["al"].tolist() == [62.16]


def test_another_models_row_is_not_drawn_into_our_own_panel():
    """Its method may be ours too: figure 3 showed both Self-Critics as one line that ran forth and back."""
    scores = {("self_critic", "vanilla"): np.ones((4, 3)), ("self_critic@Other", "vanilla"): np.zeros((4, 3))}
    table = tables.turnwise_table(scores, "vanilla", "models/own")
    figure, _ = drawn_as.turnwise_panels(table, "vanilla", drawn_as.FIGURE_3, 2, "models/own")
    [panel] = [axes for axes in figure.axes if axes.get_title() == "Self-Critic"]
    assert [line.get_ydata().tolist() for line in panel.lines] == [[100, 100, 100]]


def judged(user, turn, score, swapped, **changes):
    marks = dict.fromkeys("NRLGF", True) | ({} if score else {"R": False})
    return {
        "user": user, "turn": turn, "score": score, "swapped_score": swapped, "marks": marks,
        "format_ok": True, "response": "Hi?", "n_inferred": 0, "n_matched": 0, "n_true": 10, "n_told": 0,
        "n_guesses": 0, "n_right_guesses": 0, "profile_f1": 0.0, "n_tokens": 4, "hidden": [], **changes,
    }


ROWS = [
    judged("a", 1, 1, 1, response="Hi?", n_inferred=2, n_matched=1, n_guesses=2, n_right_guesses=1),
    judged("b", 1, 1, 1), judged("c", 1, 0, 0, response="I see.", hidden=[{"n_tokens": 3}]),
    judged("d", 1, 0, 0, format_ok=False, marks=None, response="x"), judged("a", 2, 1, 0),
    judged("b", 2, 1, 0), judged("c", 2, 1, 1), judged("d", 2, 0, None),
]


def test_the_personal_part_by_hand():
    swap = breakdown.swap_summary(ROWS)
    # d has no second judgement
    assert (swap["own"], swap["swapped"], swap["personal_share"]) == pytest.approx((1, 1 / 3, 2 / 3))
    assert swap["personal_share_low"] <= 2 / 3 <= swap["personal_share_high"]
    assert breakdown.swap_summary(ROWS, first=1)["personal_share"] == pytest.approx(1 / 3)
    assert np.isnan(breakdown.swap_summary(ROWS[:4])["own"])  # no turn but the first
    assert np.isnan(breakdown.swap_summary([{**r, "swapped_score": None} for r in ROWS])["own"])
    assert breakdown.by_turn(ROWS)["own"].tolist() == [0.5, 0.75]
    assert breakdown.by_turn(ROWS)["swapped"].tolist() == pytest.approx([0.5, 1 / 3])


def test_the_first_turn_by_hand():
    first = breakdown.first_turn(ROWS)
    assert (first["al1"], first["swapped"], first["broken"]) == (0.5, 0.5, 0.25)
    assert first["al1_low"] == pytest.approx(0.068, abs=1e-3)  # exact, 2 of 4
    assert (first["fails_R"], first["fails_N"], first["asks"], first["commonest"], first["distinct"]) == (
        0.25, 0, 0.5, 0.5, 0.75,
    )
    assert (first["profile_items"], first["right_items"]) == (0.5, 0.5)


def test_diagnostics_by_hand():
    found = breakdown.diagnostics(ROWS)
    assert found["format_rate"] == 7 / 8 and found["R"] == 5 / 7 and found["guess_precision"] == 0.5
    assert (
        found["hidden_tokens_per_turn"] == 3 / 8 and found["tokens_per_turn"] == 4 and found["unjudged"] == 0
    )
    unmatched = breakdown.diagnostics([{**r, "n_matched": None, "profile_f1": None} for r in ROWS])
    assert np.isnan(unmatched["profile_f1"])


def test_another_reward_criterion_changes_no_evaluation_table(monkeypatch):
    def make_tables():
        rates = pd.DataFrame([breakdown.diagnostics(ROWS) | breakdown.first_turn(ROWS)])
        return rates, tables.main_table(SCORES, "tiny"), tables.turnwise_table(SCORES, "vanilla", "tiny")

    before, known = make_tables(), list(kinds.REWARD_CRITERIA)
    honest = kinds.Criterion("honesty", "Honest: claims nothing that is untrue.")
    monkeypatch.setitem(kinds.REWARD_CRITERIA, "H", honest)
    assert list(kinds.REWARD_CRITERIA) == [*known, "H"] and "H" not in kinds.EVALUATION_CRITERIA
    for was, now in zip(before, make_tables(), strict=True):
        pd.testing.assert_frame_equal(was, now)


def test_the_last_of_two_plays_of_a_turn_counts_as_its_cost():
    line = {
        "method": "base", "benchmark": "vanilla", "turn": 1, "method_s": 2.0, "user_s": 0.5, "judges_s": 0.5,
        "tokens": 100,
    }
    table = breakdown.cost([line, {**line, "turn": 2}, {**line, "method_s": 3.0}])
    assert (
        table["method_s"].tolist() == [5.0]
        and table["tokens"].tolist() == [200]
        and table["tokens_per_second"].tolist() == [40.0]
    )
    assert isinstance(table, pd.DataFrame)
