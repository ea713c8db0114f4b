"""Questions and endpoints for tests against the misbehaving server."""

import json

from pydantic import BaseModel, Field

from rlpa_lib.client.endpoint import Budget, ChatEndpoint, Request, Usage

KEY = "-".join(["sk", "test", "0123456789abcdefghij"])  # in pieces: a run directory may hold a diff of this file


class Mark(BaseModel):
    mark: int


class Reasoned(BaseModel):
    reason: str = Field(json_schema_extra={"maxLength": 120})
    mark: int


def ask(name, *do, say=None, **options):
    """A request that tells the server what to do with it."""
    orders = {"id": name, "do": do or ("ok",), **({"say": say} if say is not None else {})}
    return Request(({"role": "user", "content": json.dumps(orders)},), **options)


def client(server, *, url=None, cache=None, budget=None, usage=None, role="judge", **options):
    """An endpoint that does not wait long. Without a key, because the server is local."""
    known = {"backoff": 0.02, "timeout": 20.0, "retries": 3, "concurrency": 8, "model": "m", "api_key_env": "NO_SUCH_KEY"}
    budget, usage = Budget(prices={}) if budget is None else budget, Usage() if usage is None else usage
    return ChatEndpoint(base_url=url or server.url, role=role, cache=cache, budget=budget, usage=usage, **known | options)
