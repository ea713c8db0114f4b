"""Cost of the chat client itself: `python tests/benchmarks/bench_endpoint.py` (about half a minute on a free
core, not a test).

2,000 structured requests, 64 at a time, against a local server that takes 200 ms: share of the ideal
throughput, and processor time of the client a request; then 10,000 answers from the cache. The server is a
process of its own, so that its work is not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from rlpa_lib.client.chat import Request
from rlpa_lib.client.endpoint import ChatEndpoint
from rlpa_lib.client.response_cache import ResponseCache
from rlpa_lib.client.transport import Server
from rlpa_lib.client.usage import Budget, Usage
from rlpa_lib.settings.schema import Endpoint

REQUESTS, CONCURRENT, LATENCY, HITS = 2000, 64, 0.2, 10_000
SERVER = Path(__file__).resolve().parents[1] / "misbehaving_server.py"
# as long as a judge's prompt
SYSTEM = "You mark the reply of an assistant against what is known about its user. " * 20


class Mark(BaseModel):
    reason: str
    mark: int


def question(i: int) -> Request:
    """A judge's question of about 2 kB."""
    said = json.dumps({"id": f"q{i}", "say": json.dumps({"reason": "short and to the point", "mark": i % 2})})
    return Request(({"role": "system", "content": SYSTEM}, {"role": "user", "content": said}), Mark)


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(url: str, folder: str) -> None:
    """Run both measures and print them."""
    usage, cache = Usage(f"{folder}/usage.jsonl"), ResponseCache(f"{folder}/cache.sqlite")
    judge = ChatEndpoint(
        Server("judge", url, "m", "NO_KEY"), "judge", cache=cache, budget=Budget(prices={}), usage=usage,
        limits=Endpoint(concurrency=CONCURRENT),
    )
    judge.complete([question(-1)])  # imports and schema
    wall, cpu = timed(lambda: judge.complete([question(i) for i in range(REQUESTS)]))
    ideal = REQUESTS * LATENCY / CONCURRENT
    load = os.getloadavg()[0]
    print(
        f"{REQUESTS} requests, {CONCURRENT} at a time, {LATENCY * 1000:.0f} ms each "
        f"(load of the machine {load:.1f} on {os.cpu_count()} cores)"
    )
    print(
        f"  wall {wall:.2f} s, ideal {ideal:.2f} s: {ideal / wall:.1%} of the ideal throughput (wanted: 90 %)"
    )
    print(f"  processor time of the client {cpu / REQUESTS * 1000:.2f} ms a request (wanted: under 3)")
    [row] = usage.rows()
    print(f"  latency p50 {row['latency_p50'] * 1000:.0f} ms, p95 {row['latency_p95'] * 1000:.0f} ms")
    rounds = HITS // REQUESTS
    wall, cpu = timed(lambda: [judge.complete([question(i) for i in range(REQUESTS)]) for _ in range(rounds)])
    assert usage.rows()[0]["sent"] == REQUESTS + 1
    print(
        f"{rounds * REQUESTS} answers from the cache: {wall:.2f} s, "
        f"of which {cpu:.2f} s processor time (wanted: under 5)"
    )


def main() -> None:
    server = subprocess.Popen(
        [sys.executable, SERVER, "--latency", str(LATENCY)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            measure(server.stdout.readline().strip(), folder)
    finally:
        server.stdin.close()
        server.wait(10)


if __name__ == "__main__":
    main()
