"""Ragged tree attention over pages of the KV cache: three kernels in Triton, which replace a loop over sessions.

`write` puts new keys and values into their cells, `attend` reads a session's cells in splits of a fixed size, and
`combine` puts a token's splits together ("Flash-Decoding", Dao, Haziza, Massa and Sizov 2023; the softmax that is
computed as it goes is Milakov and Gimelshein's, arXiv 1805.02867). What a token sees is a row of integers, its sight:
the lowest and the end of the line's cells, and a mask of the cells behind the line; see `work_list.py`.

Splits and blocks of cells begin at multiples of their sizes within a session, and those that a token does not see
change nothing, to the bit: so a token's bits depend on what it sees alone, not on who shares its step.
"""

# pyright: reportMissingImports=false, reportArgumentType=false, reportAttributeAccessIssue=false
# Triton comes with torch for GPUs alone, and has types of its own in a kernel.
from __future__ import annotations

import triton
import triton.language as tl

from outrider.engine.gpu import work_list

ITEM = tl.constexpr(work_list.ITEM)
SIGHT = tl.constexpr(work_list.SIGHT)
WORD_0 = tl.constexpr(work_list.WORD_0)
TREE_CELLS = tl.constexpr(work_list.WORDS * work_list.WORD_BITS)
PAGE = tl.constexpr(work_list.PAGE_CELLS)
SPLIT = tl.constexpr(work_list.SPLIT_CELLS)
NOTHING = tl.constexpr(2**31 - 1)
"""A cell that no session has."""
E4M3_NORMAL = tl.constexpr(2.0**-6)
"""Smaller numbers of fp8 are multiples of 2^-9, ..."""
SHIFTER = tl.constexpr(1.5 * 2**14)
"""... and so is what float32 has near this one."""
LOG2_E = tl.constexpr(1.4426950408889634)
"""Scores are in base 2 from here on: GPUs have an instruction for its powers."""


@triton.jit
def rounded_to_e4m3(x):
    """`x`, float32 of at most 448, to the nearest number of fp8 and the even one of two: whoever converts it then does
    nothing but copy its bits."""
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & 0xFFF00000  # three bits of fraction are left
    return tl.where(tl.abs(x) < E4M3_NORMAL, (x + SHIFTER) - SHIFTER, bits.to(tl.float32, bitcast=True))


@triton.jit
def as_cell(x, bound, kind: tl.constexpr):
    """What a cell of type `kind` takes of `x`, float32: 0 for NaN and nothing beyond `bound`, so that 0 times what it
    holds is 0 for whoever masks it."""
    x = tl.minimum(tl.maximum(tl.where(x == x, x, 0.0), -bound), bound)
    if kind.is_fp8():
        x = rounded_to_e4m3(x)
    return x.to(kind)


