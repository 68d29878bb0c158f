"""The best tokens of rows without top-k, found without ranking the vocabulary.

Noise decides first, over all tokens; then the winner is asked whether it lies within top-p, which takes the sum of the
probabilities that rank before its own, and no order. A winner outside is dropped with all that rank behind it, and the
next is asked. Each drops a random share of the probability that was left, so that a row finds log(1 / top_p) outside
on the average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.sample.best import Best, best_of_each
from outrider.engine.sample.noise import gumbel
from outrider.engine.sample.ranking import rank_keys

DOUBT = 1e-9
"""How near to top_p a sum of probabilities is left undecided. Sums in two orders differ by their rounding, at most
2^-53 for each summand: 1e-9 is that of nine million tokens."""

_BLOCK = 64
"""Tokens of a block, of which the largest score is kept: the next best token is found without a look at all others."""

_FIRST, _LAST = torch.iinfo(torch.int64).max, torch.iinfo(torch.int64).min
"""Rank keys before and behind those of all tokens."""


def best_unranked(
    processed: Tensor,  # [R, V] float32
    params: Sequence[SamplingParams],
    shaping: Tensor,  # [5, R] float64: see `shaping_of`
    seeds: Tensor,  # [R] int64
    positions: Tensor,  # [R] int64
    width: int,
) -> list[Best | None]:
    """The `width` best tokens of each row; None for a row in which rounding may decide what top-p keeps.

    No row has a top-k.
    """
    vocab_size = processed.shape[-1]
    temperature, _, top_p, log_min_p, noise_scale = shaping.unsqueeze(-1)  # [R, 1] each
    scores = processed.double() / temperature
    perturbed = gumbel(seeds, positions, vocab_size).mul_(noise_scale).add_(scores)
    if any(each.min_p > 0.0 for each in params):
        perturbed.masked_fill_(scores < scores.amax(-1, keepdim=True) + log_min_p, -math.inf)
    remaining = _Remaining(perturbed)
    nucleus = _Nucleus(processed, scores, top_p) if any(each.top_p < 1.0 for each in params) else None
    picks: list[Tensor] = []
    best_scores: list[Tensor] = []
    for _ in range(min(width, vocab_size)):
        score, token_id = nucleus.best(remaining) if nucleus else remaining.largest()
        picks.append(token_id)
        best_scores.append(score)
        remaining.drop(token_id)
    found = best_of_each(picks, best_scores)
    if nucleus is None:
        return list(found)
    return [None if doubtful else best for doubtful, best in zip(nucleus.doubtful.tolist(), found, strict=True)]


class _Remaining:
    """The scores of R rows, of which the largest are taken one after the other."""

    def __init__(self, scores: Tensor) -> None:
        self._vocab_size = scores.shape[-1]
        self._scores = pad(scores, (0, -self._vocab_size % _BLOCK), value=-math.inf)
        self._blocks = self._scores.unflatten(-1, (-1, _BLOCK))  # [R, V / _BLOCK, _BLOCK]
        self._largest = self._blocks.amax(-1)  # [R, V / _BLOCK]

    def largest(self) -> tuple[Tensor, Tensor]:
        """Score and token, [R, 1] each; of equals the lowest token id."""
        block = self._largest.argmax(-1, keepdim=True)  # [R, 1]
        score, place = self._block(block).max(-1)
        return score, block * _BLOCK + place

    def drop(self, token_id: Tensor) -> None:
        """Drops one token of each row, [R, 1]."""
        self._scores.scatter_(-1, token_id, -math.inf)
        block = token_id // _BLOCK
        self._largest.scatter_(-1, block, self._block(block).amax(-1))

    def drop_all(self, row: int, dropped: Tensor) -> None:
        """Drops of one row the tokens that `dropped` [V] tells."""
        self._scores[row, : self._vocab_size].masked_fill_(dropped, -math.inf)
        self._largest[row] = self._blocks[row].amax(-1)

    def _block(self, block: Tensor) -> Tensor:
        """[R, 1, _BLOCK] from [R, 1]."""
        return self._blocks.gather(1, block[..., None].expand(-1, -1, _BLOCK))


class _Nucleus:
    """What top-p keeps of R rows: the tokens from the first to one that it stands at, by their ranks."""

    def __init__(self, logits: Tensor, scores: Tensor, top_p: Tensor) -> None:
        """Of `logits` [R, V], which rank the tokens, and `scores` [R, V], whose softmax are the probabilities."""
        self._keys = rank_keys(logits)
        self._probs = scores.softmax(-1)
        self._top_p = top_p
        self._inside = torch.where(top_p < 1.0, _FIRST, _LAST)
        """[R, 1]: the key of the last token that is known to be kept."""
        self.doubtful = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        """[R]: whether a token was asked about for which rounding may have decided."""

    def best(self, remaining: _Remaining) -> tuple[Tensor, Tensor]:
        """The largest of `remaining` that is kept, and its token, [R, 1] each; drops what it finds outside."""
        while True:
            score, token_id = remaining.largest()
            keys = self._keys.gather(-1, token_id)
            asked = ((keys < self._inside) & (score > -math.inf)).squeeze(-1)
            if not asked.any():
                return score, token_id
            for row in asked.nonzero().squeeze(-1).tolist():
                self._ask(row, keys[row], remaining)

    def _ask(self, row: int, key: Tensor, remaining: _Remaining) -> None:
        """Finds out whether the token of that key is kept."""
        ahead = self._keys[row] > key
        excess = (self._probs[row] * ahead).sum() - self._top_p[row]  # [1]
        self.doubtful[row] |= (excess.abs() <= DOUBT).squeeze()
        if excess >= 0.0:
            remaining.drop_all(row, ~ahead)
        else:
            self._inside[row] = key
