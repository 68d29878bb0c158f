"""The candidates of each row: what temperature and filters leave, and the noise that decides among it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.core.protocol.sampling import SamplingParams
from outrider.engine.sample.noise import gumbel
from outrider.engine.sample.ranking import ranked


class Candidates(NamedTuple):
    """What may be chosen in each row, and what speaks for it."""

    token_ids: Tensor | None
    """[R, K]: the token of each candidate, the most likely first; None if candidate v is token v."""
    scores: Tensor
    """[R, K] float64: processed logits / T; -inf where a filter dropped the token."""
    perturbed: Tensor
    """[R, K] float64: scores and noise; no noise in greedy rows."""

    def tokens_at(self, indices: Tensor) -> Tensor:
        """The token ids of the candidates at `indices` [R, n]."""
        return indices if self.token_ids is None else self.token_ids.gather(-1, indices)

    def best(self, width: int) -> tuple[list[list[int]], list[list[float]]]:
        """The token ids and perturbed scores of the `width` best of each row, in order; fewer where fewer are left."""
        remaining = self.perturbed.clone()
        picks: list[Tensor] = []
        scores: list[Tensor] = []
        for _ in range(min(width, remaining.shape[-1])):
            # Not torch.topk, whose order among equals is undefined.
            score, index = remaining.max(-1, keepdim=True)
            picks.append(self.tokens_at(index))
            scores.append(score)
            remaining.scatter_(-1, index, -math.inf)
        table = torch.stack((torch.cat(picks, -1).double(), torch.cat(scores, -1))).tolist()
        found = [
            [(int(token_id), score) for token_id, score in zip(*row, strict=True) if score > -math.inf]
            for row in zip(*table, strict=True)
        ]
        return [[token_id for token_id, _ in row] for row in found], [[score for _, score in row] for row in found]


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
    if num_ranked < vocab_size or any(each.top_k or each.top_p < 1.0 for each in sampled):
        values, token_ids = ranked(processed, num_ranked)
        scores = values.double() / temperature
        ranks = torch.arange(num_ranked, device=processed.device)
        scores.masked_fill_(ranks >= top_k, -math.inf)
        if any(each.top_p < 1.0 for each in sampled):
            probs = scores.softmax(-1)
            # A token stays while the more likely ones do not reach top_p by themselves.
            scores.masked_fill_(probs.cumsum(-1) - probs >= top_p, -math.inf)
    else:
        token_ids = None
        scores = processed.double() / temperature
    if any(each.min_p > 0.0 for each in sampled):
        scores.masked_fill_(scores < scores.amax(-1, keepdim=True) + log_min_p, -math.inf)
    if not sampled:
        return Candidates(token_ids, scores, scores)
    noise = gumbel(seeds, positions, vocab_size, token_ids)
    return Candidates(token_ids, scores, noise.mul_(noise_scale).add_(scores))


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


def margins(scores: list[float]) -> list[float]:
    """Of perturbed scores in order; see `Sampler.propose`."""
    found = [scores[0] - score for score in scores]
    if found:
        found[0] = found[1] if len(found) > 1 else math.inf
    return found
