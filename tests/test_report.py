"""The report page: made from a run directory alone, whole without a network, honest about what was not
run."""

import json
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from rlpa_lib import runs
from rlpa_lib.evaluation import ablations
from rlpa_lib.report import claims, parts, report
from rlpa_lib.report.claims import LABELS
from rlpa_lib.settings import config

matplotlib.use("Agg")
EVIL = "<script>alert(1)</script>"
LOADS = ("src", "href", "srcset", "data", "action", "poster")


class Page(HTMLParser):
    """Tags with their attributes, and the text of headings."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.headings, self._heading = [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._heading = tag in ("h1", "h2", "h3")
        if self._heading:
            self.headings.append("")

    def handle_endtag(self, tag):
        self._heading = False

    def handle_data(self, data):
        if self._heading:
            self.headings[-1] += data


def paired(low):
    rows = [
        (b, LABELS[m], 30.0, low, 40.0, 0.001, 0.004)
        for b in ("vanilla", "extended")
        for m in ("base", "rlpa_prompting", "random", "oracle")
    ]
    return pd.DataFrame(rows, columns=["benchmark", "method", "difference", "low", "high", "p", "p_holm"])


def summary(prefix=""):
    return {
        f"{prefix}{name}{part}": value
        for name, value in (("avg", 50.0), ("n_ir", 0.05), ("n_r2", 0.5))
        for part, value in (("", value), ("_low", 0.8 * value), ("_high", 1.2 * value))
    }


def dialogue(text):
    reply = {
        "profile": {"items": [["Age", "31"], ["Interests", EVIL]], "filled": []},
        "response": text,
        "format_ok": True,
    }
    broken = {"profile": {"items": [], "filled": []}, "response": "cut", "format_ok": False}
    user = {"text": "Hello", "stated": [], "phrases": []}
    turns = [
        {"user": user, "completion": "whole", "reply": reply},
        {"user": user, "completion": "<profile>cut", "reply": broken},
    ]
    return {"id": "vanilla-u1", "persona_id": "u1", "turns": turns, "pending": None}


@pytest.fixture
def empty(tmp_path):
    return runs.claim(config.load_config("smoke"), 3, tmp_path / "smoke-3", "params/smoke.yaml")


@pytest.fixture
def full(tmp_path):
    """A run directory as notebooks 20 and 30 leave it, with hostile text in it."""
    run = runs.claim(
        config.load_config("mini", ["ppo.lr=1.0e-5", "evaluation.users=37"]), 0, tmp_path / "mini-0",
        "params/mini.yaml",
    )
    rows = [
        {"model": "tiny", "method": LABELS[m], **summary("vanilla_"), **summary("extended_")}
        for m in ("base", "rlpa")
    ]
    run.save_table(pd.DataFrame(rows), "table1")
    turns = {f"k{k}{part}": 40.0 for k in range(1, 11) for part in ("", "_low", "_high")}
    run.save_table(
        pd.DataFrame([{"model": "tiny", "method": LABELS["rlpa"], **turns, **summary()}]), "table4"
    )
    run.save_table(paired(20.0), "paired")
    run.save_table(paired(-1.0), "paired_without_k1")
    run.save_table(pd.DataFrame({"note": [EVIL], "value": [np.nan]}), "extra")
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    run.save_figure(
        figure, "fig3", pd.DataFrame({"k": [1], "al": [0.5]}), caption=f"caption {EVIL}",
        alt='a "quoted" line',
    )
    run.save_figure(figure, "words", pd.DataFrame({"k": [1]}), caption="ours", alt="another line")
    for iteration in range(1, 7):
        run.log_metrics("ppo", {"iteration": iteration, "reward_total": 0.5 + 0.1 * iteration})
    run.write_jsonl("dialogues/rlpa-vanilla.jsonl", [dialogue(EVIL), dialogue("b"), dialogue("third user")])
    marks = {"N": True, "R": False, "L": True, "G": True, "F": True}
    run.write_jsonl("judgements/rlpa-vanilla.jsonl", [{"user": "u1", "turn": 1, "score": 0, "marks": marks}])
    run.path("notebooks/20_ppo.ipynb").write_text(
        json.dumps({"metadata": {"papermill": {"duration": 185.2}}, "cells": []})
    )
    return run


def build(run):
    return report.build_report(run).read_text(encoding="utf-8")


def verdicts(run):
    return dict(
        zip(report.tabulate_claims(run)["claim"], report.tabulate_claims(run)["verdict"], strict=True)
    )


def test_a_page_without_results_says_not_run(empty):
    html = build(empty)
    page = Page(html)
    assert (empty.dir / "report.html").is_file()
    assert set(report.tabulate_claims(empty)["verdict"]) == {"not tested"}
    assert html.count(">not run<") > 20
    for heading in (
        "Which claims of the paper hold in this run", "Tables", "Figures", "Sample dialogues", "What was run",
        "Deviations from the paper", "How to repeat it",
    ):
        assert heading in page.headings
    assert "its numbers mean nothing" in html
    assert page.headings[0] == "RLPA replicated: run smoke-3"


def test_nothing_is_loaded_from_elsewhere_and_all_text_is_escaped(full):
    html = build(full)
    page = Page(html)
    assert "<script" not in html and EVIL not in html
    assert html.count("&lt;script&gt;") >= 4  # profile, response, caption, table
    for tag, attrs in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base")
        assert not [name for name in attrs if name.startswith("on")]
        for name in LOADS:
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, name)
    assert not re.search(r"url\(|@import|https?://", html)


def test_every_figure_has_alt_text_caption_and_data(full):
    html = build(full)
    images = [attrs for tag, attrs in Page(html).tags if tag == "img"]
    assert [image["alt"] for image in images] == ['a "quoted" line', "another line"]
    assert all(
        image["src"].startswith("data:image/png;base64,") and int(image["width"]) > 0 for image in images
    )
    assert html.count("<figcaption>") == 2 and html.count("The data that it draws") == 2
    (full.dir / "figures/fig3.json").unlink()
    assert "Figure fig3; no description was recorded" in build(full)


def test_rows_that_were_not_run_are_named(full):
    html = build(full)
    table1 = html[html.index("Table 1: alignment") : html.index("RLPA minus each other row")]
    for label in ("SFT", "DPO", "Self-Critic", "CoT", "RAG(Top-5)", "Reminder", "GPT-4o, Self-Critic"):
        assert re.search(
            rf'<th scope="row">{re.escape(label)}</th>\s*<td colspan="6">not run</td>', table1
        ), label
    assert "50.0<small>40.0 to 60.0</small>" in table1
    assert re.search(r'<th scope="row">table 2</th><td>[^<]*</td><td>not run</td>', html)


def test_the_miniature_says_what_it_cannot_say(full):
    assert "A miniature&#39;s result says nothing about Qwen2.5-3B" in build(full)


def test_claims_follow_their_rule(full):
    found = verdicts(full)
    assert found["Training with RLPA improves alignment with new users"] == "holds"
    assert found["The improvement carries over to slots never seen in training"] == "holds"
    assert found["The improvement is more than a better first reply"] == "does not hold"
    assert found["RLPA beats SFT and DPO"] == "not tested"
    assert found["With RLPA alignment keeps rising over the turns"] == "holds"
    assert found["Training raises the reward"] == "holds"
    full.save_table(paired(-0.1), "paired")
    assert verdicts(full)["Training with RLPA improves alignment with new users"] == "does not hold"
    full.save_table(paired(20.0).query("method != 'Base'"), "paired")
    assert verdicts(full)["Training with RLPA improves alignment with new users"] == "not tested"


def test_table_2_is_tested_where_21_ablations_ran(full):
    """From the table that the notebook saves, whose rows are variants and whose users are Vanilla's alone."""
    claim = "Both rewards are needed"
    assert verdicts(full)[claim] == "not tested"
    rng = np.random.default_rng(0)
    scores = {
        variant: (rng.random((40, 5)) < share).astype(float) for variant, share in (("PRR", 0.8), ("PR", 0.2))
    }
    full.save_table(ablations.comparison_table(scores), "ablation_paired")
    found = next(c for c in claims.check_claims(full.dir) if c.claim == claim)
    assert found.verdict == "not tested" and found.evidence.endswith("not run: RLPA w/ RR (vanilla)")
    full.save_table(ablations.comparison_table({**scores, "RR": scores["PR"][::-1]}), "ablation_paired")
    assert verdicts(full)[claim] == "holds"
    full.save_table(ablations.comparison_table({**scores, "RR": scores["PRR"][::-1]}), "ablation_paired")
    assert verdicts(full)[claim] == "does not hold"


