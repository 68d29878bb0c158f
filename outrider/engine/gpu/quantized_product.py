"""A product with a weight in few bits, in Triton: numbers are widened in registers, so that memory is read once.

Numbers of fp8 and of int4 are exact in 16 bits, so tensor cores multiply them as they are, and the scale of a group of
inputs multiplies the group's sum, in float32. Bits of fp8 are widened by hand: architectures before 8.9 do not know it.
"""

# pyright: reportMissingImports=false, reportArgumentType=false
# Triton comes with torch for GPUs alone, and has types of its own in a kernel.
from __future__ import annotations

import triton
import triton.language as tl

HALF = tl.constexpr(16)
"""Inputs whose codes of int4 stand in the low bits of consecutive bytes; the next so many are in the high ones."""
FP8_UNIT = tl.constexpr(256.0)
"""Of e4m3: its exponents are 8 below those that the same bits say in a float16."""


@triton.jit
def multiply(
    x,  # [M, K], rows `x_stride` apart
    codes,  # [N, K] uint8, the bits of fp8; or [N, K / 2] uint8, two of int4
    scales,  # [ceil(N / SCALE_ROWS), num_groups]
    zeros,  # [N, num_groups] uint8; None for fp8
    order,  # [K] int64: the input that each column belongs to; None where they stand in order, as those of fp8 do
    output,  # [M, N]
    num_rows,
    num_outputs,
    num_inputs,
    num_groups,
    x_stride,
    group_size,
    SCALE_ROWS: tl.constexpr,
    IS_INT4: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid [outputs by OUTPUTS, rows by ROWS]. INPUTS divides the group size, or all inputs are one group."""
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    is_output, is_row = outputs < num_outputs, rows < num_rows
    total = tl.full([ROWS, OUTPUTS], 0.0, tl.float32)
    x_rows = x + rows.to(tl.int64)[:, None] * x_stride
    scale_places = scales + (outputs // SCALE_ROWS) * num_groups
    for first in range(0, num_inputs, INPUTS):
        group = first // group_size
        scale = tl.load(scale_places + group, mask=is_output, other=0.0).to(tl.float32)
        if IS_INT4:
            zero = tl.load(zeros + outputs * num_groups + group, mask=is_output, other=0).to(tl.int16)
            byte = tl.arange(0, INPUTS // 2)
            low = first + byte // HALF * (2 * HALF) + byte % HALF
            place = codes + outputs.to(tl.int64)[None, :] * (num_inputs // 2) + (first // 2 + byte)[:, None]
            is_code = (low < num_inputs)[:, None] & is_output[None, :]
            is_x = is_row[:, None] & (low < num_inputs)[None, :]
            pair = tl.load(place, mask=is_code, other=0).to(tl.int16)
            low_input, high_input = low, low + HALF
            if HAS_ORDER:
                low_input = tl.load(order + low, mask=low < num_inputs, other=0)
                high_input = tl.load(order + low + HALF, mask=low < num_inputs, other=0)
            x_low = tl.load(x_rows + low_input[None, :], mask=is_x, other=0.0)
            x_high = tl.load(x_rows + high_input[None, :], mask=is_x, other=0.0)
            w_low = ((pair & 15) - zero[None, :]).to(x.dtype.element_ty)
            w_high = ((pair >> 4) - zero[None, :]).to(x.dtype.element_ty)
            part = tl.dot(x_low, w_low, input_precision=PRECISION)
            part += tl.dot(x_high, w_high, input_precision=PRECISION)
            total += part * scale[None, :]
        else:
            column = first + tl.arange(0, INPUTS)
            is_column = column < num_inputs
            place = codes + outputs.to(tl.int64)[None, :] * num_inputs + column[:, None]
            code = tl.load(place, mask=is_column[:, None] & is_output[None, :], other=0).to(tl.uint16)
            bits = ((code & 0x80) << 8) | ((code & 0x7F) << 7)
            w = bits.to(tl.float16, bitcast=True).to(tl.float32).to(x.dtype.element_ty)
            x_tile = tl.load(x_rows + column[None, :], mask=is_row[:, None] & is_column[None, :], other=0.0)
            total += tl.dot(x_tile, w, input_precision=PRECISION) * (scale * FP8_UNIT)[None, :]
    place = output + rows.to(tl.int64)[:, None] * num_outputs + outputs[None, :]
    tl.store(place, total.to(output.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])
