"""Prices, budget and usage record, against hand-computed figures."""

import json
import threading

import pytest

from rlpa_lib.client.chat import BudgetExceeded
from rlpa_lib.client.usage import Budget, Cost, Price, Usage, read_prices
from rlpa_lib.settings.config import InputError

# models that the paper or the release names, by their servers' names
NAMED = (
    "gpt-4o-mini gpt-4o-2024-11-20 gpt-4.1-mini gpt-4.1-nano o3-mini deepseek-v3 deepseek-r1 "
    "claude-3-5-sonnet-20241022 claude-3-7-sonnet-20250219 claude-3-5-haiku-20241022"
).split()


def test_every_model_of_the_paper_has_a_dated_price():
    prices = read_prices()
    assert set(NAMED) <= set(prices)
    assert all(price.source.startswith("https://") and price.date.year >= 2024 for price in prices.values())


def test_price_of_an_answer():
    """GPT-4o-mini: 1,000 prompt tokens of which 400 cached, 200 completion tokens: 600 x .15 + 400 x .075 +
    200 x .60 = 240 per million."""
    assert read_prices()["gpt-4o-mini"].usd(1000, 200, 400) == pytest.approx(240e-6)
    assert read_prices()["deepseek-v3"].usd(1_000_000, 1_000_000) == pytest.approx(1.37)


ROW = "prices:\n  - {models: [m], input: 1, output: 2, date: 2025-01-01, source: here}\n"
BAD_TABLES = [
    (ROW.replace("output: 2, ", ""), "prices.0.output"),
    (ROW.replace("input: 1", "input: -1"), "prices.0.input"),
    (ROW.replace("input: 1", "inputs: 1"), "prices.0.input"),
    (ROW + ROW.splitlines()[1], "'?m'? has two prices"),
    ("prices: [", "cannot be read"),
]


@pytest.mark.parametrize(("text", "message"), BAD_TABLES)
def test_a_bad_price_table_is_named(tmp_path, text, message):
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_prices(file)
    assert str(file) in str(error.value)


def test_a_model_without_a_price_is_refused_only_where_it_matters():
    setting = {"setting": "user.model"}
    with pytest.raises(InputError, match="user.model: 'odd' has no price, so endpoint.max_usd"):
        Budget(max_usd=1.0).price("odd", local=False, **setting)
    assert Budget().price("odd", local=False, **setting) is None
    assert Budget(max_usd=1.0).price("odd", local=True, **setting).usd(10**6, 10**6) == 0.0
    # a gateway on this machine
    assert Budget(max_usd=1.0).price("gpt-4o-mini", local=True, **setting).input == 0.15


def test_reservations_are_upper_bounds_that_settle():
    budget = Budget(max_tokens=100)
    assert budget.reserve(Cost(1, 60))
    assert not budget.reserve(Cost(1, 60))  # must wait: the first may come out cheaper
    budget.settle(Cost(1, 60), Cost(1, 20))
    assert budget.reserve(Cost(1, 80))  # 20 + 80 = 100, just allowed
    budget.settle(Cost(1, 80), Cost(1, 30))
    with pytest.raises(
        BudgetExceeded,
        match="endpoint.max_tokens = 100 would be exceeded: 50 used, the next request may take 51",
    ):
        budget.reserve(Cost(1, 51))
    assert budget.reserve(Cost(1, 50))


def test_each_limit_counts():
    with pytest.raises(BudgetExceeded, match="max_requests = 2"):
        Budget(max_requests=2, spent=Cost(2)).reserve(Cost(1))
    with pytest.raises(BudgetExceeded, match="max_usd = 1.5"):
        Budget(max_usd=1.5, spent=Cost(0, 0, 1.0)).reserve(Cost(1, 0, 0.6))


def test_a_budget_is_never_exceeded_by_many_threads():
    budget, granted = Budget(max_requests=50), []

    def take():
        for _ in range(20):
            try:
                if budget.reserve(Cost(1)):
                    budget.settle(Cost(1), Cost(1))
                    granted.append(1)
            except BudgetExceeded:
                return

    threads = [threading.Thread(target=take) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(granted) == budget.spent.requests == 50


def filled(usage):
    for seconds in (0.4, 0.1, 0.3, 0.2):
        usage.add(
            "judge", "m", sent=1, prompt_tokens=10, completion_tokens=5, reasoning_tokens=1, usd=0.5,
            seconds=seconds,
        )
    usage.add("judge", "m", sent=1, retries=1, lost=1, lost_tokens=40, lost_usd=2.0)
    usage.add("judge", "m", requests=8, cached=2, errors=1)
    usage.add(
        "user", "free", sent=1, prompt_tokens=1, completion_tokens=1, reasoning_tokens=0, usd=None,
        seconds=1.0,
    )


def test_usage_rows_by_hand():
    usage = Usage()
    filled(usage)
    judge, user = usage.rows()
    assert (judge["requests"], judge["cached"], judge["cached_share"], judge["errors"]) == (8, 2, 0.25, 1)
    assert (judge["sent"], judge["retries"], judge["lost"]) == (5, 1, 1)
    assert (judge["prompt_tokens"], judge["completion_tokens"], judge["reasoning_tokens"]) == (40, 20, 4)
    assert (judge["usd"], judge["usd_lost"]) == (2.0, 2.0)
    assert (judge["latency_p50"], judge["latency_p95"]) == (0.2, 0.4)
    assert (user["usd"], user["cached_share"]) == (None, None)
    assert usage.spent() == Cost(6, 102, 4.0)  # 4 x 15 + 40 + 2 tokens; 4 x .5 + 2 USD


def test_usage_goes_on_after_a_restart_and_a_torn_line(tmp_path):
    file = tmp_path / "metrics" / "usage.jsonl"
    usage = Usage(file)
    filled(usage)
    assert [row["usd"] for row in Usage(file).rows()] == [2.0, None]
    with open(file, "a") as stream:
        stream.write('{"role": "jud')
    with pytest.warns(UserWarning, match="torn"):
        again = Usage(file)
    assert again.rows() == usage.rows()
    with pytest.warns(UserWarning, match="torn"):
        again.add("judge", "m", requests=1)
    assert Usage(file).rows()[0]["requests"] == 9
    assert all(json.loads(line)["role"] for line in file.read_text().splitlines())


def test_an_unpriced_model_is_shown_as_unpriced():
    price = Price(models=("m",), input=1, output=2, date="2025-01-01", source="here")
    assert price.usd(0, 0) == 0.0
    usage = Usage()
    usage.add("judge", "m", sent=1, usd=0.0)
    assert usage.rows()[0]["usd"] == 0.0
