"""Tables 6 to 10 from inputs that give the paper's own numbers."""

import pandas as pd
import pytest

from rlpa_lib.evaluation.agreement_metrics import overlap_metrics
from rlpa_lib.evaluation.paper_tables import PAPER_TABLES
from rlpa_lib.settings.kinds import REWARD_CRITERIA
from rlpa_lib.study import tables


def paper(name):
    return pd.read_csv(PAPER_TABLES / f"{name}.csv")


def marks(mean, n=30):
    """n whole marks between 1 and 5 with this printed mean, spread as evenly as they go."""
    total = round(mean * n)
    return [total // n + (i < total % n) for i in range(n)]


def ratings():
    """Three annotators x ten dialogues a model, whose means are those of table 6."""
    rows = []
    for _, printed in paper("table6").iterrows():
        columns = {d: marks(printed[d]) for d in tables.DIMENSIONS}
        for i in range(30):
            values = {d: column[i] for d, column in columns.items()}
            rows.append(
                {
                    "model": printed["model"], "item": f"{printed['model']}-{i % 10}",
                    "annotator": "ABC"[i // 10], **values,
                }
            )
    return pd.DataFrame(rows)


def test_means_of_table_6():
    found, printed = tables.table6(ratings()).set_index("model"), paper("table6").set_index("model")
    assert len(found) == 4 and (found["n"] == 30).all() and (found["dialogues"] == 10).all()
    for model, row in printed.iterrows():
        for column in (*tables.DIMENSIONS, "all_avg"):
            assert found.loc[model, column] == pytest.approx(row[column], abs=0.0051), (model, column)
            assert (
                found.loc[model, f"{column}_low"]
                <= found.loc[model, column]
                <= found.loc[model, f"{column}_high"]
            )


def test_agreement_of_table_6_by_hand():
    values = dict.fromkeys(tables.DIMENSIONS, 4)
    rows = [
        {"model": "m", "item": str(i), "annotator": who, **values, "coherence": 5 if i else 4}
        for i in range(3)
        for who in "AB"
    ]
    found = tables.table6(pd.DataFrame(rows)).iloc[0]
    assert (
        found["kappa"]
        == found["kappa_quadratic"]
        == found["fleiss_kappa"]
        == found["krippendorff_alpha"]
        == 1
    )
    rows[-1]["coherence"] = 4
    # 12 ratings of two raters: A gave 5 twice, B once; they agree on 11 of 12. By chance (2*1 + 10*11) / 144.
    chance = 112 / 144
    assert tables.table6(pd.DataFrame(rows)).iloc[0]["kappa"] == pytest.approx(
        (11 / 12 - chance) / (1 - chance)
    )


def test_table_7_from_its_counts():
    rows, printed = [], paper("table7").set_index("system_label")
    for system in ("same", "different"):
        votes = [
            label
            for label in ("same", "different", "uncertain")
            for _ in range(int(printed.loc[system, label]))
        ]
        for i, vote in enumerate(votes):
            others = ("same", "different", "uncertain")
            # two of three say it; an uncertain majority comes from three different answers every other time
            three = others if vote == "uncertain" and i % 2 else (vote, vote, others[i % 3])
            rows += [
                {"item": f"{system}{i}", "annotator": who, "label": label, "system": system}
                for who, label in zip("ABC", three, strict=True)
            ]
    found = tables.table7(pd.DataFrame(rows)).set_index("system_label")
    for label in ("same", "different"):
        assert (
            found.loc[label, ["total", "same", "different", "uncertain"]].tolist()
            == printed.loc[label].tolist()[:4]
        )
    assert found["accuracy_pct"].round(1).tolist() == printed["accuracy_pct"].tolist() == [92.0, 89.3, 90.7]
    assert (
        found.loc["overall", "total"] == 300
        and found.loc["overall", "accuracy_pct_low"] < 90.7 < found.loc["overall", "accuracy_pct_high"]
    )
    pairs, group = tables.compare_raters(pd.DataFrame(rows), "pairs")
    assert len(pairs) == 3 and 0 < group["fleiss_kappa"] < 1 and "kappa_quadratic" not in pairs


def test_rmse_of_table_8_follows_from_its_mse():
    for _, row in paper("table8").iterrows():
        assert round(row["mse"] ** 0.5, 2) == row["rmse"], row["model"]
    # GPT-4.1-mini: 75 right and 25 off by one
    found = overlap_metrics([0] * 75 + [1] * 25, [0] * 100)
    assert found == {"exact_acc": 75.0, "fuzzy_acc": 100.0, "mse": 0.25, "rmse": 0.5}
    # O3-mini: 77 right, 21 off by one, 2 off by two: 21 + 8 = 29
    assert round(overlap_metrics([0] * 77 + [1] * 21 + [2] * 2, [0] * 100)["rmse"], 2) == 0.54


def test_table_10_from_table_9():
    counts, printed = paper("table9"), paper("table10").iloc[0]
    labels = [1] * 124 + [0] * 21 + [1] * 18 + [0] * 137
    table9 = tables.table9(labels, [1] * 145 + [0] * 155)
    assert table9.to_numpy().tolist() == counts.to_numpy().tolist()
    found = tables.table10(table9)
    for column, value in found.items():
        assert value == pytest.approx(printed[column], abs=0.00051), column


def test_points_drawn_evenly_are_weighed_back():
    table9 = pd.DataFrame({"model_label": [1, 0], "human_1": [80, 10], "human_0": [20, 90]})
    even, log = tables.table10(table9), tables.table10(table9, share=0.2)
    assert even["accuracy"] == pytest.approx(0.85) and log["accuracy"] == pytest.approx(0.2 * 0.8 + 0.8 * 0.9)
    assert even["precision"] == pytest.approx(log["precision"]) == pytest.approx(0.8)
    assert log["recall"] == pytest.approx(0.16 / (0.16 + 0.08))


def test_response_labels_are_products_then_a_vote():
    good = dict.fromkeys(REWARD_CRITERIA, 1)
    marks = {"A": good, "B": good, "C": {**good, "R": 0}}
    rows = [{"item": "x", "annotator": who, "verdict": 0, **given} for who, given in marks.items()]
    rows += [{**row, "item": "y", "verdict": 1} for row in rows[1:]]  # one for, one against: left out
    found = tables.vote_on_responses(pd.DataFrame(rows))
    assert found.to_dict("index") == {"x": {"label": 1, "verdict": 0}}
