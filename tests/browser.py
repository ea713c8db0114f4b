"""A headless Chromium driven over its debugging port: enough of it to press keys on a page and read what
stands there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_CODES = {"Enter": ("Enter", 13, "\r"), "Backspace": ("Backspace", 8, ""), "Tab": ("Tab", 9, "")}


def find() -> str | None:
    """A browser of the machine: RLPA_BROWSER, or the first of NAMES that is installed."""
    return os.environ.get("RLPA_BROWSER") or next((path for path in map(shutil.which, NAMES) if path), None)


def until(check: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """The first true value of `check`. AssertionError: none within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = check()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")


class Browser:
    """One tab. `with Browser(path, folder) as tab` starts and ends the process; `folder` holds its
    profile."""

    def __init__(self, path: str, folder: Path):
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--remote-debugging-port=0", "--remote-allow-origins=*", "--window-size=1200,1400",
            f"--user-data-dir={folder}", "about:blank",
        ]
        self._process = subprocess.Popen(
            [path, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        port_file = folder / "DevToolsActivePort"
        port = until(
            lambda: port_file.is_file() and port_file.read_text().split("\n")[0], "the browser starts"
        )
        tabs = json.loads(urlopen(f"http://127.0.0.1:{port}/json", timeout=30).read())
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        self._socket, self._number = websocket.create_connection(address, timeout=120), 0

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(timeout=30)

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """One command of the debugging protocol. RuntimeError: the browser refuses it."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": values}))
        for _ in range(10_000):
            answer = json.loads(self._socket.recv())
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
        raise RuntimeError(f"{method}: no answer among 10,000 messages")

    def go(self, address: str) -> None:
        """Open a page."""
        self.call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Real key presses: single characters, Enter, Backspace, Tab."""
        for key in keys:
            name, code, text = _CODES[key] if key in _CODES else (key, ord(key.upper()), key)
            down = {"key": name, "windowsVirtualKeyCode": code, **({"text": text} if text else {})}
            self.call("Input.dispatchKeyEvent", type="keyDown", **down)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=code)

    def picture(self, file: Path) -> None:
        """A screenshot as PNG."""
        import base64

        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
