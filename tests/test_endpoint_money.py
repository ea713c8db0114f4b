"""Budget, usage record and keys of the chat client, against a real local server."""

import logging
import traceback
from collections import Counter

import pytest
from endpoint_client import KEY, Mark, ask, client
from misbehaving_server import MisbehavingServer

from rlpa_lib import runs
from rlpa_lib.client import endpoint, transport
from rlpa_lib.client.chat import (
    Answer,
    AuthError,
    BadAnswer,
    BudgetExceeded,
    RateLimitError,
    Request,
    RequestError,
    ServerError,
)  # fmt: skip
from rlpa_lib.client.response_cache import ResponseCache
from rlpa_lib.client.usage import Budget, Price, Usage
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError


@pytest.fixture
def server():
    with MisbehavingServer() as running:
        yield running


# a dollar a token
DEAR = {"m": Price(models=("m",), input=1e6, output=1e6, date="2025-01-01", source="here")}


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_budget_stops_before_it_is_exceeded_and_goes_on_when_raised(server, tmp_path, concurrency):
    """An answer takes 10 + 5 tokens = 15 USD. Its bound: 50 bytes + 16 (frame) + 18 (rest of the body) + 16
    (max_tokens) = 100 USD. With 160 USD: 0, 15, 30, 45 and 60 spent leave room for a bound of 100, 75 do not:
    five requests."""
    requests = [Request(({"role": "user", "content": f"{i:050d}"},), max_tokens=16) for i in range(9)]
    file, cache = tmp_path / "usage.jsonl", ResponseCache(tmp_path / "c")
    budget, usage = Budget(max_usd=160, prices=DEAR), Usage(file)
    with pytest.raises(
        BudgetExceeded,
        match="endpoint.max_usd = 160 would be exceeded: 75.000000 used, the next request may take 100",
    ):
        client(server, cache=cache, budget=budget, usage=usage, concurrency=concurrency).complete(requests)
    assert (len(server.log), budget.spent.usd, budget.reserved.usd) == (5, 75.0, 0.0)
    usage = Usage(file)  # a later session
    budget = Budget(max_usd=1000, prices=DEAR, spent=usage.spent())
    answers = client(server, cache=cache, budget=budget, usage=usage).complete(requests)
    assert sum(a.cached for a in answers) == 5
    assert (len(server.log), usage.spent().usd) == (9, 135.0)


def test_requests_and_tokens_have_budgets_too(server):
    results = client(server, budget=Budget(max_requests=7, prices={})).complete(
        [ask(f"q{i}") for i in range(20)], on_error="return"
    )
    assert Counter(type(r) for r in results) == {Answer: 7, BudgetExceeded: 13}
    assert len(server.log) == 7
    budget = Budget(max_tokens=1000, prices={})
    results = client(server, budget=budget).complete(
        [ask(f"r{i}", max_tokens=300) for i in range(90)], on_error="return"
    )
    assert 0 < budget.spent.tokens <= 1000
    assert {type(r) for r in results} == {Answer, BudgetExceeded}


def test_an_answer_that_was_lost_counts_at_its_upper_bound(server):
    usage, budget = Usage(), Budget(max_tokens=10_000, prices={})
    client(server, usage=usage, budget=budget, timeout=0.3, retries=0).complete(
        [ask("q", "hang", max_tokens=400)], on_error="return"
    )
    assert usage.rows()[0]["lost"] == 1
    assert budget.spent.tokens == usage.spent().tokens > 400
    client(server, usage=usage, budget=budget, retries=0).complete([ask("r", "500")], on_error="return")
    assert usage.rows()[0]["lost"] == 1  # a failure that was told is not billed


def test_a_server_without_counts_is_charged_an_upper_bound(server):
    usage = Usage()
    client(server, usage=usage).complete([ask("q", "nousage", say="12345")])
    [row] = usage.rows()
    assert (row["estimated"], row["completion_tokens"]) == (1, 5)
    assert row["prompt_tokens"] > len('{"id": "q"')


