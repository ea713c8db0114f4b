"""Which model stands behind each role of a run; all roles share its cache, budget and usage record."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from rlpa_lib.client.endpoint import ChatEndpoint
from rlpa_lib.client.response_cache import ResponseCache
from rlpa_lib.client.transport import Server
from rlpa_lib.client.usage import Budget, Usage, read_prices
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.schema import Endpoint

_DEFAULT_SERVER = "https://api.openai.com/v1"
SECTIONS = {  # role of the usage record -> section of the settings
    "user": "user", "converter": "user", "rewriter": "user", "judge": "judge", "response_judge": "judge",
    "profile_judge": "judge", "user_judge": "judge", "evaluator": "evaluator", "policy": "policy",
}  # fmt: skip


def endpoint_for(cfg: Config, role: str, run: Any, comparator: str | None = None) -> ChatEndpoint:
    """The endpoint of a role in SECTIONS for a run (Run or directory); `comparator`: that row of
    evaluation.comparators. All share the run's cache, budget and usage record (metrics/usage.jsonl), which
    later sessions continue. InputError: as for Server and ChatEndpoint, or no model is named."""
    section = SECTIONS[role]
    party = getattr(cfg, section)
    if comparator is not None:
        section, party = f"evaluation.comparators.{comparator}", cfg.evaluation.comparators[comparator]
    key = "profile_model" if role == "profile_judge" and party.profile_model is not None else "model"
    model = getattr(party, key)
    if model is None:
        raise InputError(f"{section}.{key}: is needed to ask a server")
    base_url = party.base_url or os.environ.get("OPENAI_BASE_URL") or _DEFAULT_SERVER
    cache, budget, usage = _open_shared(Path(getattr(run, "dir", run)).resolve(), cfg.endpoint)
    server = Server(section, base_url.rstrip("/"), model, party.api_key_env, key)
    return ChatEndpoint(
        server, role, cache=cache, budget=budget, usage=usage, limits=cfg.endpoint, mode=party.mode
    )


@cache
def _open_shared(run_dir: Path, given: Endpoint) -> tuple[ResponseCache | None, Budget, Usage]:
    """Once per run and process, so that all endpoints share one budget."""
    usage = Usage(run_dir / "metrics" / "usage.jsonl")
    limits = {"max_usd": given.max_usd, "max_requests": given.max_requests, "max_tokens": given.max_tokens}
    budget = Budget(**limits, prices=read_prices(given.prices), spent=usage.spent())
    if given.cache == "off":
        return None, budget, usage
    file = run_dir / "cache" / "responses.sqlite" if given.cache == "run" else Path(given.cache).expanduser()
    return ResponseCache(file), budget, usage
