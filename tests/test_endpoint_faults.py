"""The chat client against a real local server that misbehaves on command: what passes, what does not, and
what is said of it."""

import itertools
import time
from collections import Counter

import pytest
from endpoint_client import Mark, ask, client
from misbehaving_server import MisbehavingServer

from rlpa_lib.client import response_cache
from rlpa_lib.client.chat import (
    Answer,
    AuthError,
    BadAnswer,
    ConnectionLost,
    EndpointError,
    Filtered,
    RateLimitError,
    Refused,
    Request,
    RequestError,
    ServerError,
    TimeoutError_,
)  # fmt: skip
from rlpa_lib.client.response_cache import ResponseCache
from rlpa_lib.client.usage import Usage


@pytest.fixture
def server():
    with MisbehavingServer() as running:
        yield running


FAULTS = {  # fault -> (orders before a good answer, error when it never gets better)
    "429": (["429"], RateLimitError),
    "429 Retry-After": (["429:0.2"], RateLimitError),
    "429 Retry-After date": (["429:date"], RateLimitError),
    "408": (["408"], ServerError),
    "500": (["500"], ServerError),
    "502": (["502"], ServerError),
    "503": (["503"], ServerError),
    "time-out": (["hang"], TimeoutError_),
    "slow drip": (["drip"], TimeoutError_),
    "reset in mid-body": (["reset"], ConnectionLost),
    "body cut short": (["short"], ConnectionLost),
    "truncated JSON": (["truncated"], ServerError),
    "empty choices": (["nochoices"], ServerError),
    "wrong schema": (["ok"], BadAnswer),
    "answer cut off": (["length"], BadAnswer),
    "refusal": (["refusal"], Refused),
    "content filter": (["filter"], Filtered),
    "content filter, 400": (["400:content_filter"], Filtered),
}
FINAL = {"refusal", "content filter", "content filter, 400"}  # not tried again


def faulty(name, times, copy):
    """Request, and the text of the right answer or the error that is due. `times` None = always."""
    orders, error = FAULTS[name]
    label, right = f"{name} {times} {copy}", '{"mark": 1}'
    wrong = '{"mark": "none"}' if name == "wrong schema" else right
    tries = 1 if name in FINAL else times
    do = orders if tries is None else orders * tries + ["ok"]
    say = [wrong] * len(orders) * (tries or 1) + ([] if times is None else [right])
    return ask(label, *do, say=say, schema=Mark), error if times is None or name in FINAL else right


class Ledger(ResponseCache):
    """A cache that counts how often each row is handed in."""

    def __init__(self, path):
        super().__init__(path)
        self.handed_in = Counter()

    def put(self, rows):
        self.handed_in.update(rows.keys())
        return super().put(rows)


def _patience():
    """Seconds after which a try is given up: ten times what 64 good requests take now, so that a busy machine
    is not taken for a fault."""
    with MisbehavingServer() as server:
        began = time.monotonic()
        client(server, concurrency=64).complete(
            [ask(f"probe {i}", schema=Mark, say='{"mark": 1}') for i in range(64)]
        )
    return min(8.0, max(2.0, 10 * (time.monotonic() - began)))


def test_fault_matrix(tmp_path, capsys):
    """Every fault once, twice and for ever, three copies each, in one shuffled batch: a right answer or the
    typed error that is due."""
    cases = [(name, times, copy) for copy in range(3) for times in (1, 2, None) for name in FAULTS]
    cases = [case for case in cases if "date" not in case[0] or case[1:] == (1, 0)]  # dates count in seconds
    cases = cases[1::2] + cases[::2]
    asked = [faulty(*case) for case in cases]
    usage = Usage()
    with MisbehavingServer() as server:
        ledger = Ledger(tmp_path / "c")
        judge = client(server, cache=ledger, usage=usage, concurrency=64, retries=2, timeout=_patience())
        results = judge.complete([request for request, _ in asked], on_error="return")
        again = judge.complete(
            [request for (request, _), r in zip(asked, results, strict=True) if isinstance(r, Answer)]
        )
        log = list(server.log)
    table = {name: Counter() for name in FAULTS}
    for (name, times, copy), (request, due), got in zip(cases, asked, results, strict=True):
        right = got.text == due if isinstance(got, Answer) else type(got) is due
        kind = "right answer" if isinstance(got, Answer) else type(got).__name__
        base = response_cache.base_key(server.url, "m", request.content() | {"mode": "auto"})
        bought = [ledger.handed_in[response_cache.row_key(base, attempt)] for attempt in range(3)]
        answers_due = 1 if name in FINAL or times is not None else 0
        if name in ("wrong schema", "answer cut off"):
            answers_due = 3 if times is None else times + 1
        # on a busy machine a wrong answer may come too late as well; then it is not bought, and the next one
        # is
        twice = max(bought) > 1 or sum(bought) > answers_due
        lost = not isinstance(got, (Answer, EndpointError)) or (isinstance(got, Answer) and not sum(bought))
        table[name] += Counter({"requests": 1, kind: 1, "as due": right, "duplicated": twice, "lost": lost})
        table[name]["tries"] += sum(line["id"] == f"{name} {times} {copy}" for line in log)
    with capsys.disabled():
        print(
            f"\n{'fault':22}{'requests':>9}{'right':>7}{'typed':>7}"
            f"{'as due':>8}{'lost':>6}{'twice':>7}{'tries':>7}"
        )
        for name, row in table.items():
            typed = row["requests"] - row["right answer"]
            cells = (
                row["requests"], row["right answer"], typed, row["as due"], row["lost"], row["duplicated"],
                row["tries"],
            )
            print(
                f"{name:22}"
                + "".join(
                    f"{cell:>{width}}" for cell, width in zip(cells, (9, 7, 7, 8, 6, 7, 7), strict=True)
                )
            )
    assert len(results) == len(cases)
    for name, row in table.items():
        assert (row["as due"], row["lost"], row["duplicated"]) == (row["requests"], 0, 0), name
    assert all(a.cached for a in again)
    [total] = usage.rows()
    assert total["sent"] == len(log)
    assert total["errors"] == sum(isinstance(r, EndpointError) for r in results)


