"""Allowed tokens: for some rows of a step a mask of what may be chosen at all, before everything else is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.engine.transfer import queued, tensor_on


class Allowed(NamedTuple):
    """The masks of M rows."""

    indices: Sequence[int]
    """Which rows of the step, in ascending order."""
    masks: Tensor
    """[M, B] uint8 on the CPU: a bit for each token id, from the lowest bit of the first byte on."""

    def forbid_others(self, logits: Tensor) -> None:
        """Sets, in place, the float32 `logits` [R, V] of all other tokens to -inf, in these rows."""
        device, vocab_size = logits.device, logits.shape[-1]
        masks = queued(self.masks, device).int()  # [M, B]
        forbidden = _forbidden_bits(device).index_select(0, masks.view(-1)).view(len(masks), -1)[:, :vocab_size]
        if len(masks) == len(logits):
            logits.masked_fill_(forbidden, -math.inf)
        else:
            which = tensor_on(device, self.indices, torch.int64)
            logits[which] = logits[which].masked_fill_(forbidden, -math.inf)


def allowed_of(indices: Sequence[int], masks: Sequence[bytes]) -> Allowed | None:
    """The masks of these rows, as many bytes each; None if there are no rows."""
    if not indices:
        return None
    content = bytearray(b"".join(masks))
    return Allowed(indices, torch.frombuffer(content, dtype=torch.uint8).view(len(indices), -1))


@cache
def _forbidden_bits(device: torch.device) -> Tensor:
    """[256, 8] bool: for each byte which of its bits are not set, the lowest first."""
    return (torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)) & 1 == 0
