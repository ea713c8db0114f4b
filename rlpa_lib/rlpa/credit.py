"""Credit: which later rewards the tokens of a turn answer for (eq. 1, section 2.1, appendix B). No models.

Two schemes with one result. Within turns, as in the released code: a turn is an episode of its own (a
bandit). Across turns, as in the paper's MDP: a turn's last token is followed by what the dialogue still
brings. Axes: S samples, T places of a sample: its tokens, then across turns one place more, the state after
its last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlpa_lib.rlpa import ppo
from rlpa_lib.settings.schema import PPO


@dataclass(frozen=True)
class Place:
    """Where a sample stands: dialogue, turn (from 1), whether the dialogue went on with it or ended there."""

    dialogue: str
    turn: int
    continued: bool
    at_limit: bool = False


@dataclass(frozen=True)
class Credit:
    """Advantages and value targets [S, T]; `taught_ST` marks tokens and states after a turn with a target."""

    advantages_ST: Tensor
    returns_ST: Tensor
    taught_ST: Tensor


def assign_credit(
    rewards_ST: Tensor, values_ST: Tensor, keep_ST: Tensor, places: Sequence[Place], settings: PPO
) -> Credit:
    """Credit by the scheme that `ppo.turn_discount` chooses; `keep_ST` marks tokens, not the state after."""
    if settings.turn_discount == 0:
        return credit_within_turns(rewards_ST, values_ST, keep_ST, settings)
    return credit_across_turns(rewards_ST, values_ST, keep_ST, places, settings)


def credit_within_turns(rewards_ST: Tensor, values_ST: Tensor, keep_ST: Tensor, settings: PPO) -> Credit:
    """GAE with `gamma`, `lam` over the tokens of each reply, which ends with value 0 (released code)."""
    advantages = ppo.gae_batch(rewards_ST, values_ST, keep_ST, settings.gamma, settings.lam)
    return Credit(advantages, advantages + values_ST, keep_ST)


def credit_across_turns(
    rewards_ST: Tensor, values_ST: Tensor, keep_ST: Tensor, places: Sequence[Place], settings: PPO
) -> Credit:
    """GAE along the turns of a dialogue (`turn_discount`, `turn_lam`), then along the tokens of each turn.

    `values_ST` holds in each row one value more than tokens: that of the state after the turn (see
    `look_ahead`).
    """
    sizes_S = keep_ST.sum(dim=1)
    rows = torch.arange(len(sizes_S), device=sizes_S.device)
    powers_T = settings.gamma ** torch.arange(keep_ST.shape[1], dtype=torch.float64)
    futures_S, worths_S = look_ahead(
        places, rewards_S=((rewards_ST * keep_ST).double().cpu() * powers_T).sum(1).tolist(),
        spans_S=powers_T[sizes_S.cpu() - 1].tolist(), before_S=values_ST[:, 0].tolist(),
        after_S=values_ST[rows, sizes_S].tolist(), settings=settings,
    )
    led_to = rewards_ST.clone()
    led_to[rows, sizes_S - 1] += torch.tensor(futures_S, dtype=led_to.dtype, device=led_to.device)
    advantages = ppo.gae_batch(led_to, values_ST, keep_ST, settings.gamma, settings.lam)
    returns, taught = advantages + values_ST * keep_ST, keep_ST.clone()
    known = [row for row, worth in enumerate(worths_S) if worth is not None]
    worths = [worths_S[row] for row in known]
    returns[known, sizes_S[known]] = torch.tensor(worths, dtype=returns.dtype, device=returns.device)
    taught[known, sizes_S[known]] = True
    return Credit(advantages, returns, taught)


def look_ahead(
    places: Sequence[Place], *, rewards_S: Sequence[float], spans_S: Sequence[float],
    before_S: Sequence[float], after_S: Sequence[float], settings: PPO,
) -> tuple[list[float], list[float | None]]:  # fmt: skip
    """What follows each sample's turn, discounted to its last token; what the state after it is worth.

    Turn-level GAE with G, L the turn's discount and lambda (eq. 1): delta_t = R_t + span_t G V_{t+1} - V_t,
    A_t = delta_t + span_t G L A_{t+1}.
    R_t are the turn's token rewards discounted to its first token, V_t the value `before` that token, `span`
    the token-level discount from the first token to the last (1 for gamma 1). A turn that went on leads to G
    (V_{t+1} + L A_{t+1}) of the next turn of the same dialogue. Where a dialogue is cut (a sample it did not
    go on with, a next turn without any readable verdict, the turn limit) the turn leads to G times the
    critic's value `after` it; nothing follows the limit when `ppo.turn_limit` is "end". What a continued turn
    led to is the target of its value `after`. ValueError: a turn of a dialogue went on with two samples.
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
    return futures, worths
