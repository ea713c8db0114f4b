"""Questions and endpoints for tests against the misbehaving server."""

import json

from pydantic import BaseModel, Field

from rlpa_lib.client.chat import Request
from rlpa_lib.client.endpoint import ChatEndpoint
from rlpa_lib.client.transport import Server
from rlpa_lib.client.usage import Budget, Usage
from rlpa_lib.settings.schema import Endpoint

# in pieces: a run directory may hold a diff of this file
KEY = "-".join(["sk", "test", "0123456789abcdefghij"])


class Mark(BaseModel):
    mark: int


class Reasoned(BaseModel):
    reason: str = Field(json_schema_extra={"maxLength": 120})
    mark: int


def ask(name, *do, say=None, **options):
    """A request that tells the server what to do with it."""
    orders = {"id": name, "do": do or ("ok",), **({"say": say} if say is not None else {})}
    return Request(({"role": "user", "content": json.dumps(orders)},), **options)


def client(
    server, *, url=None, cache=None, budget=None, usage=None, role="judge", mode="auto", backoff=0.02,
    api_key_env="NO_SUCH_KEY", **limits,
):
    """An endpoint that does not wait long. Without a key, because the server is local."""
    return ChatEndpoint(
        Server(role, url or server.url, "m", api_key_env), role, cache=cache, mode=mode, backoff=backoff,
        budget=Budget(prices={}) if budget is None else budget, usage=Usage() if usage is None else usage,
        limits=Endpoint(**{"timeout": 20.0, "retries": 3, "concurrency": 8} | limits),
    )  # fmt: skip
