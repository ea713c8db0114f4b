"""The response cache: what is acknowledged is on disk, whoever writes and however a writer dies."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from misbehaving_server import MisbehavingServer

from rlpa_lib.client.response_cache import ResponseCache, base_key, row_key
from rlpa_lib.settings.config import InputError

CONTENT = {
    "messages": [{"role": "user", "content": "Hi"}], "temperature": 0.0, "seed": None,
    "extra": {"a": 1, "b": 2},
}


def test_rows_come_back_as_they_went_in(tmp_path):
    file = tmp_path / "new" / "cache.sqlite"
    cache = ResponseCache(file)
    row = {"content": "中文 \ud800 \x00 'quoted'", "logprobs": [-0.1, -2.0]}
    assert cache.put({"k": row}) == {"k": row}
    assert ResponseCache(file).get_many(["k", "other"]) == {"k": row}
    many = {f"k{i}": {"i": i} for i in range(1201)}  # more than one SELECT
    cache.put(many)
    assert cache.get_many(list(many)) == many
    assert len(cache) == 1202


def test_the_first_row_of_a_key_stays(tmp_path):
    """Two processes asked the same question: both go on with the same answer, and so does a replay."""
    one, two = ResponseCache(tmp_path / "c"), ResponseCache(tmp_path / "c")
    assert one.put({"k": {"by": 1}}) == {"k": {"by": 1}}
    assert two.put({"k": {"by": 2}, "l": {"by": 2}}) == {"k": {"by": 1}, "l": {"by": 2}}


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": "Hi!"}]},
        {"messages": [{"role": "system", "content": "Hi"}]}, {"temperature": 0.5}, {"seed": 0},
        {"extra": {"a": 1}}, {"schema": {"type": "object"}},
    ],
)
def test_everything_asked_is_in_the_key(change):
    assert base_key("s", "m", CONTENT) != base_key("s", "m", CONTENT | change)


def test_server_model_and_attempt_are_in_the_key():
    base = base_key("http://s/v1", "m", CONTENT)
    assert base == base_key("http://s/v1/", "m", dict(reversed(CONTENT.items())))
    assert len({base, base_key("http://t/v1", "m", CONTENT), base_key("http://s/v1", "n", CONTENT)}) == 3
    assert len({row_key(base, attempt) for attempt in range(12)}) == 12


def test_a_file_that_is_no_cache_is_named(tmp_path):
    (tmp_path / "text").write_text("no database, but long enough to be looked at" * 100)
    with pytest.raises(InputError, match="text: cannot be used as a response cache"):
        ResponseCache(tmp_path / "text")
    with pytest.raises(InputError, match="cannot be used"):
        ResponseCache(tmp_path)
    with sqlite3.connect(tmp_path / "later") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match="version 99"):
        ResponseCache(tmp_path / "later")


WRITER = """
import sys
from rlpa_lib.client.response_cache import ResponseCache
cache, name = ResponseCache(sys.argv[1]), sys.argv[2]
for i in range(300):
    cache.put({f"{name}-{i}": {"i": i}, f"shared-{i}": {"by": name}})
"""


def test_concurrent_writers_lose_nothing(tmp_path):
    """Four processes, 300 transactions each, no error and no row missing."""
    file = tmp_path / "c"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(file), str(name)], stderr=subprocess.PIPE)
        for name in range(4)
    ]
    for writer in writers:
        assert writer.wait(60) == 0, writer.stderr.read()
    cache = ResponseCache(file)
    assert len(cache) == 4 * 300 + 300
    assert cache.get_many([f"{name}-299" for name in range(4)]) == {
        f"{name}-299": {"i": 299} for name in range(4)
    }


BUYER = """
import json, os, sys
from rlpa_lib.client.chat import Request
from rlpa_lib.client.endpoint import ChatEndpoint
from rlpa_lib.client.response_cache import ResponseCache
from rlpa_lib.client.transport import Server
from rlpa_lib.client.usage import Budget, Usage

def session(url, folder):
    usage = Usage(folder + "/usage.jsonl")
    endpoint = ChatEndpoint(
        Server("judge", url, "m", "NO_SUCH_KEY"), "judge", cache=ResponseCache(folder + "/c"), usage=usage,
        budget=Budget(prices={}, spent=usage.spent()),
    )
    for start in range(0, 500, 20):
        questions = [json.dumps({"id": f"q{i}"}) for i in range(start, start + 20)]
        for answer in endpoint.complete([Request(({"role": "user", "content": q},)) for q in questions]):
            print(answer.text.removeprefix("answer to "), flush=True)

for _ in sys.stdin:  # a session a line, each in a process of its own that need not load the library again
    pid = os.fork()
    if not pid:
        session(*sys.argv[1:])
        os._exit(0)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("over", flush=True)
"""


class Buyer:
    """Sessions of a 500-request run; each can be killed."""

    def __init__(self, server, folder):
        command = [sys.executable, "-W", "ignore", "-c", BUYER, server.url, str(folder)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def start(self):
        """Process id of a new session."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def told(self):
        """Ids printed until the session was over."""
        return [line.strip() for line in iter(self.process.stdout.readline, "over\n")]

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(10) == 0


def stored(folder):
    """Ids of the questions whose answers are in the cache file, read without this library."""
    if not (folder / "c").exists():
        return set()
    with sqlite3.connect(folder / "c") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {
            json.loads(row)["content"].removeprefix("answer to ")
            for (row,) in db.execute("SELECT row FROM answers")
        }


@pytest.mark.slow
def test_kill_9_at_20_moments_loses_nothing_that_was_acknowledged(tmp_path, capsys):
    """Acknowledged: printed by the session, or in the file when it died. None of it may ever be asked for
    again."""
    moments, acknowledged = random.Random(0), []
    with MisbehavingServer(latency=0.1) as server:
        buyer = Buyer(server, tmp_path)
        for _ in range(20):
            enough, pid = len(server.log) + moments.randrange(40), buyer.start()
            # by requests rather than by the clock: a busy machine needs seconds before the first one
            while len(server.log) < enough:
                time.sleep(0.001)
            time.sleep(moments.uniform(0.0, 0.15))
            os.kill(pid, signal.SIGKILL)
            told = set(buyer.told())
            time.sleep(0.2)  # what was under way has reached the server
            kept = stored(tmp_path)
            assert told <= kept
            acknowledged.append((len(server.log), kept))
        assert buyer.start()
        assert buyer.told() == [f"q{i}" for i in range(500)]
        buyer.close()
        asked = [line["id"] for line in server.log]
    for before, kept in acknowledged:
        assert not set(asked[before:]) & kept
    assert len(stored(tmp_path)) == 500
    halfway = len({len(kept) for _, kept in acknowledged} - {0, 500})
    with capsys.disabled():
        print(
            f"\nkill -9 x 20, left {halfway} different fillings: {len(asked)} requests for 500 answers, "
            f"{len(asked) - 500} lost under way, no acknowledged one paid twice"
        )
    assert halfway >= 10, "the kills came too early or too late to show anything"