def test_usage_counts_what_happened(server, tmp_path):
    usage = Usage(tmp_path / "usage.jsonl")
    judge = client(server, usage=usage, cache=ResponseCache(tmp_path / "c"), budget=Budget(prices=DEAR))
    judge.complete([ask("a"), ask("b", "500", "ok"), ask("a"), ask("c", "refusal")], on_error="return")
    judge.complete([ask("a"), ask("b")][:1])
    [row] = Usage(tmp_path / "usage.jsonl").rows()
    expected = {
        "role": "judge", "model": "m", "requests": 5, "cached": 2, "errors": 1, "sent": 4, "retries": 1,
        "lost": 0,
    }
    assert {name: row[name] for name in expected} == expected
    assert (row["prompt_tokens"], row["completion_tokens"], row["usd"]) == (30, 15, 45.0)
    assert 0 < row["latency_p50"] <= row["latency_p95"] < 20


def holding(folder, secret):
    """Files under a folder that hold a text, by their bytes."""
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_the_key_is_sent_and_is_nowhere_else(server, tmp_path, monkeypatch, caplog, capsys):
    """The server echoes the key in every way it can; no file of the run, no error and no log may hold it."""
    monkeypatch.setenv("RLPA_TEST_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    settings = [
        "judge.kind=llm", "judge.model=m", f"judge.base_url={server.url}", "judge.api_key_env=RLPA_TEST_KEY",
        "endpoint.retries=1",
    ]
    run = runs.claim(config.load_config("smoke", settings), 0, tmp_path / "run", "smoke")
    judge = endpoint.endpoint_for(run.cfg, "judge", run)
    orders = ["echo", "400:echo", "500:echo", "403:echo", "429:echo", "404:echo"]
    results = [judge.complete([ask(f"q{i}", order)], on_error="return")[0] for i, order in enumerate(orders)]
    results += judge.complete([ask("bad", "echo", say="no object", schema=Mark)], on_error="return")
    try:
        judge.complete([ask("raised", "401:echo")])
    except AuthError as error:
        results.append(error)
    run.write_jsonl("judgements/all.jsonl", [{"answer": repr(result)} for result in results])
    run.log_metrics("errors", {"raw": results[-2].raw})
    told = [text for r in results if isinstance(r, Exception) for text in traceback.format_exception(r)]
    assert all(line["key"] == f"Bearer {KEY}" for line in server.log)
    assert {type(r) for r in results} == {
        Answer, RequestError, ServerError, AuthError, RateLimitError, BadAnswer,
    }
    assert transport.REDACTED in results[0].text
    assert transport.REDACTED in str(results[1])
    assert KEY not in "".join(
        [*told, *map(repr, results), repr(judge), repr(vars(judge)), caplog.text, *capsys.readouterr()]
    )
    assert holding(tmp_path / "run", KEY) == []
    assert len(list((tmp_path / "run").rglob("*.sqlite"))) == 1
    # the search works: the variable is named
    assert tmp_path / "run" / "record.json" in holding(tmp_path / "run", "RLPA_TEST_KEY")


def test_a_missing_key_is_told_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(InputError, match="user.api_key_env: the environment variable NO_SUCH_KEY is not set"):
        client(None, url="https://api.example.com/v1", role="user")


BAD_SETTINGS = [
    ({"url": "localhost:8000/v1"}, "judge.base_url: 'localhost:8000/v1' is no address"),
    ({"url": "http://me:secret@localhost/v1"}, "judge.base_url: holds a user name or password"),
    ({"url": "http://localhost/v1", "api_key_env": KEY}, "judge.api_key_env: wants the NAME"),
    (
        {"url": "https://api.example.com/v1", "budget": Budget(max_usd=1.0, prices={})},
        "judge.model: 'm' has no price",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD_SETTINGS)
def test_bad_settings_are_named_and_never_repeated(monkeypatch, options, message):
    monkeypatch.setenv("NO_SUCH_KEY", KEY)
    with pytest.raises(InputError, match=message) as error:
        client(None, **options)
    assert KEY not in str(error.value)
    assert "secret" not in str(error.value)


LOCAL = [
    "http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:1/v1", "http://192.168.1.5/v1",
    "http://gpu17:8000", "http://a.local",
]


@pytest.mark.parametrize("url", LOCAL)
def test_local_servers_need_no_key(url):
    assert transport.is_local(url)
    assert not transport.is_local("https://api.openai.com/v1")
    assert not transport.is_local("http://8.8.8.8/v1")


def test_retry_after_in_all_its_forms():
    assert transport.retry_after({"retry-after": "7"}) == 7.0
    assert transport.retry_after({"retry-after-ms": "250", "retry-after": "7"}) == 0.25
    assert transport.retry_after({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}) == 0.0
    assert transport.retry_after({"retry-after": "soon"}) is None
    assert transport.retry_after({}) is None
