"""What a decoder layer computes between its products and its attention: three kernels in Triton, and their launches.

They are for layers of the shapes of Llama (arXiv 2302.13971) and Qwen3 (arXiv 2505.09388): RMSNorm (Zhang and Sennrich,
arXiv 1910.07467), rotary positions (Su et al., arXiv 2104.09864) and SwiGLU (Shazeer, arXiv 2002.05202). Each rounds
where transformers' own modules round, so that their numbers agree to the last bit but for the order of sums.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false, reportOptionalOperand=false
# Triton comes with torch for GPUs alone, launches what it compiles by an index, and has types of its own in a kernel.
from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from outrider.engine.gpu import launcher
from outrider.engine.gpu.launch import CELL_MAGNITUDE_MAX, DeviceWork, rows_of
from outrider.engine.gpu.tree_attention import as_cell
from outrider.engine.gpu.work_list import WRITE_CELLS

_COLUMNS_MAX = 256
"""Most numbers of a row that a program of `gate` takes, so that all processors have work for few tokens, too."""


class Norm(NamedTuple):
    """An RMSNorm."""

    weight: Tensor
    """[size]"""
    epsilon: float


def add_norm(summed: Tensor, delta: Tensor | None, norm: Norm) -> Tensor:
    """Adds `delta` to `summed` [N, size], where it stands, and returns the norm of that: [N, size]."""
    num_tokens, size = summed.shape
    normed = torch.empty_like(summed)
    rows = rows_of(num_tokens, size, summed.device)
    width = triton.next_power_of_2(size)
    grid = (triton.cdiv(num_tokens, rows),)
    told = (summed, delta, *norm, normed, num_tokens)
    launcher.run(add_and_normalize, grid, *told, SIZE=size, WIDTH=width, ROWS=rows, num_warps=8)
    return normed


def rotate_and_write(
    projected: Tensor,  # [N, (H + 2 num_kv_heads) * size]: queries, then keys, then values
    cosine: Tensor,  # [N, size]
    sine: Tensor,  # [N, size]
    norms: tuple[Norm, Norm] | None,  # of queries and of keys, [size]
    key_cache: Tensor,  # [num_cells, num_kv_heads, size]
    value_cache: Tensor,
    work: DeviceWork,
) -> Tensor:
    """Writes keys and values to their tokens' cells; returns the queries, [N, H, size]."""
    num_tokens = len(projected)
    _, num_kv_heads, size = key_cache.shape
    num_heads = projected.shape[1] // size - 2 * num_kv_heads
    query = projected.new_empty(num_tokens, num_heads, size)
    num_rows = num_tokens * (num_heads + 2 * num_kv_heads)
    query_norm, key_norm = norms or (None, None)
    rows = rows_of(num_rows, size, projected.device)
    launcher.run(
        rotate,
        (triton.cdiv(num_rows, rows),),
        projected,
        cosine,
        sine,
        query_norm and query_norm.weight,
        key_norm and key_norm.weight,
        query,
        key_cache,
        value_cache,
        work.row(WRITE_CELLS),
        num_rows,
        query_norm.epsilon if query_norm else 0.0,
        min(CELL_MAGNITUDE_MAX, torch.finfo(key_cache.dtype).max),
        HEADS=num_heads,
        KV_HEADS=num_kv_heads,
        HALF=size // 2,
        WIDTH=triton.next_power_of_2(size // 2),
        ROWS=rows,
    )
    return query


def gated(both: Tensor) -> Tensor:
    """silu(gate) * up of `both` [N, 2 size], of which the gates come first: [N, size]."""
    num_tokens, size = both.shape[0], both.shape[1] // 2
    output = both.new_empty(num_tokens, size)
    width = min(triton.next_power_of_2(size), _COLUMNS_MAX)
    rows = rows_of(num_tokens, width, both.device)
    grid = triton.cdiv(num_tokens, rows), triton.cdiv(size, width)
    launcher.run(gate, grid, both, output, num_tokens, SIZE=size, WIDTH=width, ROWS=rows)
    return output


@triton.jit
def add_and_normalize(
    summed, delta, weight, epsilon, normed, num_rows, SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    """Grid [N by ROWS]. `delta` may be None."""
    kind: tl.constexpr = summed.dtype.element_ty
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    is_used = (rows < num_rows)[:, None] & (columns < SIZE)[None, :]
    place = (rows.to(tl.int64) * SIZE)[:, None] + columns[None, :]
    x = tl.load(summed + place, mask=is_used, other=0.0).to(tl.float32)
    if delta is not None:
        x = (x + tl.load(delta + place, mask=is_used, other=0.0).to(tl.float32)).to(kind)
        tl.store(summed + place, x, mask=is_used)
        x = x.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 1) / SIZE + epsilon)
    scaled = (x * scale[:, None]).to(kind).to(tl.float32)
    output = scaled * tl.load(weight + columns, mask=columns < SIZE, other=0.0).to(tl.float32)[None, :]
    tl.store(normed + place, output.to(kind), mask=is_used)


