"""The best tokens of a row: what a chooser finds, whichever way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Best(NamedTuple):
    """Tokens of one row by falling perturbed score; fewer than were asked for where the filters leave fewer."""

    token_ids: list[int]
    scores: list[float]
    """Their perturbed scores."""

    @property
    def margins(self) -> list[float]:
        """See `Sampler.propose`."""
        found = [self.scores[0] - score for score in self.scores]
        if found:
            found[0] = found[1] if len(found) > 1 else math.inf
        return found


Pending = Callable[[], list[Best | None]]
"""Waits for what one pass has found in each row; see `bests`."""


def bests(token_ids: Sequence[list[int]], scores: Sequence[list[float]]) -> list[Best | None]:
    """What a chooser in one pass found for each row: -inf from where the filters left no token. None for a row whose
    token ids are negative: rounding may decide what top-p keeps of it."""
    found: list[Best | None] = []
    for its_token_ids, its_scores in zip(token_ids, scores, strict=True):
        num = its_scores.index(-math.inf) if its_scores[-1] == -math.inf else len(its_scores)
        is_doubtful = num > 0 and its_token_ids[0] < 0
        found.append(None if is_doubtful else Best(its_token_ids[:num], its_scores[:num]))
    return found


def best_of_each(token_ids: Sequence[Tensor], scores: Sequence[Tensor]) -> list[Best]:
    """For each of R rows its best tokens, from the first to the last: [R, 1] each, -inf where none is left."""
    table = torch.stack((torch.cat(list(token_ids), -1).double(), torch.cat(list(scores), -1))).tolist()
    found: list[Best] = []
    for row in zip(*table, strict=True):
        kept = [(int(token_id), score) for token_id, score in zip(*row, strict=True) if score > -math.inf]
        found.append(Best([token_id for token_id, _ in kept], [score for _, score in kept]))
    return found
