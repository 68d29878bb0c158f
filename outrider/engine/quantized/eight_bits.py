"""Weights in eight bits for a CPU, which then reads half of what it reads of 16: how they are rounded, and the product.

The product that workers run is `outrider/engine/native/digits.h`; the one here says what it computes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from outrider.engine.quantized.weight import QuantizedWeight

CODE_MAX = 127
"""Largest number of a weight: with one sign more than that, -128 would have no counterpart."""

DIGITS_MAX = 127 * 256 + 127
"""Largest whole number that what weights meet is rounded to: two digits of base 256, from -128 to 127."""

INPUTS_MAX = 1 << 16
"""Of a layer: so many products of bytes stay below 2^31."""

_SMALLEST_PEAK = 1e-30
"""Below it all of a row, or of an output's weights, counts as nothing."""


def rounded(weight: Tensor) -> QuantizedWeight:
    """`weight` [N, K] in whole numbers, with a scale for each output: its largest weight becomes CODE_MAX."""
    numbers = weight.detach().float()
    scales = numbers.abs().amax(1, keepdim=True) / CODE_MAX  # [N, 1]
    codes = (numbers / scales.clamp(min=_SMALLEST_PEAK)).round().to(torch.int8)
    return QuantizedWeight(codes, scales, rows=1, columns=weight.shape[1])


def product(x: Tensor, weight: QuantizedWeight) -> Tensor:
    """[M, N]: `x` [M, K], its rows rounded to 16 bits each, times the transpose of `weight`."""
    rows = x.float()
    peaks = rows.abs().amax(1, keepdim=True)  # [M, 1]
    digits = (rows * (DIGITS_MAX / peaks.clamp(min=_SMALLEST_PEAK))).round()
    sums = functional.linear(digits, weight.codes.float())
    return (sums * (peaks / DIGITS_MAX) * weight.scales.T).to(x.dtype)
