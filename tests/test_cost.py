"""What a run is planned to cost is held against its cap before it starts; nothing is asked where nothing
costs."""

import json
from functools import partial

import pytest

from rlpa_lib import runs
from rlpa_lib.__main__ import main
from rlpa_lib.plan import cost, plan, spending
from rlpa_lib.plan.gpu import Work
from rlpa_lib.reproduce import runner
from rlpa_lib.runs import record
from rlpa_lib.runs.run import _LOCKS
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError

PARTS = ("user", "judge", "evaluator")
PAID = [f"{part}.{key}" for part in PARTS for key in ("kind=llm", "model=gpt-4o-mini")]
SERVER = [f"{part}.base_url=https://models.example.com/v1" for part in PARTS]


@pytest.fixture
def books(tmp_path):
    """A folder with 10_prompting_baselines and 30_evaluation, which do nothing."""
    folder = tmp_path / "books"
    folder.mkdir()
    cells = [
        {"cell_type": "code", "id": "p", "execution_count": None, "outputs": [], "source": "params = 1",
         "metadata": {"tags": ["parameters"]}},
    ]  # fmt: skip
    for name in ("10_prompting_baselines", "30_evaluation"):
        book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        (folder / f"{name}.ipynb").write_text(json.dumps(book))
    return folder


def start(tmp_path, books, *changes, accept=None, only=(), monkeypatch=None):
    """Code and the settings with which notebooks would have been run (None: none was)."""
    seen = []
    monkeypatch.setattr(runner, "_run_all", lambda run, *_: seen.append(run))
    monkeypatch.setattr(runner, "check_needs", lambda *_: None)
    runner.reproduce(
        "smoke", 0, tmp_path / "run", only, [*PAID, *SERVER, *changes], books,
        agree=partial(spending.agree, accepted=accept),
    )
    return seen[0]


def planned(*changes, only=None):
    loads = plan.plan(config.load_config("smoke", [*PAID, *SERVER, *changes]), only=only)
    return {load.notebook: plan.usd(config.load_config("smoke", PAID), load.asked) for load in loads}


def test_a_plan_beyond_the_cap_is_refused_before_anything_is_written(tmp_path, books, monkeypatch):
    both = planned(only=("10_prompting_baselines", "30_evaluation"))
    cap = both["10_prompting_baselines"] + both["30_evaluation"] / 2
    told = f"endpoint.max_usd: .* but {sum(both.values()):,.2f} are planned; it would stop in 30_evaluation.*"
    with pytest.raises(InputError, match=f"{told}--accept-cost 1, or raise endpoint.max_usd"):
        start(tmp_path, books, f"endpoint.max_usd={cap:f}", monkeypatch=monkeypatch)
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="it would stop in 10_prompting_baselines"):
        start(tmp_path, books, "endpoint.max_usd=0.001", accept=0.002, monkeypatch=monkeypatch)
    assert not (tmp_path / "run").exists()
    run = start(tmp_path, books, f"endpoint.max_usd={cap:f}", accept=3.5, monkeypatch=monkeypatch)
    assert run.cfg.endpoint.max_usd == 3.5 == run.record["params"]["endpoint"]["max_usd"]


def test_what_is_accepted_later_goes_on_in_the_same_folder(tmp_path, books, monkeypatch):
    one = start(tmp_path, books, "endpoint.max_usd=9.0", monkeypatch=monkeypatch)
    before = one.fingerprint()
    _LOCKS.pop(one.dir).close()  # as if the process had ended
    more = start(tmp_path, books, "endpoint.max_usd=9.0", accept=20, monkeypatch=monkeypatch)
    assert (more.cfg.endpoint.max_usd, more.fingerprint()) == (20.0, before)
    assert more.record["spending"] == {"endpoint.max_usd": 20.0}
    other = config.change_config(more.cfg, ["endpoint.retries=1"], "x")
    with pytest.raises(InputError, match="endpoint.retries was"):
        record.check_same(one.dir, 0, config.dump_config(other))


