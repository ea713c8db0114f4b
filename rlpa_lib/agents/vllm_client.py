"""What the policy asks of one vLLM server: sample, load or drop an adapter, change its whole model, sleep.

An adapter has a name of its own in requests. A whole model has not: vLLM 0.32 reads it in place
(`reload_weights`, from a folder) and keeps a word of ours beside it (`/weight_info`), so that a server that
was restarted, or that another process has changed, is found out. Both, and sleep, are among the endpoints
that `VLLM_SERVER_DEV_MODE` opens, without the key that guards /v1: not for a network that others share.
"""

import asyncio
import json
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import openai

from rlpa_lib.runs import storage
from rlpa_lib.settings.config import InputError

KEY = "VLLM_API_KEY"  # the environment variable; a server of one's own asks for none
STARTED = "default"  # vLLM's own word for the weights that a server was started with
LOST = "none"  # ours for weights that are half read or were given up
LOADING_SECONDS = 1800.0  # a whole model may come from a slow disk
PROBE_SECONDS = 30.0  # a server that is alive lists its models within this, however busy it is
UNSERVED = (  # of an adapter_config.json: what vLLM 0.32 refuses, or passes over
    "use_dora", "bias", "lora_bias", "modules_to_save", "trainable_token_indices",
    "alora_invocation_tokens", "layer_replication",
)  # fmt: skip
ENDED = {"stop", "length"}  # a server that is going down ends its requests with "abort"


class ServerLost(Exception):
    """This server can no longer be used; the message says why. The policy turns to the others."""


class WeightsMissing(Exception):
    """The server does not know the weights, or no longer: it was restarted."""


class WeightsRefused(Exception):
    """The server works but does not take these weights; the message is the server's."""


@dataclass(frozen=True)
class Weights:
    """What to ask a server for by `name`: the model that it was started with (no folder), or weights of
    `folder` after `version` updates, an adapter or a `whole` model. The name tells weights apart, so an
    answer under it was sampled with exactly those. It begins with `owner`: adapters from folders side by
    side replace each other, other runs' stay. `model`: the server's word for it, where that is another."""

    name: str
    folder: Path | None = None
    version: int = 0
    owner: str = ""
    whole: bool = False
    model: str = ""

    @property
    def asked(self) -> str:
        """The model that requests name."""
        return self.model or self.name


def read_weights(folder: Path, version: int) -> Weights:
    """The adapter (PEFT format) or the model in a folder. InputError: neither is there."""
    owner = f"rlpa-{storage.sha256(str(folder.resolve().parent).encode())[:8]}-"
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    whole = not files[0].is_file() and (folder / "config.json").is_file()
    if whole:  # six gigabytes are told apart by when they were written: a digest takes longer than loading
        files = sorted(folder.glob("*.safetensors"))
        told = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}".encode() for file in files]
    if not files or not all(path.is_file() for path in files):
        needed = "adapter_config.json with adapter_model.safetensors, or config.json with *.safetensors"
        raise InputError(f"{folder}: no adapter here and no model ({needed})")
    if not whole:
        _check_adapter(files[0])
        told = [path.read_bytes() for path in files]
    name = f"{owner}v{version}-{storage.sha256(*told)[:12]}"
    return Weights(name, folder.resolve(), version, owner, whole)


