"""What the policy asks of one vLLM server: sample, load or drop an adapter."""

import asyncio
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai

from rlpa_lib.runs import storage
from rlpa_lib.settings.config import InputError

KEY = "VLLM_API_KEY"  # the environment variable; a server of one's own asks for none
PROBE_SECONDS = 30.0  # a server that is alive lists its models within this, however busy it is
ENDED = {"stop", "length"}  # a server that is going down ends its requests with "abort"


class ServerLost(Exception):
    """This server can no longer be used; the message says why. The policy turns to the others."""


class AdapterMissing(Exception):
    """The server does not know the adapter, or no longer: it was restarted."""


class AdapterRefused(Exception):
    """The server works but does not take this adapter; the message is the server's."""


@dataclass(frozen=True)
class Adapter:
    """What to ask a server for by `name`: the base model (no folder), or weights of `folder` after `version`
    updates. The name holds a digest of the weights, so an answer under it was sampled with exactly those. It
    begins with `owner`: adapters from folders side by side replace each other, other runs' stay."""

    name: str
    folder: Path | None = None
    version: int = 0
    owner: str = ""


def read_adapter(folder: Path, version: int) -> Adapter:
    """The adapter in a folder of PEFT format. InputError: there is none."""
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    if not all(path.is_file() for path in files):
        raise InputError(f"{folder}: no adapter here (adapter_config.json, adapter_model.safetensors)")
    digest = storage.sha256(*(path.read_bytes() for path in files))[:12]
    owner = f"rlpa-{storage.sha256(str(folder.resolve().parent).encode())[:8]}-"
    return Adapter(f"{owner}v{version}-{digest}", folder.resolve(), version, owner)


class VLLMClient:
    """One server across calls: its adapter (None: not asked yet) and why it was dropped ("" while in use).
    After `connect` it has a connection, and a lock for changes of what it holds. It gets `retries` more tries
    while it lives."""

    def __init__(self, url: str, timeout: float, retries: int):
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        self.adapter: Adapter | None = None
        self.gone = ""

    def connect(self) -> None:
        """Open a connection for one event loop, to be closed by `client.close`."""
        self.lock, key = asyncio.Lock(), os.environ.get(KEY) or "none"
        patience = openai.Timeout(self.timeout, connect=PROBE_SECONDS)
        self.client = openai.AsyncOpenAI(base_url=self.url, api_key=key, timeout=patience, max_retries=0)

    async def models(self) -> dict[str, bool]:
        """Name -> whether it is an adapter, for all that the server offers. Raises ServerLost."""
        try:
            listed: Any = await self.client.get("/models", cast_to=object, options={"timeout": PROBE_SECONDS})
        except (openai.APIConnectionError, openai.InternalServerError) as error:
            raise ServerLost(_reason(error)) from error
        except openai.APIStatusError as error:
            raise self._refused(error) from error
        if not isinstance(listed, dict) or "data" not in listed:
            raise ServerLost("what answers there does not list models")
        return {card["id"]: bool(card.get("parent")) for card in listed["data"]}

    async def base(self) -> Adapter:
        """The model itself, under the server's name for it. Raises ServerLost."""
        for name, is_adapter in (await self.models()).items():
            if not is_adapter:
                return Adapter(name)
        raise ServerLost("it serves no model")

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer to a /completions body. Raises ServerLost, AdapterMissing and InputError (refused)."""
        reason = ""
        for attempt in range(self.retries + 1):
            if attempt:
                await self.models()  # a dead server is found out at once, without a second time-out
                await asyncio.sleep(min(2.0**attempt / 4, 5.0))
            try:
                answer: Any = await self.client.post("/completions", cast_to=object, body=body)
                if isinstance(answer, dict) and {c["finish_reason"] for c in answer["choices"]} <= ENDED:
                    return answer
                reason = "it broke off requests"
            except openai.NotFoundError as error:
                raise AdapterMissing(_reason(error)) from error
            except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
                reason = _reason(error)
            except openai.APIStatusError as error:
                raise self._refused(error) from error
        raise ServerLost(reason)

    async def hold(self, adapter: Adapter) -> None:
        """Make the server hold only this one of its owner's adapters. Raises ServerLost and AdapterRefused.

        It has its own name: overwriting the old one (`load_inplace`) makes vLLM 0.32 reread the files at
        every step of every request, take key-value blocks of the old weights from its prefix cache, and not
        say which weights an answer came from. The server's only adapter slot is refilled either way.
        """
        held = await self.models()
        if adapter.name not in held:
            body = {"lora_name": adapter.name, "lora_path": str(adapter.folder)}
            await self._change("/load_lora_adapter", body, done="already been loaded")
        for name, is_adapter in held.items():
            if is_adapter and name.startswith(adapter.owner) and name != adapter.name:
                await self._change("/unload_lora_adapter", {"lora_name": name}, done="cannot be found")
        self.adapter = adapter

    async def _change(self, path: str, body: dict[str, str], done: str) -> None:
        try:
            await self.client.post(path, cast_to=str, body=body)
        except openai.APIConnectionError as error:
            raise ServerLost(_reason(error)) from error
        except openai.APIStatusError as error:
            if done not in str(error):  # another process of this run was faster
                raise AdapterRefused(_reason(error)) from error

    def _refused(self, error: openai.APIStatusError) -> InputError:
        told = f"policy.servers: {self.url} refused the request: {error.status_code}: {_reason(error)}"
        hint = f" (the key is taken from the environment variable {KEY})"
        return InputError(told + hint if error.status_code in (401, 403) else told)

    def drop(self, reason: str) -> None:
        """Use it no more, with a warning."""
        if not self.gone:
            self.gone, self.adapter = reason or "no reason given", None
            told = f"policy.servers: {self.url} is dropped ({reason}); its prompts go to the others"
            warnings.warn(told, stacklevel=2)


def _reason(error: openai.APIError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or error.message)
