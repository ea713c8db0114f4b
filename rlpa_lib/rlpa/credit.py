"""Credit: which later rewards the tokens of a turn answer for (eq. 1, section 2.1, appendix B). No models in here.

Two schemes with one interface. `bandit` is the released code: a turn is an episode of its own. `discounted` is the paper's MDP: a turn's last
token is followed by what the dialogue still brings. Axes: S samples, T places of a sample: its tokens, then in `discounted` one place more,
the state after its last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlpa_lib.rlpa import ppo
from rlpa_lib.settings.schema import PPO


@dataclass(frozen=True)
class Place:
    """Where a sample stands: its dialogue, its turn (from 1), whether the dialogue went on with it, whether the turn limit came after it."""

    dialogue: str
    turn: int
    continued: bool
    at_limit: bool = False


@dataclass(frozen=True)
class Credit:
    """Advantages and value targets [S, T]; `taught_ST` marks the values that have a target (all tokens; some states after a turn)."""

    advantages_ST: torch.Tensor
    returns_ST: torch.Tensor
    taught_ST: torch.Tensor


@dataclass(frozen=True)
class Outlook:
    """What follows each sample's turn, discounted to its last token [S], and what the state after the turn is worth (None: nobody knows)."""

    futures_S: list[float]
    worths_S: list[float | None]


def assign(
    rewards_ST: torch.Tensor, values_ST: torch.Tensor, keep_ST: torch.Tensor, places: Sequence[Place], settings: PPO
) -> Credit:
    """Credit by the scheme that `ppo.turn_discount` chooses; `keep_ST` marks tokens (not the state after them)."""
    scheme = bandit if settings.turn_discount == 0 else discounted
    return scheme(rewards_ST, values_ST, keep_ST, places, settings)


def bandit(
    rewards_ST: torch.Tensor, values_ST: torch.Tensor, keep_ST: torch.Tensor, places: Sequence[Place], settings: PPO
) -> Credit:
    """Each reply is an episode that ends at its last token with value 0 (released code): GAE with `gamma`, `lam` over its tokens."""
    advantages = ppo.gae_batch(rewards_ST, values_ST, keep_ST, settings.gamma, settings.lam)
    return Credit(advantages, advantages + values_ST, keep_ST)


def discounted(
    rewards_ST: torch.Tensor, values_ST: torch.Tensor, keep_ST: torch.Tensor, places: Sequence[Place], settings: PPO
) -> Credit:
    """GAE along the turns of a dialogue (`turn_discount`, `turn_lam`), then along the tokens of each turn (`gamma`, `lam`).

    `values_ST` holds one value more than tokens in each row: that of the state after the turn. See `look_ahead` for what a turn leads to.
    """
    sizes_S = keep_ST.sum(dim=1)
    rows = torch.arange(len(sizes_S), device=sizes_S.device)
    powers_T = settings.gamma ** torch.arange(keep_ST.shape[1], dtype=torch.float64)
    outlook = look_ahead(
        places,
        rewards_S=((rewards_ST * keep_ST).double().cpu() * powers_T).sum(1).tolist(),
        spans_S=powers_T[sizes_S.cpu() - 1].tolist(),
        before_S=values_ST[:, 0].tolist(),
        after_S=values_ST[rows, sizes_S].tolist(),
        settings=settings,
    )
    led_to = rewards_ST.clone()
    led_to[rows, sizes_S - 1] += torch.tensor(outlook.futures_S, dtype=rewards_ST.dtype, device=rewards_ST.device)
    advantages = ppo.gae_batch(led_to, values_ST, keep_ST, settings.gamma, settings.lam)
    returns, taught = advantages + values_ST * keep_ST, keep_ST.clone()
    known = [row for row, worth in enumerate(outlook.worths_S) if worth is not None]
    worths = [outlook.worths_S[row] for row in known]
    returns[known, sizes_S[known]] = torch.tensor(worths, dtype=returns.dtype, device=returns.device)
    taught[known, sizes_S[known]] = True
    return Credit(advantages, returns, taught)


def look_ahead(
    places: Sequence[Place],
    *,
    rewards_S: Sequence[float],
    spans_S: Sequence[float],
    before_S: Sequence[float],
    after_S: Sequence[float],
    settings: PPO,
) -> Outlook:
    """Turn-level GAE: delta_t = R_t + span_t G V_{t+1} - V_t, A_t = delta_t + span_t G L A_{t+1}, with G, L the turn's discount and lambda.

    R_t are the turn's token rewards discounted to its first token, V_t the value `before` its first token, `span` the token-level
    discount from the first token to the last (1 for gamma 1). A turn that went on leads to G (V_{t+1} + L A_{t+1}) of the
    next turn of the same dialogue. Where a dialogue is cut (a sample it did not go on with, a next turn without any
    readable verdict, the turn limit) the turn leads to G times the critic's value `after` it; nothing follows the limit when
    `ppo.turn_limit` is "end". What a continued turn led to is the target of its value `after`.
    """
    rows = {(p.dialogue, p.turn): row for row, p in enumerate(places) if p.continued}
    if len(rows) < sum(p.continued for p in places):
        raise ValueError("a turn of a dialogue went on with two samples")
    futures, worths, advantages = [0.0] * len(places), [None] * len(places), {}
    for row in sorted(range(len(places)), key=lambda row: -places[row].turn):
        place, following = places[row], rows.get((places[row].dialogue, places[row].turn + 1))
        if place.continued and following is not None:
            worths[row] = worth = before_S[following] + settings.turn_lam * advantages[following]
        else:
            worth = 0.0 if place.at_limit and settings.turn_limit == "end" else after_S[row]
        futures[row] = settings.turn_discount * worth
        advantages[row] = rewards_S[row] + spans_S[row] * futures[row] - before_S[row]
    return Outlook(futures, worths)
