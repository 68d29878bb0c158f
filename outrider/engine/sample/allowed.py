"""Allowed tokens: for some rows of a step a mask of what may be chosen at all, before everything else is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.engine.transfer import tensor_on


class Allowed(NamedTuple):
    """The masks of M rows."""

    indices: Sequence[int]
    """Which rows of the step."""
    words: Tensor
    """[M, W] int32 on the CPU: a bit for each token id, from the lowest bit of the first word on."""

    def forbid_others(self, logits: Tensor) -> None:
        """Sets, in place, the `logits` [R, V] of all other tokens to -inf, in these rows."""
        vocab_size, device = logits.shape[-1], logits.device
        shifts = torch.arange(32, dtype=torch.int32, device=device)
        bits = (self.words.to(device)[:, :, None] >> shifts) & 1  # [M, W, 32]
        forbidden = bits.flatten(1)[:, :vocab_size] == 0
        which = tensor_on(device, self.indices, torch.int64)
        logits[which] = logits[which].masked_fill_(forbidden, -math.inf)


def allowed_of(indices: Sequence[int], masks: Sequence[bytes]) -> Allowed | None:
    """The masks of these rows, as many bytes each, in whole words; None if there are no rows."""
    if not indices:
        return None
    content = bytearray(b"".join(masks))
    return Allowed(indices, torch.frombuffer(content, dtype=torch.int32).view(len(indices), -1))