def _check_adapter(file: Path) -> None:
    """InputError: an adapter that a server would refuse after minutes, or apply in part without a word."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["bias"] = settings.get("bias") not in (None, "none")
    if found := [key for key in UNSERVED if settings.get(key)]:
        why = f"vLLM servers do not apply its {', '.join(found)}; use policy.kind=local"
        raise InputError(f"{file}: {why}")


class VLLMClient:
    """One server across calls: its weights (None: not asked yet), whether it sleeps, and why it was dropped
    ("" while in use). After `connect` it has a connection, and a lock for changes of what it holds. It gets
    `retries` more tries while it lives."""

    def __init__(self, url: str, timeout: float, retries: int):
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        self.root = self.url.removesuffix("/v1")
        self.weights: Weights | None = None
        self.asleep, self.gone = False, ""

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

    async def complete(self, body: dict[str, Any], weights: Weights) -> dict[str, Any]:
        """Answer to a /completions body. Raises ServerLost, WeightsMissing and InputError (refused)."""
        reason, body = "", {"model": weights.asked, **body}
        for attempt in range(self.retries + 1):
            if attempt:
                await self.models()  # a dead server is found out at once, without a second time-out
                await asyncio.sleep(min(2.0**attempt / 4, 5.0))
            try:
                await self._confirm(weights)
                answer: Any = await self.client.post("/completions", cast_to=object, body=body)
                await self._confirm(weights)
                if isinstance(answer, dict) and {c["finish_reason"] for c in answer["choices"]} <= ENDED:
                    return answer
                reason = "it broke off requests"
            except openai.NotFoundError as error:
                raise WeightsMissing(_reason(error)) from error
            except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
                reason = _reason(error)
            except openai.APIStatusError as error:
                raise self._refused(error) from error
        raise ServerLost(reason)

    async def _confirm(self, weights: Weights) -> None:
        """Before and after each request: a whole model has no name in requests that could be unknown."""
        if weights.whole and (now := await self._find_word()) != weights.name:
            raise WeightsMissing(f"its weights are {now!r}, not {weights.name!r}")

    async def hold(self, weights: Weights | None) -> None:
        """Make an awake server hold these weights (None: those that it was started with), and of its owner's
        adapters only this one. Raises ServerLost and WeightsRefused.

        An adapter has its own name: overwriting the old one (`load_inplace`) makes vLLM 0.32 reread the files
        at every step of every request, take key-value blocks of the old weights from its prefix cache, and
        not say which weights an answer came from. The server's only adapter slot is refilled either way.
        """
        held = await self.models()
        base = next((name for name, is_adapter in held.items() if not is_adapter), "")
        if not base:
            raise ServerLost("it serves no model")
        weights = weights or Weights(base)
        if weights.whole:
            await self._set_model(weights.name, weights.folder)
            self.weights = replace(weights, model=base)
            return
        await self._set_model(STARTED, None)
        if weights.folder and weights.name not in held:
            load = {"lora_name": weights.name, "lora_path": str(weights.folder)}
            await self._change("/load_lora_adapter", load, done="already been loaded")
        for name, is_adapter in held.items():
            if is_adapter and weights.owner and name.startswith(weights.owner) and name != weights.name:
                await self._change("/unload_lora_adapter", {"lora_name": name}, done="cannot be found")
        self.weights = weights

    async def _set_model(self, word: str, folder: Path | None) -> None:
        """Wake the server, and read the whole model of `folder` (None: where it was started from) unless it
        has it. The key-value cache comes last, when the old weights' memory is free again."""
        now = await self._find_word()
        if now is None and word != STARTED:
            how = "python -m rlpa_lib.agents.vllm_server serve --updates"
            raise WeightsRefused(f"it was not started for whole models ({how})")
        self.asleep = now is not None and await self._get("/is_sleeping", "is_sleeping")
        if self.asleep:  # or it only waits, because another client ended half way: then this is all it needs
            await self._call("/wake_up?tags=weights")
            self.asleep = await self._get("/is_sleeping", "is_sleeping")
        if now not in (None, word):
            source = folder or await self._find_source()
            if not self.asleep:  # requests end first, and no key-value block of the old weights stays
                await self._call("/pause?mode=wait&clear_cache=true")
            self.weights = None
            await self._call("/update_weight_version", {"new_version": LOST})
            reload = {"method": "reload_weights", "kwargs": {"weights_path": str(source)}}
            await self._call("/collective_rpc", reload)
            await self._call("/update_weight_version", {"new_version": word})
            if not self.asleep:
                await self._call("/resume")
        if self.asleep:
            await self._call("/wake_up?tags=kv_cache")
            self.asleep = False

    async def rest(self) -> None:
        """Give the card's memory back until `hold`: the model moves to the host's memory, or is given up
        where it is read anew anyway. Raises ServerLost and WeightsRefused."""
        if self.asleep:
            return
        whole = self.weights is not None and self.weights.whole
        if whole:
            await self._call("/update_weight_version", {"new_version": LOST})
        await self._call(f"/sleep?level={2 if whole else 1}&mode=wait")
        self.weights, self.asleep = None, True

    async def _find_word(self) -> str | None:
        """Our word for the whole model that the server holds; None where it cannot change it."""
        return await self._get("/weight_info", "weight_version")

    async def _get(self, path: str, key: str) -> Any:
        """What an endpoint beside /v1 says; None where the server has none such. Raises ServerLost."""
        options: Any = {"timeout": PROBE_SECONDS}
        try:
            told: Any = await self.client.get(f"{self.root}{path}", cast_to=object, options=options)
        except openai.NotFoundError:
            return None
        except openai.APIError as error:
            raise ServerLost(_reason(error)) from error
        return told[key]

    async def _find_source(self) -> str:
        """The folder or hub name that the server was started from."""
        listed: Any = await self.client.get("/models", cast_to=object, options={"timeout": PROBE_SECONDS})
        return next(card["root"] for card in listed["data"] if not card.get("parent"))

    async def _call(self, path: str, body: dict[str, Any] | None = None) -> None:
        """POST to one of the endpoints beside /v1."""
        options: Any = {"timeout": LOADING_SECONDS}
        try:
            await self.client.post(f"{self.root}{path}", cast_to=object, body=body or {}, options=options)
        except openai.APIConnectionError as error:
            raise ServerLost(_reason(error)) from error
        except openai.APIStatusError as error:
            raise WeightsRefused(f"{path}: {_reason(error)}") from error

    async def _change(self, path: str, body: dict[str, str], done: str) -> None:
        try:
            await self.client.post(path, cast_to=str, body=body)
        except openai.APIConnectionError as error:
            raise ServerLost(_reason(error)) from error
        except openai.APIStatusError as error:
            if done not in str(error):  # another process of this run was faster
                raise WeightsRefused(_reason(error)) from error

    def _refused(self, error: openai.APIStatusError) -> InputError:
        told = f"policy.servers: {self.url} refused the request: {error.status_code}: {_reason(error)}"
        hint = f" (the key is taken from the environment variable {KEY})"
        return InputError(told + hint if error.status_code in (401, 403) else told)

    def drop(self, reason: str) -> None:
        """Use it no more, with a warning."""
        if not self.gone:
            self.gone, self.weights = reason or "no reason given", None
            told = f"policy.servers: {self.url} is dropped ({reason}); its prompts go to the others"
            warnings.warn(told, stacklevel=2)


def _reason(error: openai.APIError) -> str:
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message") or error.message)
