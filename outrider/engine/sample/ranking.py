"""The order of logits, the same on every device: of equals the lowest token id is first."""

from __future__ import annotations

import torch
from torch import Tensor


def ranked(logits: Tensor, numranked: int) -> tuple[Tensor, Tensor]:
    """The `numranked` largest of each row of float32 `logits` [R, V], of equals the lowest id first; and their ids.

    torch.topk orders equals as it likes. So it gets keys without equals: the float's bits in an order-preserving form
    above, the token id counted from the end below.
    """
    last_id = logits.shape[-1] - 1
    bits = (logits + 0.0).view(torch.int32)  # the sum turns -0.0, equal to 0.0 but of lesser bits, into 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # of negative floats the larger bits are the smaller number
    keys = (ordered.long() << 32) | torch.arange(last_id, -1, -1, device=logits.device)
    token_ids = last_id - (keys.topk(numranked).values & 0xFFFFFFFF)
    return logits.gather(-1, token_ids), token_ids