def test_another_models_row_is_not_taken_for_ours(full):
    """evaluation.comparators puts rows of other models first, under the same methods."""
    rows = [
        {"model": model, "method": method, **{f"vanilla_avg{part}": value for part in ("", "_low", "_high")}}
        for model, method, value in (
            ("DeepSeek-R1", "Base", 90.0), ("GPT-4o", "Self-Critic", 80.0), ("tiny", "Base", 10.0),
        )
    ]
    full.save_table(pd.DataFrame(rows), "table1")
    cells = dict(parts.build_score_grid(full.dir, "table1", {"vanilla_avg": ("AVG", 1)}).rows)
    shown = {label: row[0].text for label, row in cells.items() if row}
    assert shown == {"Base": "10.0", "GPT-4o, Self-Critic": "80.0", "DeepSeek-R1, Base": "90.0"}


def test_a_run_with_few_users_tests_nothing(empty):
    empty.save_table(paired(20.0), "paired")
    found = claims.check_claims(empty.dir)
    assert {claim.verdict for claim in found} == {"not tested"}
    assert found[0].evidence.startswith("only 8 users; vanilla, Base: +30.0")


def test_reward_needs_four_cohorts_and_a_clear_rise():
    assert claims._compare_halves([]) == ("not tested", "no training in this run")
    assert claims._compare_halves([0.1, 0.2, 0.3])[0] == "not tested"
    assert claims._compare_halves([0.5, 0.5, 0.5, 0.5])[0] == "not tested"
    assert claims._compare_halves([0.1, 0.2, 0.9, 1.0])[0] == "holds"
    assert claims._compare_halves([0.9, 0.1, 0.8, 0.3])[0] == "does not hold"


