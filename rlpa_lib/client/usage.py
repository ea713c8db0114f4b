"""What requests cost: dated prices, the budget that stops a run before it is exceeded, usage per role."""

from __future__ import annotations

import math
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlpa_lib.client.chat import BudgetExceeded
from rlpa_lib.runs import storage
from rlpa_lib.settings.config import PARAMS_DIR, InputError

NOTEBOOK_VARIABLE = "RLPA_NOTEBOOK"  # names the notebook that asks, where `reproduce` runs it

_USD = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_COUNTS = (
    "requests cached errors sent retries lost estimated prompt_tokens completion_tokens reasoning_tokens"
).split()


class Price(BaseModel):
    """USD per million tokens, the day on which it stood, and where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...]
    input: _USD
    output: _USD
    cached_input: _USD | None = None
    date: date
    source: str

    def usd(self, prompt: int, completion: int, prompt_cached: int = 0) -> float:
        """Price of one answer; `prompt_cached` of the prompt tokens came from the server's cache."""
        cheap = self.input if self.cached_input is None else self.cached_input
        asked = (prompt - prompt_cached) * self.input + prompt_cached * cheap
        return (asked + completion * self.output) / 1e6


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid")

    prices: list[Price]


def read_prices(path: str | Path | None = None) -> dict[str, Price]:
    """Price by model name; params/prices.yaml by default. InputError names file and row."""
    file = Path(path).expanduser() if path else PARAMS_DIR / "prices.yaml"
    try:
        prices = _Table.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))).prices
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
    times = Counter(model for price in prices for model in price.models)
    if twice := sorted(model for model, n in times.items() if n > 1):
        raise InputError(f"{file}: {twice[0]} has two prices")
    return {model: price for price in prices for model in price.models}


@dataclass(frozen=True)
class Cost:
    """Requests, tokens (prompt and completion) and USD, of one request or of many."""

    requests: int = 0
    tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.requests + other.requests, self.tokens + other.tokens, self.usd + other.usd)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.requests - other.requests, self.tokens - other.tokens, self.usd - other.usd)


class Budget:
    """Limits of a run (None: no limit), shared by its endpoints and threads. A request's upper bound is
    reserved before it is sent, and counts if its answer is lost. `spent`: what former sessions have used."""

    def __init__(
        self, *, max_usd: float | None = None, max_requests: int | None = None, max_tokens: int | None = None,
        prices: Mapping[str, Price] | None = None, spent: Cost = Cost(),
    ):  # fmt: skip
        given = {"usd": max_usd, "requests": max_requests, "tokens": max_tokens}
        self.limits = {name: limit for name, limit in given.items() if limit is not None}
        self.prices = read_prices() if prices is None else prices
        self.spent, self.reserved = spent, Cost()
        self._lock = threading.Lock()

    def price(self, model: str, *, local: bool, setting: str) -> Price | None:
        """Price of a model; unlisted models are free on a local server, else unknown (None). InputError names
        `setting`, where the model stands: it is unknown although `max_usd` is set."""
        if price := self.prices.get(model):
            return price
        if local:
            return Price(models=(model,), input=0, output=0, date=date.today(), source="a local server")
        if "usd" in self.limits:
            why = f"{model!r} has no price, so endpoint.max_usd cannot be kept"
            raise InputError(f"{setting}: {why}; add it to the table (endpoint.prices)")
        return None

    def reserve(self, bound: Cost) -> bool:
        """Reserve `bound`; False: wait for requests under way. BudgetExceeded: it will not fit even then."""
        with self._lock:
            for name, limit in self.limits.items():
                spent, wanted = getattr(self.spent, name), getattr(bound, name)
                if spent + wanted > limit:
                    unit = "," if name != "usd" else ".6f"
                    amounts = f"{spent:{unit}} used, the next request may take {wanted:{unit}}"
                    raise BudgetExceeded(
                        f"endpoint.max_{name} = {limit:,} would be exceeded: {amounts}; "
                        "what was answered so far is kept: raise the limit and run again"
                    )
            taken = self.spent + self.reserved + bound
            if any(getattr(taken, name) > limit for name, limit in self.limits.items()):
                return False
            self.reserved += bound
            return True

    def settle(self, bound: Cost, actual: Cost) -> None:
        """Replace a reservation by what the request cost."""
        with self._lock:
            self.reserved, self.spent = self.reserved - bound, self.spent + actual


class Usage:
    """Counts per (role, model). With a path (metrics/usage.jsonl of a run) every change is appended there
    first, and a later session continues it.

    A line is an increment: requests (asked), cached (of these, answered without sending), errors, sent (over
    the network), retries, lost (sent, no answer; lost_tokens and lost_usd are upper bounds), estimated (no
    counts given), tokens, usd (absent without a price), seconds (latency), notebook (if one is running).
    """

    def __init__(self, path: str | Path | None = None):
        self.path = Path(path) if path else None
        self._sums: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._lock = threading.Lock()
        if self.path and self.path.exists():
            for line in storage.read_jsonl(self.path, appended=True):
                self._count(line)

    def add(self, role: str, model: str, **increments: Any) -> None:
        """Record one increment, on disk before it counts."""
        line = {"role": role, "model": model, **increments, "notebook": os.environ.get(NOTEBOOK_VARIABLE)}
        line = {name: value for name, value in line.items() if value is not None}
        with self._lock:
            if self.path:
                storage.append_jsonl(self.path, line)
            self._count(line)

    def _count(self, line: dict[str, Any]) -> None:
        party = line["role"], line["model"]
        if "seconds" in line:
            self._seconds[party].append(line["seconds"])
        others = ("role", "model", "notebook", "seconds")
        self._sums[party].update({name: n for name, n in line.items() if name not in others})

    def spent(self) -> Cost:
        """All roles together; lost requests at their upper bound."""
        with self._lock:
            return sum(map(_add_up, self._sums.values()), Cost())

    def rows(self) -> list[dict[str, Any]]:
        """A row per (role, model): counts, cached_share, usd (or None), usd_lost (a bound), latencies (s)."""
        with self._lock:
            return [self._row(party) for party in sorted(self._sums)]

    def _row(self, party: tuple[str, str]) -> dict[str, Any]:
        sums, seconds = self._sums[party], sorted(self._seconds[party])
        return {
            "role": party[0], "model": party[1], **{name: sums[name] for name in _COUNTS},
            "cached_share": sums["cached"] / sums["requests"] if sums["requests"] else None,
            "usd": sums.get("usd"), "usd_lost": sums.get("lost_usd", 0.0),
            "latency_p50": _percentile(seconds, 0.50), "latency_p95": _percentile(seconds, 0.95),
        }


def _add_up(sums: Counter[str]) -> Cost:
    tokens = sums["prompt_tokens"] + sums["completion_tokens"] + sums["lost_tokens"]
    return Cost(sums["sent"], tokens, sums.get("usd", 0.0) + sums.get("lost_usd", 0.0))


def _percentile(ordered: list[float], share: float) -> float | None:
    """The smallest value that at least `share` of the values do not exceed."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
