"""The choice of tokens in machine code on a CPU: the operator of `native/sampling.cpp`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def best_of(
    logits: Tensor,
    shaping: Tensor,
    seeds: Tensor,
    slots: Sequence[int],
    positions: Sequence[int],
    width: int,
) -> tuple[list[list[int]], list[list[float]]]:
    """The `width` best tokens of each row of `logits` [R, V] by perturbed score, and those scores.

    Fewer where the filters leave fewer. `slots` and `positions` are those of the rows; for each slot there is a column
    of `shaping` [5, num_slots]: temperature, top_k, top_p, log(min_p), scale of the noise; and one of `seeds`
    [num_slots].
    """
    found = torch.ops.outrider_native.best_of(logits, shaping, seeds, slots, positions, width)
    token_ids, scores = (table.tolist() for table in found)
    for row_token_ids, row in zip(token_ids, scores, strict=True):
        if row[-1] == -math.inf:
            num = row.index(-math.inf)
            del row_token_ids[num:], row[num:]
    return token_ids, scores
