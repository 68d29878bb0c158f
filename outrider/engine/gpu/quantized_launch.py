"""Launches of the kernel of `quantized_product.py`."""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
from torch import Tensor

from outrider.engine.gpu import launch, launcher, quantized_product

_kernels: Any = quantized_product
"""What Triton's decorator makes of them is told to no type checker."""

_ROWS_MAX = 64
_OUTPUTS_MAX = 64
_INPUTS_MAX = 128
"""Of a tile: with more, registers do not suffice."""
_NUM_WARPS = 4
_NUM_STAGES = 3
"""Tiles that are on their way to the processor at a time."""


def product(
    x: Tensor,  # [M, K], of any stride but the last
    codes: Tensor,
    scales: Tensor,
    rows: int,
    columns: int,
    zeros: Tensor | None,
    order: Tensor | None,
) -> Tensor:
    """[M, N]: `x` times the transpose of the weight in few bits that the rest makes up, of the type of `x`.

    Each of the weight's numbers is exact in 16 bits, and sums are float32.
    """
    num_rows, num_inputs = x.shape
    num_outputs = codes.shape[0]
    output = x.new_empty(num_rows, num_outputs)
    tile_rows = min(max(triton.next_power_of_2(num_rows), launch.WIDTH_MIN), _ROWS_MAX)
    row_tiles = triton.cdiv(num_rows, tile_rows)
    tile_outputs = _tile_outputs(num_outputs * row_tiles, launch.machine(x.device).num_processors)
    inputs = _INPUTS_MAX if columns >= num_inputs else gcd(columns, _INPUTS_MAX)
    launcher.run(
        _kernels.multiply,
        (triton.cdiv(num_outputs, tile_outputs), row_tiles),
        x,
        codes.view(torch.uint8),
        scales,
        zeros,
        order,
        output,
        num_rows,
        num_outputs,
        num_inputs,
        scales.shape[1],
        x.stride(0),
        columns,
        SCALE_ROWS=rows,
        IS_INT4=zeros is not None,
        HAS_ORDER=order is not None,
        ROWS=tile_rows,
        OUTPUTS=tile_outputs,
        INPUTS=inputs,
        PRECISION="ieee",
        num_warps=_NUM_WARPS,
        num_stages=_NUM_STAGES,
    )
    return output


def _tile_outputs(num_outputs: int, num_processors: int) -> int:
    """So many that every processor has a tile, where there are enough."""
    share = triton.next_power_of_2(max(num_outputs // num_processors, 1))
    return min(max(share, launch.WIDTH_MIN), _OUTPUTS_MAX)