@triton.jit
def write(
    content,  # [KV_HEADS, N, SIZE], of any strides but the last
    cache,  # [cells, KV_HEADS, SIZE]
    write_cells,  # [N] int32
    num_rows,
    head_stride,
    token_stride,
    bound,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Grid [the N x KV_HEADS rows by ROWS]: keys or values of all tokens go to their cells."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    is_row = rows < num_rows
    is_used = is_row[:, None] & (columns < SIZE)[None, :]
    token = (rows // KV_HEADS).to(tl.int64)
    head = rows % KV_HEADS
    cell = tl.load(write_cells + token, mask=is_row, other=0).to(tl.int64)
    source = content + (head * head_stride + token * token_stride)[:, None] + columns[None, :]
    written = tl.load(source, mask=is_used, other=0.0).to(tl.float32)
    place = cache + ((cell * KV_HEADS + head) * SIZE)[:, None] + columns[None, :]
    tl.store(place, as_cell(written, bound, cache.dtype.element_ty), mask=is_used)


@triton.jit
def attend(
    query,  # [H, N, KEY], of any strides but the last
    key_cache,  # [cells, KV_HEADS, KEY]
    value_cache,  # [cells, KV_HEADS, VALUE]
    numbers,  # the buffer into which items point for their sessions' pages, int32
    items,  # [1 + items, ITEM] int32; the first number is how many there are
    sights,  # [N, SIGHT] int32
    sums,  # [parts, H, VALUE] float32: of values, each times the power of its score over the part's highest
    maxima,  # [parts, H] float32: the part's highest score, -inf if it has none
    totals,  # [parts, H] float32: of those powers
    head_stride,
    token_stride,
    scale,
    softcap,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    KEY: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid [programs, KV_HEADS], whatever the batch: a program takes every so-many-th item.

    Rows of a tile are the GROUP query heads that share a key head, token after token, so a key is read once for all.
    """
    kv_head = tl.program_id(1)
    rows = tl.arange(0, ROWS)
    key_columns = tl.arange(0, KEY_WIDTH)
    value_columns = tl.arange(0, VALUE_WIDTH)
    offsets = tl.arange(0, PAGE)
    # Of 32 bits, within a page: with pointers of 64 for each number of a tile, registers run out.
    key_offsets = (offsets * (KV_HEADS * KEY))[None, :] + key_columns[:, None]
    value_offsets = (offsets * (KV_HEADS * VALUE))[:, None] + value_columns[None, :]
    head = kv_head * GROUP + rows % GROUP
    num_items = tl.load(items)
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        fields = items + (item + 1) * ITEM
        first_page = tl.load(fields)
        first_token = tl.load(fields + 1)
        num_tokens = tl.load(fields + 2)
        first_cell = tl.load(fields + 3)
        end_cell = tl.load(fields + 4)
        first_part = tl.load(fields + 5)
        token_parts = tl.load(fields + 6)
        is_used = rows < num_tokens * GROUP
        token = (first_token + rows // GROUP).to(tl.int64)
        q = tl.load(
            query + (head * head_stride + token * token_stride)[:, None] + key_columns[None, :],
            mask=is_used[:, None] & (key_columns < KEY)[None, :],
            other=0.0,
        )
        sight = (first_token + rows // GROUP) * SIGHT + WORD_0
        lowest = tl.load(sights + sight - WORD_0, mask=is_used, other=NOTHING)
        limit = tl.load(sights + sight - WORD_0 + 1, mask=is_used, other=NOTHING)
        first_limit = tl.min(limit, 0)
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.full([ROWS], 0.0, tl.float32)
        summed = tl.full([ROWS, VALUE_WIDTH], 0.0, tl.float32)
        begin = tl.maximum(first_cell, tl.min(lowest, 0) // PAGE * PAGE)
        for cell in range(begin, end_cell, PAGE):
            page = tl.load(numbers + first_page + cell // PAGE).to(tl.int64)
            cells = cell + offsets
            is_inside = cells < end_cell
            keys = tl.load(
                key_cache + (page * PAGE * KV_HEADS + kv_head) * KEY + key_offsets,
                mask=is_inside[None, :] & (key_columns < KEY)[:, None],
                other=0.0,
            ).to(q.dtype)
            scores = tl.dot(q, keys, input_precision=PRECISION) * scale
            if HAS_SOFTCAP:
                # tanh x = 1 - 2 / (1 + e^2x)
                scores = softcap - 2.0 * softcap / (1.0 + tl.exp2(scores * (2.0 * LOG2_E / softcap)))
            behind = cells[None, :] - limit[:, None]
            is_seen = (cells[None, :] >= lowest[:, None]) & (behind < 0)
            if cell + PAGE > first_limit:
                has_bit = (behind >= 0) & (behind < TREE_CELLS) & is_used[:, None]
                words = tl.load(sights + (sight[:, None] + (behind >> 5)), mask=has_bit, other=0)
                is_seen = is_seen | (((words >> (behind & 31)) & 1) != 0)
            scores = tl.where(is_seen & is_inside[None, :], scores * LOG2_E, float("-inf"))
            new_highest = tl.maximum(highest, tl.max(scores, 1))
            shift = tl.where(new_highest == float("-inf"), 0.0, new_highest)
            weights = tl.exp2(scores - shift[:, None])
            faded = tl.exp2(highest - shift)
            values = tl.load(
                value_cache + (page * PAGE * KV_HEADS + kv_head) * VALUE + value_offsets,
                mask=is_inside[:, None] & (value_columns < VALUE)[None, :],
                other=0.0,
            ).to(q.dtype)
            total = total * faded + tl.sum(weights, 1)
            summed = summed * faded[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
            highest = new_highest
        # Where a window hides all of it nobody will read it. That is a mask, since Triton 3.6 compiles no branch that
        # takes sums out of the tensor cores of architecture 10.0.
        is_stored = rows < tl.where(begin < end_cell, num_tokens * GROUP, 0)
        part = (first_part + (rows // GROUP) * token_parts).to(tl.int64) * (KV_HEADS * GROUP) + head
        place = sums + part[:, None] * VALUE + value_columns[None, :]
        tl.store(place, summed, mask=is_stored[:, None] & (value_columns < VALUE)[None, :])
        tl.store(maxima + part, highest, mask=is_stored)
        tl.store(totals + part, total, mask=is_stored)


@triton.jit
def combine(
    output,  # [N, HEADS, VALUE]
    part_offsets,  # [N + 1] int32: where each token's parts begin
    sights,  # [N, SIGHT] int32
    sums,  # [parts, HEADS, VALUE] float32
    maxima,  # [parts, HEADS] float32
    totals,  # [parts, HEADS] float32
    sinks,  # [HEADS], or None
    num_rows,
    HEADS: tl.constexpr,
    VALUE: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Grid [the N x HEADS rows by ROWS]. A token without parts, which pads the batch, gets zeros."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    is_row = rows < num_rows
    is_column = (columns < VALUE)[None, :]
    token = rows // HEADS
    head = rows % HEADS
    lowest = tl.load(sights + token * SIGHT, mask=is_row, other=0)
    first = tl.load(part_offsets + token, mask=is_row, other=0) + lowest // SPLIT
    end = tl.load(part_offsets + token + 1, mask=is_row, other=0)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.full([ROWS], 0.0, tl.float32)
    summed = tl.full([ROWS, WIDTH], 0.0, tl.float32)
    for index in range(0, tl.max(end - first, 0)):
        has_part = first + index < end
        place = (first + index).to(tl.int64) * HEADS + head
        part_highest = tl.load(maxima + place, mask=has_part, other=float("-inf"))
        part_total = tl.load(totals + place, mask=has_part, other=0.0)
        part_sums = tl.load(
            sums + (place * VALUE)[:, None] + columns[None, :], mask=has_part[:, None] & is_column, other=0.0
        )
        new_highest = tl.maximum(highest, part_highest)
        shift = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        faded = tl.exp2(highest - shift)
        part_faded = tl.exp2(part_highest - shift)
        summed = summed * faded[:, None] + part_sums * part_faded[:, None]
        total = total * faded + part_total * part_faded
        highest = new_highest
    if sinks is not None:
        sink = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32) * LOG2_E
        shift = tl.maximum(highest, sink)
        faded = tl.exp2(highest - shift)
        summed = summed * faded[:, None]
        total = total * faded + tl.exp2(sink - shift)
    summed = summed / tl.where(total > 0.0, total, 1.0)[:, None]
    place = output + (rows.to(tl.int64) * VALUE)[:, None] + columns[None, :]
    tl.store(place, summed.to(output.dtype.element_ty), mask=is_row[:, None] & is_column)