@triton.jit
def rotate(
    projected,  # [N, HEADS + 2 KV_HEADS, 2 HALF]
    cosine,  # [N, 2 HALF]
    sine,  # [N, 2 HALF]
    query_norm,  # [2 HALF], or None
    key_norm,  # [2 HALF], or None
    query,  # [N, HEADS, 2 HALF]
    key_cache,  # [cells, KV_HEADS, 2 HALF]
    value_cache,  # [cells, KV_HEADS, 2 HALF]
    write_cells,  # [N] int32
    num_rows,
    epsilon,
    bound,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Grid [the N x (HEADS + 2 KV_HEADS) rows by ROWS]. A row is one head of one token, in two halves that rotary
    positions turn into one another. Values are only written."""
    kind: tl.constexpr = projected.dtype.element_ty
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    is_row = rows < num_rows
    is_used = is_row[:, None] & (columns < HALF)[None, :]
    token = (rows // (HEADS + 2 * KV_HEADS)).to(tl.int64)
    head = rows % (HEADS + 2 * KV_HEADS)
    is_query = (head < HEADS)[:, None]
    is_value = (head >= HEADS + KV_HEADS)[:, None]
    source = projected + (rows.to(tl.int64) * (2 * HALF))[:, None] + columns[None, :]
    value_1 = tl.load(source, mask=is_used, other=0.0).to(tl.float32)
    value_2 = tl.load(source + HALF, mask=is_used, other=0.0).to(tl.float32)
    x_1, x_2 = value_1, value_2
    if query_norm is not None:
        mean = (tl.sum(x_1 * x_1, 1) + tl.sum(x_2 * x_2, 1)) / (2 * HALF)
        scale = (1.0 / tl.sqrt(mean + epsilon))[:, None]
        x_1 = _scaled(x_1, scale, query_norm, key_norm, columns, is_query, HALF, kind)
        x_2 = _scaled(x_2, scale, query_norm + HALF, key_norm + HALF, columns, is_query, HALF, kind)
    angle = (token * (2 * HALF))[:, None] + columns[None, :]
    turned_1 = _turned(x_1, -x_2, cosine + angle, sine + angle, is_used, kind)
    turned_2 = _turned(x_2, x_1, cosine + angle + HALF, sine + angle + HALF, is_used, kind)
    place = query + ((token * HEADS + head) * (2 * HALF))[:, None] + columns[None, :]
    tl.store(place, turned_1.to(kind), mask=is_used & is_query)
    tl.store(place + HALF, turned_2.to(kind), mask=is_used & is_query)
    cell = tl.load(write_cells + token, mask=is_row, other=0).to(tl.int64)
    kv_head = tl.where(is_value, head[:, None] - HEADS - KV_HEADS, head[:, None] - HEADS)
    place = (cell[:, None] * KV_HEADS + kv_head) * (2 * HALF) + columns[None, :]
    is_key = is_used & (head >= HEADS)[:, None] & (head < HEADS + KV_HEADS)[:, None]
    tl.store(key_cache + place, as_cell(turned_1, bound, key_cache.dtype.element_ty), mask=is_key)
    tl.store(key_cache + place + HALF, as_cell(turned_2, bound, key_cache.dtype.element_ty), mask=is_key)
    is_value = is_used & is_value
    tl.store(value_cache + place, as_cell(value_1, bound, value_cache.dtype.element_ty), mask=is_value)
    tl.store(value_cache + place + HALF, as_cell(value_2, bound, value_cache.dtype.element_ty), mask=is_value)


@triton.jit
def _scaled(x, scale, query_norm, key_norm, columns, is_query, HALF: tl.constexpr, kind: tl.constexpr):
    """One half of a head, normalized."""
    of_query = tl.load(query_norm + columns, mask=columns < HALF, other=0.0).to(tl.float32)
    of_key = tl.load(key_norm + columns, mask=columns < HALF, other=0.0).to(tl.float32)
    weight = tl.where(is_query, of_query[None, :], of_key[None, :])
    return ((x * scale).to(kind).to(tl.float32) * weight).to(kind).to(tl.float32)


@triton.jit
def _turned(x, other, cosine, sine, is_used, kind: tl.constexpr):
    """One half of a head, rotated: `other` is what the other half gives to it."""
    along = x * tl.load(cosine, mask=is_used, other=0.0).to(tl.float32)
    across = other * tl.load(sine, mask=is_used, other=0.0).to(tl.float32)
    return (along.to(kind).to(tl.float32) + across.to(kind).to(tl.float32)).to(kind).to(tl.float32)


@triton.jit
def gate(both, output, num_rows, SIZE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """Grid [N by ROWS, SIZE by WIDTH]."""
    kind: tl.constexpr = both.dtype.element_ty
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_used = (rows < num_rows)[:, None] & (columns < SIZE)[None, :]
    source = both + (rows.to(tl.int64) * (2 * SIZE))[:, None] + columns[None, :]
    x = tl.load(source, mask=is_used, other=0.0).to(tl.float32)
    up = tl.load(source + SIZE, mask=is_used, other=0.0).to(tl.float32)
    activated = (x / (1.0 + tl.exp(-x))).to(kind).to(tl.float32)
    place = output + (rows.to(tl.int64) * SIZE)[:, None] + columns[None, :]
    tl.store(place, (activated * up).to(kind), mask=is_used)
