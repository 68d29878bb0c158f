"""The order of logits, the same on every device: of equals the lowest token id is first."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_keys(logits: Tensor) -> Tensor:
    """For each of float32 `logits` [R, V] an int64, the larger the earlier it ranks; no two of a row are equal.

    They are the float's bits in an order-preserving form above, the token id counted from the end below.
    """
    bits = (logits + 0.0).view(torch.int32)  # the sum turns -0.0, equal to 0.0 but of lesser bits, into 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # of negative floats the larger bits are the smaller number
    return (ordered.long() << 32) | torch.arange(logits.shape[-1] - 1, -1, -1, device=logits.device)


def ranked(logits: Tensor, num_ranked: int) -> tuple[Tensor, Tensor]:
    """The `num_ranked` largest of each row of float32 `logits` [R, V], of equals the lowest id first; and their ids.

    torch.topk orders equals as it likes, so it gets keys without equals.
    """
    token_ids = logits.shape[-1] - 1 - (rank_keys(logits).topk(num_ranked).values & 0xFFFFFFFF)
    return logits.gather(-1, token_ids), token_ids
