"""The chat client against a real local server: order, sameness, structure, replay, notebooks, settings."""

import asyncio
import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest
from endpoint_client import KEY, Mark, Reasoned, ask, client
from misbehaving_server import MisbehavingServer

from rlpa_lib.client import endpoint
from rlpa_lib.client.chat import BadAnswer, BudgetExceeded, CacheMiss, RequestError
from rlpa_lib.client.response_cache import ResponseCache
from rlpa_lib.client.usage import Usage
from rlpa_lib.settings import config
from rlpa_lib.settings.config import InputError


@pytest.fixture
def server():
    with MisbehavingServer() as running:
        yield running


def test_answers_come_in_order_and_equal_requests_are_sent_once(server):
    requests = [ask(f"q{i % 30}") for i in range(60)]
    answers = client(server).complete(requests)
    assert [a.text for a in answers] == [f"answer to q{i % 30}" for i in range(60)]
    assert [a.cached for a in answers] == [False] * 30 + [True] * 30
    assert sorted(server.answer()) == sorted(f"q{i}" for i in range(30))


def test_no_more_requests_at_a_time_than_allowed():
    with MisbehavingServer(latency=0.05) as server:
        client(server, concurrency=5).complete([ask(f"q{i}") for i in range(30)])
        assert server.most_busy == 5


def test_nothing_asked_nothing_sent(server):
    assert client(server).complete([]) == []
    assert server.log == []


def test_the_schema_is_asked_for_and_checked(server):
    [answer] = client(server).complete([ask("q", say='{"reason": "so", "mark": 1}', schema=Reasoned)])
    assert answer.parsed == Reasoned(reason="so", mark=1)
    asked = server.log[0]["body"]["response_format"]
    assert (asked["type"], asked["json_schema"]["name"], asked["json_schema"]["strict"]) == (
        "json_schema", "Reasoned", True,
    )
    assert asked["json_schema"]["schema"]["required"] == ["reason", "mark"]
    assert asked["json_schema"]["schema"]["additionalProperties"] is False
    assert "maxLength" in json.dumps(asked)


def test_a_server_without_schemas_is_asked_in_words_from_then_on(tmp_path):
    """Refused once without limits on lengths, once more as a whole; then never asked again, and the thinking
    is told apart."""
    said = '<think>{"mark": 7}?</think>The verdict: {"reason": "so", "mark": 1}'
    with (
        MisbehavingServer(refuses=["response_format"]) as server,
        pytest.warns(UserWarning, match="refuses structured output"),
    ):
        judge = client(server, concurrency=1)
        answers = judge.complete([ask(f"q{i}", say=said, schema=Reasoned) for i in range(3)])
        bodies = [line["body"] for line in server.log]
    assert [a.parsed for a in answers] == [Reasoned(reason="so", mark=1)] * 3
    assert answers[0].reasoning == '{"mark": 7}?'
    assert ["response_format" in body for body in bodies] == [True, True, False, False, False]
    assert ["maxLength" in json.dumps(body.get("response_format")) for body in bodies] == [
        True, False, False, False, False,
    ]
    assert bodies[-1]["messages"][0]["role"] == "system"
    assert '"mark"' in bodies[-1]["messages"][0]["content"]


def test_modes_that_are_set_are_kept():
    with MisbehavingServer(refuses=["response_format"]) as server:
        with pytest.raises(RequestError, match="response_format"):
            client(server, mode="json_schema").complete([ask("q", say='{"mark": 1}', schema=Mark)])
        client(server, mode="text").complete([ask("r", say='{"mark": 1}', schema=Mark)])
        assert "response_format" not in server.log[-1]["body"]


def test_an_answer_that_does_not_parse_is_asked_again_under_another_seed_and_kept(server, tmp_path):
    cache = ResponseCache(tmp_path / "c")
    request = ask("q", say=["none", '{"mark": "?"}', '{"mark": 1}'], schema=Mark, seed=3)
    [answer] = client(server, cache=cache).complete([request])
    assert answer.parsed == Mark(mark=1)
    seeds = [line["body"]["seed"] for line in server.log]
    assert seeds[0] == 3
    assert len(set(seeds)) == len(cache) == 3
    assert "An earlier answer did not fit" in server.log[1]["body"]["messages"][0]["content"]
    assert client(server, cache=cache).complete([request])[0] == replace(answer, cached=True)
    assert len(server.log) == 3


