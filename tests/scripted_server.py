"""A real local HTTP server with OpenAI's chat shape whose answers are scripted by a function of the request
body (standard library only)."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ManyAtOnce(ThreadingHTTPServer):
    """With room for a whole batch at the door: of more than five new connections at once http.server drops
    some, which costs each a second, and on a busy machine the client's five seconds for connecting."""

    request_queue_size = 256
    daemon_threads = True


class ScriptedServer:
    """`with ScriptedServer(script) as server: server.url`. `script(body)` gives the text of the answer, a
    dict of message fields (content, reasoning_content, refusal; `usage`, `finish_reason` besides), or an int
    for an error status. `bodies` keeps every request, `key` the key of the last one."""

    def __init__(self, script):
        self.script, self.bodies, self.key = script, [], ""

    def __enter__(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.bodies.append(body)
                outer.key = self.headers.get("Authorization", "").removeprefix("Bearer ")
                status, answer = outer.answer(body)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self._server = ManyAtOnce(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def answer(self, body):
        """(status, JSON) in the shape of /chat/completions."""
        said = self.script(body)
        if isinstance(said, int):
            return said, {
                "error": {"message": f"status {said} as scripted", "type": "scripted", "code": None}
            }
        fields = {"content": said} if isinstance(said, str) else dict(said)
        usage = fields.pop("usage", {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15})
        choice = {
            "index": 0,
            "finish_reason": fields.pop("finish_reason", "stop"),
            "message": {"role": "assistant", "content": None, **fields},
        }
        choices = [{**choice, "index": i} for i in range(body.get("n") or 1)]
        return 200, {
            "id": "scripted", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": choices, "usage": usage,
        }
