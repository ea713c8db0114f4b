"""A real HTTP server that speaks vLLM's part of the conversation with `VLLMPolicy`, and fails on command.

Its "samples" follow from weights, prompt and seed.
"""

import json
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from scripted_server import ManyAtOnce


class PretendVLLM:
    """`adapters`: name -> folder of those it holds. `fail(path, body, count)` may return (status, message),
    "hang up" or None for each POST; `dead` hangs up on everybody. `requests` are the bodies of the
    completions that were answered, `changes` the adapter requests, `busiest` the most requests at once.

    With `updates` it is as under VLLM_SERVER_DEV_MODE: `whole` is the folder whose model it holds (None: half
    read, or given up in sleep), `word` what it is called, `awake` which of its memory is there; `calls` are
    the paths beside /v1, in order. It answers nothing while it sleeps or pauses, as vLLM's queue does.
    """

    STARTED = "/models/tiny"

    def __init__(self, fail=lambda path, body, count: None, seconds=0.0, updates=False):
        self.fail, self.seconds, self.dead, self.updates = fail, seconds, False, updates
        self.calls, self.prefixes = [], set()
        self.restart()
        self.requests, self.changes = [], []
        self.count = self.busy = self.busiest = 0
        self.lock = threading.Lock()
        self.http = ManyAtOnce(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def restart(self):
        """Forget all that it was given."""
        self.adapters, self.whole, self.word = {}, self.STARTED, "default"
        self.awake, self.paused = {"weights", "kv_cache"}, False

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def models(self):
        held = [{"id": name, "parent": "tiny"} for name in self.adapters]
        return {"data": [{"id": "tiny", "parent": None, "root": self.STARTED}, *held]}

    def change(self, url, body):
        """(status, JSON) of a POST beside /v1, in the words of vLLM 0.32."""
        asked = urllib.parse.urlsplit(url)
        query = urllib.parse.parse_qs(asked.query)
        self.calls.append(url)
        if asked.path == "/pause":
            self.paused, self.prefixes = True, set()
        elif asked.path == "/resume":
            self.paused = False
        elif asked.path == "/sleep":
            assert query["mode"] == ["wait"], "the default breaks requests off"
            self.awake, self.prefixes = set(), set()
            self.whole = self.whole if query["level"] == ["1"] else None
        elif asked.path == "/wake_up":
            self.awake |= set(query.get("tags", ["weights", "kv_cache"]))
            self.paused = self.paused and len(self.awake) < 2
        elif asked.path == "/update_weight_version":
            self.word = body["new_version"]
        elif asked.path == "/collective_rpc":
            assert body["method"] == "reload_weights" and "weights" in self.awake
            assert self.paused or "kv_cache" not in self.awake, "requests may be under way"
            self.whole = body["kwargs"]["weights_path"]
        else:
            return 404, "Not Found"
        return 200, {}

    def answer(self, path, body):
        """(status, JSON or text) of a POST."""
        if path == "/v1/load_lora_adapter":
            self.changes.append(("load", body["lora_name"]))
            if body["lora_name"] in self.adapters:
                return 400, f"The lora adapter '{body['lora_name']}' has already been loaded."
            self.adapters[body["lora_name"]] = Path(body["lora_path"])
            return 200, "Success"
        if path == "/v1/unload_lora_adapter":
            self.changes.append(("unload", body["lora_name"]))
            return (
                (200, "Success")
                if self.adapters.pop(body["lora_name"], None)
                else (404, "it cannot be found")
            )
        if body["model"] != "tiny" and body["model"] not in self.adapters:
            return 404, f"The model `{body['model']}` does not exist."
        assert len(self.awake) == 2 and not self.paused and self.whole, "this request would wait for ever"
        self.requests.append(body)
        if body["model"] != "tiny":
            weights = (self.adapters[body["model"]] / "adapter_model.safetensors").read_bytes()
        elif self.whole != self.STARTED:
            weights = (Path(self.whole) / "model.safetensors").read_bytes()
        else:
            weights = b""
        return 200, {"model": body["model"], "choices": [_choice(body, weights, i) for i in range(body["n"])]}

    def _handler(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                if server.dead:
                    self.close_connection = True
                elif self.path == "/weight_info" and server.updates:
                    self.reply(200, {"weight_version": server.word})
                elif self.path == "/is_sleeping" and server.updates:
                    self.reply(200, {"is_sleeping": server.paused or len(server.awake) < 2})
                elif self.path == "/v1/models":
                    self.reply(200, server.models())
                else:
                    self.reply(404, "Not Found")

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.count += 1
                    server.busy += 1
                    server.busiest = max(server.busiest, server.busy)
                    fault = "hang up" if server.dead else server.fail(self.path, body, server.count)
                time.sleep(server.seconds)
                with server.lock:
                    server.busy -= 1
                    answers = server.answer if self.path.startswith("/v1/") else server.change
                    status, answer = (
                        answers(self.path, body)
                        if fault is None
                        else (0, "")
                        if fault == "hang up"
                        else fault
                    )
                if status:
                    self.reply(status, answer)
                else:
                    self.close_connection = True

            def reply(self, status, answer):
                wrapped = (
                    answer
                    if isinstance(answer, dict) or status == 200
                    else {"error": {"message": answer, "code": status}}
                )
                data = answer.encode() if isinstance(wrapped, str) else json.dumps(wrapped).encode()
                self.send_response(status)
                self.send_header(
                    "Content-Type", "application/json" if isinstance(wrapped, dict) else "text/plain"
                )
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        return Handler


def _choice(body, weights, index):
    """Three tokens that differ between seeds, samples and weights, then the end token for even samples."""
    first = (body["seed"] + index) % 97 + len(weights) % 7
    ids = [100 + first, 100 + sum(body["prompt"]) % 50, 7]
    end = index % 2 == 0
    return {
        "index": index, "token_ids": [*ids, *body["stop_token_ids"]] if end else ids,
        "logprobs": {"token_logprobs": [-0.5] * (4 if end else 3)},
        "finish_reason": "stop" if end else "length", "prompt_token_ids": body["prompt"],
    }