def test_a_bad_answer_is_replayed_as_bad_without_paying_again(server, tmp_path):
    judge = client(server, cache=ResponseCache(tmp_path / "c"), parse_retries=1)
    for _ in range(2):
        with pytest.raises(BadAnswer):
            judge.complete([ask("q", say="none", schema=Mark)])
    assert len(server.log) == 2


def test_a_bad_answer_that_was_cut_says_which_setting_to_raise(server):
    with pytest.raises(BadAnswer, match=r"cut off at max_tokens \(judge.max_tokens = 512\)"):
        client(server).complete([ask("q", "length", say='{"mark": 1}', schema=Mark)])


@pytest.mark.parametrize("refused", ["temperature", "seed", "max_tokens", "top_p"])
def test_reasoning_models_that_refuse_a_setting_are_asked_without_it(refused):
    request = ask("q", temperature=0.3, seed=4, top_p=0.9)
    with (
        MisbehavingServer(refuses=[refused]) as server,
        pytest.warns(UserWarning, match=f"judge: m refuses {refused}"),
    ):
        judge = client(server)
        judge.complete([request])
        judge.complete([replace(request, seed=5)])
        bodies = [line["body"] for line in server.log]
    assert [refused in body for body in bodies] == [True, False, False]
    assert (bodies[1].get("max_completion_tokens") == 512) == (refused == "max_tokens")


def test_reasoning_that_the_server_tells_apart(server):
    [answer] = client(server).complete([ask("q", "reasoning", say="visible")])
    assert (answer.text, answer.reasoning, answer.reasoning_tokens) == ("visible", "thought of the server", 3)


def test_a_run_is_replayed_with_the_network_off(server, tmp_path):
    requests = [ask(f"q{i}", say='{"mark": 1}', schema=Mark) for i in range(20)]
    first = client(server, cache=ResponseCache(tmp_path / "c")).complete(requests)
    server.__exit__()
    replay = client(server, cache=ResponseCache(tmp_path / "c"), cache_only=True)
    assert replay.complete(requests) == [replace(a, cached=True) for a in first]
    [miss] = replay.complete([ask("new")], on_error="return")
    assert isinstance(miss, CacheMiss)
    assert "endpoint.cache_only" in str(miss)
    server.__enter__()


def test_a_replay_needs_no_key_but_a_cache(tmp_path):
    options = {"url": "https://api.example.com/v1", "cache_only": True}
    client(None, cache=ResponseCache(tmp_path / "c"), **options)
    with pytest.raises(InputError, match="endpoint.cache_only: needs a cache"):
        client(None, **options)


