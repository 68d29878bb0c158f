"""What a guess costs: divergences between the target's distribution and the draft's, and what each guess weighs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from recipes.demo_pair.training import MISS_WEIGHT
from recipes.distill.options import Loss


class Costs(NamedTuple):
    """What guessing costs at N places."""

    divergence: Tensor
    """[N], as the loss asks for."""
    acceptance: Tensor
    """[N], without gradient: how often a guess is right under the best of couplings, 1 - total variation."""


def costs(loss: Loss, aim: Tensor, guess: Tensor) -> Costs:
    """Compares the log-probabilities of target and draft, `aim` and `guess` [N, V].

    With p of the target and q of the draft, the forward divergence is the sum of p log(p / q), the reverse one that of
    q log(q / p), the total variation half the sum of |p - q|.
    """
    overlap = torch.minimum(aim, guess).exp().sum(-1)
    match loss:
        case Loss.FORWARD_KL:
            divergence = _kl(aim, guess)
        case Loss.REVERSE_KL:
            divergence = _kl(guess, aim)
        case Loss.TOTAL_VARIATION:
            divergence = 1 - overlap
        case Loss.FORWARD_KL_AND_MISSES:
            divergence = _kl(aim, guess) + MISS_WEIGHT * (1 - overlap)
    return Costs(divergence, overlap.detach())


def length_weights(acceptance: Tensor) -> Tensor:
    """What a guess of each depth weighs for the accepted length, [..., K], of `acceptance` [..., K] by depth.

    The accepted length is the sum over depths d of the product of the acceptances down to d. A weight is its derivative
    by the acceptance of one depth: how often that depth is reached, times what hangs on it. So training looks where a
    chain of guesses gets to, as PARD-2 aims at (An et al., arXiv 2605.08632), by the exact slope.
    """
    reached = functional.pad(acceptance.cumprod(-1), (1, 0), value=1.0)[..., :-1]
    hanging = torch.ones_like(acceptance)
    for depth in range(acceptance.shape[-1] - 2, -1, -1):
        hanging[..., depth] += acceptance[..., depth + 1] * hanging[..., depth + 1]
    return reached * hanging


def chain_weights(acceptance: Tensor, num_depths: int) -> Tensor:
    """The same for a model that guesses one token a pass, [B, T] of [B, T]: its guess at a place serves chains of
    `num_depths` guesses that begin there or before. In the mean over the beginnings that there are."""
    chains = functional.pad(acceptance, (0, num_depths - 1)).unfold(-1, num_depths, 1)  # [B, T, K]
    weights, found = length_weights(chains), torch.zeros_like(acceptance)
    num_beginnings = torch.zeros_like(acceptance[:1])
    for depth in range(min(num_depths, acceptance.shape[-1])):
        last = acceptance.shape[-1] - depth
        found[:, depth:] += weights[:, :last, depth]
        num_beginnings[:, depth:] += 1
    return found / num_beginnings


def _kl(aim: Tensor, guess: Tensor) -> Tensor:
    return functional.kl_div(guess, aim, reduction="none", log_target=True).sum(-1)