def test_other_notebooks_money_counts_and_a_repeated_notebook_does_not(tmp_path, books, monkeypatch):
    run = start(tmp_path, books, "endpoint.max_usd=9.0", monkeypatch=monkeypatch)
    lines = [("20_ppo", 8.0, 0.05), ("30_evaluation", 8.0, 0.0)]
    for notebook, paid, lost in lines:
        line = {"role": "user", "model": "m", "notebook": notebook, "usd": paid, "lost_usd": lost, "sent": 1}
        runs.storage.append_jsonl(run.dir / spending.USAGE, line)
    names = {"10_prompting_baselines", "30_evaluation"}
    assert not spending.agree(run.cfg, names, run.dir, None)
    tight = config.change_config(run.cfg, ["endpoint.max_usd=8.1"], "x")
    with pytest.raises(InputError, match="on top of 8.05 spent"):
        spending.agree(tight, names, run.dir, None)


def test_a_model_without_a_price_cannot_have_a_cap():
    cfg = config.load_config("smoke", [*PAID, *SERVER, "judge.model=odd", "endpoint.max_usd=5.0"])
    with pytest.raises(InputError, match="judge.model: 'odd' of notebook .* has no price"):
        spending.agree(cfg, {"30_evaluation", "20_ppo"}, runner.NOTEBOOKS, None)
    assert not spending.agree(cfg, {"11_sft"}, runner.NOTEBOOKS, None), "a notebook that asks nobody"


@pytest.mark.parametrize("changes", [[], [*PAID, *(s.replace("https://models.example.com", "http://127.0.0.1:9")
                                                   for s in SERVER), "user.model=a", "judge.model=a",
                                          "evaluator.model=a", "endpoint.max_usd=1.0"]])  # fmt: skip
def test_where_nothing_costs_money_nothing_is_asked_or_changed(tmp_path, changes):
    cfg = config.load_config("smoke", changes)
    names = {path.stem for path in runner.list_notebooks()}
    assert not spending.agree(cfg, names, tmp_path, None) and not spending.agree(cfg, names, tmp_path, 5.0)
    assert "endpoint.max_usd" not in cost.tell_cap(cfg, [(x.notebook, x.asked) for x in plan.plan(cfg)])


@pytest.mark.parametrize("amount", ["-1", "0", "nan"])
def test_an_amount_that_is_none_is_refused(tmp_path, capsys, amount):
    command = ["reproduce", "--scale", "smoke", "--run-dir", str(tmp_path / "run"), f"--accept-cost={amount}"]
    assert main(command) == 2 and "--accept-cost: wants USD" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_plan_compares_with_the_cap_and_names_the_notebook():
    cfg = config.load_config("paper")
    text = plan.table(cfg)
    assert "endpoint.max_usd: 50.00 USD, but" in text and "it would stop in 10_prompting_baselines" in text
    enough = plan.table(config.change_config(cfg, ["endpoint.max_usd=5000.0"], "x"))
    assert "endpoint.max_usd: 5,000.00 USD are enough for the" in enough
    assert "endpoint.max_usd" not in plan.table(config.load_config("mini")).split("Assumptions")[0]


def test_the_bill_adds_up_in_the_order_of_notebooks():
    cfg = config.load_config("smoke", [])
    party = ("user", "gpt-4o-mini", "https://api.openai.com/v1")
    bills = [(name, {party: Work(1, 1e6, 1, 0)}) for name in ("10_a", "20_b", "30_c")]  # .15 USD each
    assert cost.check_cap(cfg, bills, 0.46) == pytest.approx(0.45)
    for cap, stop in ((0.1, "10_a"), (0.2, "20_b"), (0.44, "30_c")):
        with pytest.raises(InputError, match=f"it would stop in {stop}"):
            cost.check_cap(cfg, bills, cap)
