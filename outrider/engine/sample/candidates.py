"""The candidates of each row by definition: the vocabulary is ranked, and the filters cut its ranking off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.sample.best import Best, best_of_each
from outrider.engine.sample.noise import gumbel
from outrider.engine.sample.ranking import ranked


class Candidates(NamedTuple):
    """What may be chosen in each row, and what speaks for it."""

    token_ids: Tensor
    """[R, K]: the token of each candidate, the most likely first."""
    perturbed: Tensor
    """[R, K] float64: processed logits / T, and noise but in greedy rows; -inf where a filter dropped the token."""

    def best(self, width: int) -> list[Best]:
        """The `width` best of each row."""
        remaining = self.perturbed.clone()
        picks: list[Tensor] = []
        scores: list[Tensor] = []
        for _ in range(min(width, remaining.shape[-1])):
            # Not torch.topk, whose order among equals is undefined.
            score, index = remaining.max(-1, keepdim=True)
            picks.append(self.token_ids.gather(-1, index))
            scores.append(score)
            remaining.scatter_(-1, index, -math.inf)
        return best_of_each(picks, scores)


def candidates(
    processed: Tensor,  # [R, V] float32
    params: Sequence[SamplingParams],
    shaping: Tensor,  # [5, R] float64: see `shaping_of`
    seeds: Tensor,  # [R] int64
    positions: Tensor,  # [R] int64
    num_greedy: int,
) -> Candidates:
    """The candidates of rows with those parameters; at least the best `num_greedy` of a greedy one."""
    vocab_size = processed.shape[-1]
    sampled = [each for each in params if not each.greedy]
    temperature, top_k, top_p, log_min_p, noise_scale = shaping.unsqueeze(-1)  # [R, 1] each
    num_ranked = min(vocab_size, max(num_greedy if each.greedy else each.top_k or vocab_size for each in params))
    values, token_ids = ranked(processed, num_ranked)
    scores = values.double() / temperature
    scores.masked_fill_(torch.arange(num_ranked, device=processed.device) >= top_k, -math.inf)
    if any(each.top_p < 1.0 for each in sampled):
        probs = scores.softmax(-1)
        # A token stays while the more likely ones do not reach top_p by themselves.
        scores.masked_fill_(probs.cumsum(-1) - probs >= top_p, -math.inf)
    if any(each.min_p > 0.0 for each in sampled):
        scores.masked_fill_(scores < scores.amax(-1, keepdim=True) + log_min_p, -math.inf)
    if not sampled:
        return Candidates(token_ids, scores)
    noise = gumbel(seeds, positions, vocab_size, token_ids)
    return Candidates(token_ids, noise.mul_(noise_scale).add_(scores))


def shaping_of(params: SamplingParams, vocab_size: int) -> list[float]:
    """Temperature, top_k, top_p, log(min_p) and the scale of the noise, each such that it has no effect where unset."""
    if params.greedy:
        return [1.0, vocab_size, math.inf, -math.inf, 0.0]
    return [
        params.temperature,
        params.top_k or vocab_size,
        params.top_p if params.top_p < 1.0 else math.inf,  # a rounded sum may reach 1 before the last token
        math.log(params.min_p) if params.min_p > 0.0 else -math.inf,
        1.0,
    ]
