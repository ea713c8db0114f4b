"""Layouts: which cards train the policy and which sample it, from `run.gpus` alone (docs/layouts.md).

Plan and runs read the same function, so that what `plan --gpus` prints is what a run does.
"""

import re
from dataclasses import dataclass
from typing import Any

# 8xA100-80, or 2x8xA100-80 for two machines
NOTATION = r"(?:([1-9][0-9]*)x)?([1248])x([A-Za-z][A-Za-z0-9]*)-([1-9][0-9]*)"
ONE_CARD = "1xGPU-80"  # where run.gpus is not set
# Of a card that a server has to itself: vLLM's own default is .92, and the driver wants some.
OWN_SHARE = 0.9
# Of a card that it shares: while it samples, the trainer's weights, moments and cached blocks stay. At 80 GB
# 36 GB: 6 GB of weights of a 3 B model, and keys and values of 800,000 tokens.
COMMON_SHARE = 0.45


@dataclass(frozen=True)
class Layout:
    """Cards by number on one machine; of several machines the first trains and the others sample.

    `servers`: one server a card, which takes the share `share` of its memory. `sleeps`: servers share the
    trainer's card, and give its memory back while it trains. `accelerate`: the launch file of several
    training processes, None for one process.
    """

    gpus: str
    machines: int
    cards: int
    card: str
    gigabytes: int
    trainers: tuple[int, ...]
    servers: tuple[int, ...]
    share: float = OWN_SHARE
    sleeps: bool = False
    accelerate: str | None = None

    @property
    def n_servers(self) -> int:
        """Servers on all machines."""
        return len(self.servers) * max(1, self.machines - 1)

    @property
    def n_cards(self) -> int:
        """Cards of all machines, busy or not."""
        return self.machines * self.cards


def lay_out(gpus: str, tuning: str = "lora", served: bool = True, elsewhere: bool = False) -> Layout:
    """The layout of cards written as "8xA100-80" (number, card, GB) or "2x8xA100-80" (machines first).

    `served`: vLLM samples the policy (else the training processes do); `elsewhere`: on servers of other
    machines, so that all cards train. ValueError: no such notation, no layout for that number, no room.
    """
    found = re.fullmatch(NOTATION, gpus)
    if not found:
        raise ValueError(f"{gpus}: write 1xA100-80, 2x, 4x or 8x; machines come first, as in 2x8xA100-80")
    machines, cards, card, size = int(found[1] or 1), int(found[2]), found[3], int(found[4])
    every = tuple(range(cards))
    if not served or elsewhere:
        trainers, servers = every, ()
    elif machines > 1:
        trainers, servers = every, every
    elif cards == 1:
        trainers, servers = every, every
        if tuning == "full":
            why = "weights in fp32 with gradients and moments leave a server no room"
            raise ValueError(f"{gpus}: with policy.tuning=full {why}; use two cards, or policy.servers")
    else:
        trainers, servers = every[: cards // 2], every[cards // 2 :]
    sleeps = bool(servers) and machines == 1 and cards == 1
    ways = {"lora": "ddp", "full": "fsdp2"}[tuning]
    return Layout(
        gpus, machines, cards, card, size, trainers, servers, COMMON_SHARE if sleeps else OWN_SHARE, sleeps,
        f"{ways}-{len(trainers)}" if len(trainers) > 1 else None,
    )  # fmt: skip


def layout_of(cfg: Any, gpus: str | None = None, served: bool = True) -> Layout:
    """The layout of a run's settings (`Config`); `gpus` in place of `run.gpus`. ValueError: see `lay_out`."""
    chosen = cfg.run.gpus or ONE_CARD if gpus is None else gpus
    return lay_out(chosen, cfg.policy.tuning, served, elsewhere=bool(cfg.policy.servers))
