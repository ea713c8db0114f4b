"""What servers will cost, and in which notebook a run's cap (`endpoint.max_usd`) would stop it."""

import math
from collections.abc import Iterator, Mapping, Sequence

from rlpa_lib.client import transport
from rlpa_lib.client.usage import read_prices
from rlpa_lib.plan.gpu import Work
from rlpa_lib.settings.config import Config, InputError
from rlpa_lib.settings.roles import SECTIONS

Party = tuple[str, str, str]  # role, model, server
Bills = Sequence[tuple[str, Mapping[Party, Work]]]  # notebooks in the order in which they run, what each asks


def usd(cfg: Config, asked: Mapping[Party, Work]) -> float | None:
    """Price in USD; a model without a price is free on a local server, elsewhere the result is None."""
    if any(_find_unpriced(cfg, asked)):
        return None
    prices = read_prices(cfg.endpoint.prices)
    priced = ((prices[model], work) for (_, model, _), work in asked.items() if model in prices)
    return sum((price.usd(round(work.prompt), round(work.completion)) for price, work in priced), 0.0)


def _find_unpriced(cfg: Config, asked: Mapping[Party, Work]) -> Iterator[Party]:
    """Parties whose price nobody knows."""
    prices = read_prices(cfg.endpoint.prices)
    return (party for party in asked if party[1] not in prices and not transport.is_local(party[2]))


def tell_cap(cfg: Config, bills: Bills) -> str:
    """A line that compares the plan with `endpoint.max_usd`; empty without a cap, or where nothing costs."""
    cap = cfg.endpoint.max_usd
    try:
        total = check_cap(cfg, bills, cap)
    except InputError as error:
        return str(error)
    told = f"endpoint.max_usd: {cap:,.2f} USD" if cap and total else ""
    return told and f"{told} are enough for the {total:,.2f} planned"


def check_cap(cfg: Config, bills: Bills, cap: float | None, spent: float = 0.0) -> float:
    """USD planned; nothing is checked when `cap` is None. `spent`: what other notebooks have used of the cap.

    InputError: the plan goes beyond the cap (with the notebook that would stop), or a model has no price.
    """
    total, stop = 0.0, ""
    for notebook, asked in bills:
        price = usd(cfg, asked)
        if price is None and cap is not None:
            role, model, _ = next(_find_unpriced(cfg, asked))
            why = f"{model!r} of notebook {notebook} has no price, so a cap in USD cannot be kept"
            how = "add it to the table (endpoint.prices), or set endpoint.max_usd=null"
            raise InputError(f"{SECTIONS[role]}.model: {why}; {how}")
        total += price or 0.0
        if cap is not None and not stop and total and spent + total > cap:
            stop = f"{notebook}, at {spent + total:,.2f}"
    if stop:
        before = f" on top of {spent:,.2f} spent" if spent else ""
        how = f"give reproduce --accept-cost {math.ceil(spent + total)}, or raise endpoint.max_usd"
        told = f"{cap:,.2f} USD, but {total:,.2f} are planned{before}; it would stop in {stop}"
        raise InputError(f"endpoint.max_usd: {told}; {how}")
    return total
