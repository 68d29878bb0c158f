"""The choice of tokens in machine code on a CPU: the operator of `native/sampling.cpp`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outrider.engine.sample.best import Pending, bests


def best_of(
    logits: Tensor,
    shaping: Tensor,
    seeds: Tensor,
    slots: Sequence[int],
    positions: Sequence[int],
    width: int,
) -> Pending:
    """The `width` best tokens of each row of `logits` [R, V]; None for a row in which rounding may decide what
    top-p keeps.

    `slots` and `positions` are those of the rows; for each slot there is a column of `shaping` [5, num_slots]:
    temperature, top_k, top_p, log(min_p), scale of the noise; and one of `seeds` [num_slots].
    """
    token_ids, scores = torch.ops.outrider_native.best_of.default(logits, shaping, seeds, slots, positions, width)
    found = bests(token_ids.tolist(), scores.tolist())
    return lambda: found