def test_errors_name_the_role_and_keep_the_raw_text(server):
    [bad, refused] = client(server).complete(
        [ask("a", say="no object", schema=Mark), ask("b", "refusal")], on_error="return"
    )
    assert (type(bad), bad.raw, bad.role) == (BadAnswer, "no object", "judge")
    assert "no Mark in 3 answers: there is no JSON object in it" in str(bad)
    assert (str(refused), refused.role) == ("I cannot help with that.", "judge")


def test_retry_after_is_honoured_and_holds_for_all():
    """Two at a time: the first meets the limit while the second is under way; nobody else is sent before the
    server's time is over."""
    with MisbehavingServer(latency=0.05) as server:
        client(server, concurrency=2).complete([ask("a", "429:0.8", "ok"), *(ask(f"q{i}") for i in range(4))])
        first, *later = [line["at"] for line in server.log]
    assert len(later) == 5
    assert sum(at - first < 0.8 for at in later) == 1


def test_waiting_is_bounded_in_time(server):
    began = time.monotonic()
    [error] = client(server, max_wait=5.0).complete([ask("a", "429:3600")], on_error="return")
    assert time.monotonic() - began < 4
    assert "asks to wait 3600 s, more than endpoint.max_wait" in str(error)
    assert len(server.log) == 1
    [error] = client(server, max_wait=0.05, retries=100, backoff=0.02).complete(
        [ask("b", "500")], on_error="return"
    )
    assert isinstance(error, ServerError)
    assert len(server.log) < 8


def test_a_rate_limited_server_is_served_in_the_end():
    with MisbehavingServer(limit=(5, 0.3)) as server:
        answers = client(server, retries=20).complete([ask(f"q{i}") for i in range(20)])
        assert sorted(server.answer()) == sorted(f"q{i}" for i in range(20))
    assert [a.text for a in answers] == [f"answer to q{i}" for i in range(20)]


def test_requests_a_minute_are_kept():
    with MisbehavingServer() as server:
        client(server, max_rpm=1200).complete([ask(f"q{i}") for i in range(11)])
        times = [line["at"] for line in server.log]
    assert max(times) - min(times) >= 10 * 0.05 - 0.02


AT_ONCE = [
    ("401", AuthError, "judge.api_key_env ('NO_SUCH_KEY'): the key is refused"),
    ("403", AuthError, "judge.api_key_env ('NO_SUCH_KEY')"),
    ("404", RequestError, "judge.model ('m') or judge.base_url ('http://127.0.0.1:"),
    (
        "400",
        RequestError,
        "judge.model ('m'): the server does not take this request: 400: made-up failure 400",
    ),
    ("400:max_tokens", RequestError, "judge.max_tokens: the server does not take this request"),
    ("422", RequestError, "judge.model"),
    ("429:quota", AuthError, "the account behind this key has no money left: 429"),
    ("402", AuthError, "the account behind this key has no money left: 402"),
]


@pytest.mark.parametrize(("order", "kind", "message"), AT_ONCE)
def test_what_cannot_pass_fails_at_once_and_names_the_setting(server, order, kind, message):
    with pytest.raises(kind) as error:
        client(server).complete([ask("q", order)])
    assert message in str(error.value)
    assert len(server.log) == 1


@pytest.mark.parametrize("on_error", ["raise", "return"])
def test_a_wrong_key_is_not_tried_a_thousand_times(server, on_error):
    requests = [ask(f"q{i}", "401") for i in range(1000)]
    if on_error == "raise":
        with pytest.raises(AuthError):
            client(server).complete(requests)
    else:
        results = client(server).complete(requests, on_error="return")
        assert {type(r) for r in results} == {AuthError}
    assert len(server.log) <= 8


def test_the_first_error_stops_the_batch_and_keeps_what_was_answered(server, tmp_path):
    judge = client(server, cache=ResponseCache(tmp_path / "c"), concurrency=1)
    with pytest.raises(RequestError):
        judge.complete([ask("a"), ask("b", "400"), ask("c")])
    assert [line["id"] for line in server.log] == ["a", "b"]
    assert judge.complete([ask("a")])[0].cached


def test_an_absent_server_is_given_up_once():
    with MisbehavingServer() as server:
        url = server.url
    usage = Usage()
    judge = client(None, url=url, usage=usage, retries=1, concurrency=2)
    results = judge.complete([ask(f"q{i}") for i in range(50)], on_error="return")
    assert {type(r) for r in results} == {ConnectionLost}
    assert "judge.base_url" in str(results[0])
    assert "cannot be reached" in str(results[0])
    assert usage.rows()[0]["sent"] <= 4


def test_text_that_is_not_unicode_is_refused_before_it_is_sent(server):
    [error] = client(server).complete([Request(({"role": "user", "content": "\ud800"},))], on_error="return")
    assert isinstance(error, RequestError)
    assert server.log == []


def test_delays_grow_and_are_jittered():
    with MisbehavingServer() as server:
        client(server, retries=4, backoff=0.1).complete([ask("q", "500")], on_error="return")
        times = [line["at"] for line in server.log]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    for i, gap in enumerate(gaps):
        assert gap >= 0.5 * 0.1 * 2**i