def test_dialogues_are_the_first_two_users_with_marks(full):
    html = build(full)
    assert html.count("RLPA · vanilla · u1") == 2 and "third user" not in html
    assert "mark 0 (R failed)" in html
    assert "<pre>&lt;profile&gt;cut</pre>" in html


def test_the_command_repeats_the_run(full):
    make, command = parts.build_commands(full.record, full.dir)
    assert (
        make
        == "make reproduce SCALE=mini SEED=0 RUN_DIR=runs/mini-0 'SET=ppo.lr=1.0e-05 evaluation.users=37'"
    )
    changes = re.findall(r"--set (\S+)", command)
    assert config.load_config("mini", changes) == full.cfg


def test_times_and_record_are_shown(full):
    html = build(full)
    assert "3 min 05 s" in html and "20_ppo" in html
    assert full.record["hardware"]["system"] in html
    assert f"Versions of installed packages ({len(full.record['packages'])})" in html


def test_changed_code_is_said(full):
    assert "with changed code" not in build(full)
    full.note("resumed", [{"start": "later", "code": {**full.record["code"], "library_sha256": "other"}}])
    assert "1 times, with changed code" in build(full)


def test_floats_survive_yaml():
    for value in (1e-5, 3e-4, 0.0, 2.5e-7, 1e22, 5.0):
        assert (
            config.load_config("mini", [f"endpoint.max_usd={parts.format_value(value)}"]).endpoint.max_usd
            == value
        )
