"""One linear layer's weight in few bits, in the one order that kernels read, and its dense twin."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from outrider.engine.quantized.scheme import PIECE

_HALF = PIECE // 2


class QuantizedWeight(NamedTuple):
    """A weight of N outputs and K inputs: numbers of few bits, less a zero point, times a scale."""

    codes: Tensor
    """fp8: [N, K] float8_e4m3fn. int8: [N, K] int8. int4: [N, K / 2] uint8, see `packed`."""
    scales: Tensor
    """[ceil(N / rows), ceil(K / columns)], float32 or of 16 bits."""
    rows: int
    """Outputs that share a scale."""
    columns: int
    """Inputs that share a scale."""
    zeros: Tensor | None = None
    """int4: [N, K / columns] uint8."""
    order: Tensor | None = None
    """[K] int64: the input that each column belongs to; None if they stand in order."""

    @property
    def in_eight_bits(self) -> bool:
        """Whether it is int8."""
        return self.codes.dtype == torch.int8

    @property
    def num_outputs(self) -> int:
        """N"""
        return self.codes.shape[0]

    @property
    def num_inputs(self) -> int:
        """K"""
        return self.codes.shape[1] * (1 if self.zeros is None else 2)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """[N, K]: what it stands for, computed in float32 and rounded once."""
        numbers = self.codes.float() if self.zeros is None else unpacked(self.codes).float()
        for start in range(0, self.num_inputs, self.columns):
            group, part = start // self.columns, numbers[:, start : start + self.columns]
            if self.zeros is not None:
                part -= self.zeros[:, group, None].float()
            part *= self.scales[:, group].float().repeat_interleave(self.rows)[: self.num_outputs, None]
        if self.order is not None:
            numbers = torch.empty_like(numbers).index_copy_(1, self.order, numbers)
        return numbers.to(dtype)


def packed(numbers: Tensor) -> Tensor:
    """`numbers` [N, K] of 0 to 15, uint8, two to a byte: [N, K / 2].

    Of each PIECE of inputs the first half stands in the low bits and the second half in the high ones, so that what a
    kernel takes out of consecutive bytes belongs to consecutive inputs.
    """
    low, high = numbers.unflatten(1, (-1, 2, _HALF)).unbind(2)
    return (low | (high << 4)).flatten(1).contiguous()


def unpacked(codes: Tensor) -> Tensor:
    """What `packed` was given."""
    pieces = codes.unflatten(1, (-1, _HALF))
    return torch.stack([pieces & 15, pieces >> 4], 2).flatten(1)
