"""A local OpenAI-compatible HTTP server that misbehaves on command (standard library only).

The last message of a request may hold orders as JSON: {"id": "q1", "do": ["429", "ok"], "say": "text"}. The
k-th visit of an id does the k-th order (the last one from then on); "say" is the text of the answer, or a
list with one text per visit. Any other message is echoed. Every request is written to `log`. As a script it
prints its address and serves until its standard input closes; GET /log returns the log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import struct
import sys
import threading
import time
from email.utils import formatdate

REASONS = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    429: "Too Many Requests",
}


class MisbehavingServer:
    """`with MisbehavingServer() as server: server.url`. `latency` in seconds before every answer; `refuses`
    names body keys that get a 400; `limit`: (requests, seconds), more than that get a 429 with
    Retry-After."""

    def __init__(self, latency=0.0, refuses=(), limit=None):
        self.latency, self.refuses, self.limit = latency, set(refuses), limit
        self.log: list[dict] = []
        self.visits: dict[str, int] = {}
        self.connections = 0
        self.busy = self.most_busy = 0
        self._started = threading.Event()

    def __enter__(self):
        # a server may be started again: until then the loop of the last time would still be in the way
        self._started.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def serve(self, announce=lambda url: None):
        """Serve until stopped."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=512)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        announce(self.url)
        self._started.set()
        await self._stop.wait()
        server.close()

    def answer(self) -> list[str]:
        """Ids in the order in which whole answers left the server."""
        return [line["id"] for line in self.log if line["delivered"]]

    async def _connection(self, reader, writer):
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return  # the client went away, or the server stops: part of the game
        finally:
            writer.close()

    async def _one(self, reader, writer) -> bool:
        """Answer one request; False when the connection is over."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request_line, *lines = head.split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if request_line.startswith("GET"):
            return await self._send(writer, 200, self.log)
        asked = json.loads(body)
        orders = _orders(asked)
        visit = self.visits.get(orders["id"], 0)
        self.visits[orders["id"]] = visit + 1
        line = {"id": orders["id"], "visit": visit, "at": time.monotonic(), "delivered": False, "body": asked}
        line["key"] = headers.get("authorization", "")
        self.log.append(line)
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            return await self._obey(writer, asked, orders, visit, line)
        finally:
            self.busy -= 1

    async def _obey(self, writer, asked, orders, visit, line) -> bool:
        action, _, detail = orders["do"][min(visit, len(orders["do"]) - 1)].partition(":")
        line["did"] = action
        for key in sorted(self.refuses & set(asked)):
            message = f"Unsupported parameter: '{key}' is not supported with this model. " + line["key"]
            return await self._fail(writer, 400, message, code="unsupported_parameter", param=key)
        if self.limit and self._over_limit():
            return await self._fail(
                writer, 429, "Rate limit reached", headers={"Retry-After": str(self.limit[1])}
            )
        said = orders["say"][min(visit, len(orders["say"]) - 1)]
        if action.isdigit():
            return await self._status(writer, int(action), detail, line["key"])
        if action in ("hang", "reset", "short", "drip"):
            return await getattr(self, f"_{action}")(writer, _completion(asked, said))
        completion = _completion(asked, said)
        completion = _spoil(completion, action, line["key"])
        if action == "truncated":
            data = json.dumps(completion).encode()
            return await self._send(writer, 200, data[: len(data) // 2])
        line["delivered"] = bool(completion["choices"])
        return await self._send(writer, 200, completion)

    def _over_limit(self) -> bool:
        count, seconds = self.limit
        now = time.monotonic()
        served = [line for line in self.log if line["delivered"] and now - line["at"] < seconds]
        return len(served) >= count

    async def _status(self, writer, status, detail, key) -> bool:
        headers, code, param, message = {}, None, None, f"made-up failure {status}"
        if status == 429 and detail == "date":
            headers["Retry-After"] = formatdate(time.time() + 2, usegmt=True)
        elif status == 429 and detail == "quota":
            code, message = "insufficient_quota", "You exceeded your current quota"
        elif status == 429 and detail:
            headers["Retry-After"] = detail
        elif detail == "echo":
            message = f"Incorrect API key provided: {key.removeprefix('Bearer ')}"
        elif detail:
            code = param = detail
        return await self._fail(writer, status, message, code=code, param=param, headers=headers)

    async def _fail(self, writer, status, message, *, code=None, param=None, headers=None) -> bool:
        return await self._send(
            writer, status, {"error": {"message": message, "type": "test", "code": code, "param": param}},
            headers,
        )

    async def _send(self, writer, status, value, headers=None) -> bool:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        head = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        lines = "".join(f"{name}: {text}\r\n" for name, text in head.items())
        writer.write(f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}\r\n{lines}\r\n".encode() + data)
        await writer.drain()
        return True

    async def _hang(self, writer, completion) -> bool:
        await asyncio.sleep(3600)
        return False

    async def _half(self, writer, completion) -> bytes:
        data = json.dumps(completion).encode()
        writer.write(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data[: len(data) // 2]
        )
        await writer.drain()
        return data[len(data) // 2 :]

    async def _reset(self, writer, completion) -> bool:
        await self._half(writer, completion)
        await asyncio.sleep(0.02)
        # linger 0: closing sends RST instead of FIN
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.transport.abort()
        return False

    async def _short(self, writer, completion) -> bool:
        await self._half(writer, completion)
        return False

    async def _drip(self, writer, completion) -> bool:
        for byte in await self._half(writer, completion):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.1)
        return True


def _orders(asked: dict) -> dict:
    text = asked["messages"][-1]["content"]
    if not text.startswith("{"):
        return {"id": text, "do": ["ok"], "say": [f"echo of {text}"]}
    orders = json.loads(text)
    said = orders.get("say", f"answer to {orders['id']}")
    return {
        "id": orders["id"], "do": orders.get("do", ["ok"]), "say": said if isinstance(said, list) else [said],
    }


def _completion(asked: dict, said: str) -> dict:
    """What a well-behaved server returns. Usage: 10 prompt tokens, 5 of the answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {
        "id": "x", "object": "chat.completion", "created": 1, "model": asked["model"], "choices": [choice],
        "usage": usage,
    }


def _spoil(completion: dict, action: str, key: str) -> dict:
    first = completion["choices"][0]
    if action == "refusal":
        first["message"] |= {"content": None, "refusal": "I cannot help with that."}
    elif action == "filter":
        first |= {"finish_reason": "content_filter"}
    elif action == "length":
        first |= {"finish_reason": "length"}
        first["message"]["content"] = first["message"]["content"][:-5]
    elif action == "nochoices":
        completion["choices"] = []
    elif action == "nousage":
        del completion["usage"]
    elif action == "echo":
        first["message"]["content"] += " " + key
    elif action == "reasoning":
        first["message"]["reasoning_content"] = "thought of the server"
        completion["usage"]["completion_tokens_details"] = {"reasoning_tokens": 3}
    return completion


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.0)
    server = MisbehavingServer(parser.parse_args().latency)
    serving = threading.Thread(
        target=lambda: asyncio.run(server.serve(lambda url: print(url, flush=True))), daemon=True
    )
    serving.start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