def test_it_works_under_a_running_loop_and_in_threads(server):
    judge = client(server)

    async def cell(name):
        await asyncio.sleep(0)
        return judge.complete([ask(f"{name}{i}") for i in range(5)])

    assert len(asyncio.run(cell("a"))) == 5
    assert len(asyncio.run(cell("b"))) == 5  # another loop, the same endpoint
    assert len(judge.complete([ask("c")])) == 1
    done = []
    threads = [
        threading.Thread(
            target=lambda i=i: done.extend(judge.complete([ask(f"t{i}-{j}") for j in range(10)]))
        )
        for i in range(4)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(done) == 40


@pytest.fixture
def interruptible():
    """A process that was started in the background ignores interrupts; this test must not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("running", [False, True])
def test_an_interrupt_stops_the_requests(server, running, interruptible):
    usage = Usage()
    judge = client(server, usage=usage, concurrency=3)

    async def cell():
        judge.complete([ask(f"q{i}", "hang") for i in range(9)])

    def act():
        # a kernel runs its loop like this; asyncio.run would take the interrupt for itself
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(cell()) if running else judge.complete(
                [ask(f"q{i}", "hang") for i in range(9)]
            )
        finally:
            loop.close()

    def interrupt():
        while len(server.log) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    began = time.monotonic()
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        act()
    assert time.monotonic() - began < 15
    assert (len(server.log), usage.rows()[0]["lost"]) == (3, 3)


@pytest.mark.slow
def test_it_works_in_a_notebook(server):
    import nbclient
    import nbformat

    code = (
        "from rlpa_lib.client.chat import Request\n"
        "from rlpa_lib.client.endpoint import ChatEndpoint\n"
        "from rlpa_lib.client.transport import Server\n"
        "from rlpa_lib.client.usage import Budget, Usage\n"
        f"server = Server('user', '{server.url}', 'm', 'NO')\n"
        "e = ChatEndpoint(server, 'user', cache=None, budget=Budget(), usage=Usage())\n"
        "a = e.complete([Request(({'role': 'user', 'content': f'q{i}'},)) for i in range(20)], "
        "desc='users')\n"
        "b = e.complete([Request(({'role': 'user', 'content': 'again'},))])\n"
        "print([x.text for x in a + b][-2:])"
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(book, timeout=120).execute()
    printed = "".join(out.get("text", "") for out in book.cells[0].outputs if out.get("name") == "stdout")
    assert printed == "['echo of q19', 'echo of again']\n"


def test_endpoints_of_a_run_share_cache_budget_and_record(server, tmp_path):
    sections = ["user", "judge", "evaluator"]
    settings = [
        f"{section}.{key}"
        for section in sections
        for key in ("kind=llm", "model=m", f"base_url={server.url}")
    ]
    cfg = config.load_config(
        "smoke",
        [
            *settings, "profile_judge.model=other", f"profile_judge.base_url={server.url}",
            "endpoint.max_requests=4", "user.api_key_env=NO_SUCH_KEY",
        ],
    )
    made = [
        endpoint.endpoint_for(cfg, role, tmp_path)
        for role in ("user", "response_judge", "profile_judge", "evaluator", "converter")
    ]
    assert [e.model for e in made] == ["m", "m", "other", "m", "m"]
    for e in made[:4]:
        e.complete([ask(f"q of {e.role}")])
    # the same question in another role is the same answer
    assert made[4].complete([ask("q of user")])[0].cached
    with pytest.raises(BudgetExceeded, match="endpoint.max_requests = 4"):
        made[4].complete([ask("one more")])
    rows = Usage(tmp_path / "metrics" / "usage.jsonl").rows()
    assert [(row["role"], row["sent"]) for row in rows] == [
        ("converter", 0), ("evaluator", 1), ("profile_judge", 1), ("response_judge", 1), ("user", 1),
    ]  # fmt: skip
    assert (tmp_path / "cache" / "responses.sqlite").is_file()


def test_settings_of_the_profile_judge_are_named_by_their_own_key(server, tmp_path):
    settings = [
        "judge.kind=llm", "judge.model=m", f"judge.base_url={server.url}", "profile_judge.model=other",
        f"profile_judge.base_url={server.url}", "endpoint.cache=off",
    ]
    judge = endpoint.endpoint_for(config.load_config("smoke", settings), "profile_judge", tmp_path)
    with pytest.raises(RequestError, match="profile_judge.model"):
        judge.complete([ask("q", "404")])
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "setting",
    [
        f"judge.api_key_env={KEY}", "judge.base_url=https://me:secret@example.com/v1",
        "judge.base_url=localhost:8000",
    ],
)
def test_secrets_and_half_addresses_are_refused_by_the_settings(setting):
    with pytest.raises(InputError, match=setting.partition("=")[0]):
        config.load_config("smoke", [setting])


def test_the_cache_can_be_switched_off_in_yaml():
    """YAML reads a bare off as false."""
    assert config.load_config("smoke", ["endpoint.cache=off"]).endpoint.cache == "off"


def test_importing_the_client_does_no_work():
    """No key is read, no file is made and no heavy library is loaded by the import."""
    import subprocess

    code = (
        "import sys, rlpa_lib.client.endpoint; "
        "print(sorted({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
