"""Ragged tree attention: the tokens of all sessions on one packed axis, each session over its own slot's cells.

It plugs into transformers' `AttentionInterface` under the name ATTENTION, so any decoder whose layers call that
interface runs on it unchanged. The whole attention is one opaque operator, so a model compiles around it without a
graph break.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION = "outrider"
"""Name under which the attention is registered with transformers."""

NO_MASK = -1
"""In a span: every query of the session sees every cell of it, so it has no mask."""

MASK_ALIGNMENT = 16
"""Elements that the rows of a mask, and so the masks of a batch, begin at multiples of. CUDA's memory-efficient kernel
reads masks 16 bytes at a time, from wherever they begin."""


def mask_stride(num_cells: int) -> int:
    """Elements from one row of a mask over `num_cells` cells to the next."""
    return -(-num_cells // MASK_ALIGNMENT) * MASK_ALIGNMENT


class RaggedBatch(NamedTuple):
    """What a layer needs beside its own queries, keys and values. N tokens, S sessions, L layers.

    A session's cells are one contiguous range of each layer's cache. Tokens that pad the batch to its static size
    belong to no session; they write to the scratch cell and read nothing.
    """

    key_caches: tuple[Tensor, ...]
    """L x [num_cells, num_kv_heads, key_size]"""
    value_caches: tuple[Tensor, ...]
    """L x [num_cells, num_kv_heads, value_size]"""
    masks: tuple[Tensor, ...]
    """L x [sum of queries x mask_stride(cells) over the sessions that need a mask], additive, 0 or -inf, -inf beyond
    the cells. Layers with the same sliding window share one tensor."""
    write_cells: Tensor
    """[N] int64: the cell that takes each token's key and value."""
    spans: Tensor
    """[S, 5] int64, on the CPU: first and last + 1 of the session's queries, first and last + 1 of its cells, offset of
    its mask or NO_MASK."""


_present: dict[int, RaggedBatch] = {}


@contextmanager
def stepping(engine: int, batch: RaggedBatch) -> Iterator[None]:
    """For the duration of one forward pass, the layers of the engine with number `engine` work on `batch`."""
    _present[engine] = batch
    try:
        yield
    finally:
        del _present[engine]


@torch.library.custom_op("outrider::ragged_attention", mutates_args=())
def ragged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    engine: int,
    layer: int,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """`attend` as one opaque operator for graph compilers.

    It looks the batch up by the engine's number. Were the caches its arguments, a compiler would have to assume that
    anybody may see them change, and would copy them around every layer; see docs/decisions/0008-opaque-attention.md.
    """
    return attend(query, key, value, _present[engine], layer, scale, softcap, sinks)


@ragged_attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    engine: int,
    layer: int,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    return query.new_empty(query.shape[1], query.shape[0], value.shape[-1])


def attend(
    query: Tensor,  # [H, N, key_size]
    key: Tensor,  # [num_kv_heads, N, key_size]
    value: Tensor,  # [num_kv_heads, N, value_size]
    batch: RaggedBatch,
    layer: int,
    scale: float,
    softcap: float,
    sinks: Tensor | None,  # [H]
) -> Tensor:
    """Writes the new keys and values to their cells, then attends session by session. Returns [N, H, value_size].

    `softcap` > 0 bounds the scores to (-softcap, softcap) (Gemma 2, arXiv 2408.00118, section 2); `sinks` adds one
    virtual key of that score and zero value to each head.
    """
    key_cache, value_cache, mask = batch.key_caches[layer], batch.value_caches[layer], batch.masks[layer]
    key_cache.index_copy_(0, batch.write_cells, key.transpose(0, 1))
    value_cache.index_copy_(0, batch.write_cells, value.transpose(0, 1))
    num_heads, num_tokens, _ = query.shape
    output = query.new_zeros(num_tokens, num_heads, value.shape[-1])
    for first_query, end_query, first_cell, end_cell, mask_offset in batch.spans.tolist():
        queries = query[:, first_query:end_query]  # [H, Q, key_size]
        keys = key_cache[first_cell:end_cell].transpose(0, 1)  # [num_kv_heads, C, key_size]
        values = value_cache[first_cell:end_cell].transpose(0, 1)
        visible = None
        if mask_offset != NO_MASK:
            num_queries, num_cells = end_query - first_query, end_cell - first_cell
            stride = mask_stride(num_cells)
            rows = mask[mask_offset : mask_offset + num_queries * stride].view(num_queries, stride)
            visible = rows[:, :num_cells]  # [Q, C]
        if softcap or sinks is not None:
            attended = _capped_attention(queries, keys, values, visible, scale, softcap, sinks)
        else:
            attended = scaled_dot_product_attention(
                queries[None], keys[None], values[None], visible, scale=scale, enable_gqa=keys.shape[0] != num_heads
            )[0]
        output[first_query:end_query] = attended.transpose(0, 1)
    return output


def _capped_attention(
    queries: Tensor,  # [H, Q, key_size]
    keys: Tensor,  # [num_kv_heads, C, key_size]
    values: Tensor,  # [num_kv_heads, C, value_size]
    mask: Tensor | None,  # [Q, C]
    scale: float,
    softcap: float,
    sinks: Tensor | None,  # [H]
) -> Tensor:
    num_repeats = queries.shape[0] // keys.shape[0]
    keys = keys.repeat_interleave(num_repeats, 0)
    values = values.repeat_interleave(num_repeats, 0)
    scores = (queries @ keys.transpose(1, 2)) * scale  # [H, Q, C]
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        sink_scores = sinks.view(-1, 1, 1).expand(-1, scores.shape[1], 1).to(scores.dtype)
        scores = torch.cat([scores, sink_scores], dim=-1)
    weights = torch.softmax(scores.float(), dim=-1).to(values.dtype)
    return weights[..., : keys.shape[1]] @ values


def _attention(
    module: nn.Module,
    query: Tensor,  # [1, H, N, key_size]
    key: Tensor,  # [1, num_kv_heads, N, key_size]
    value: Tensor,  # [1, num_kv_heads, N, value_size]
    attention_mask: Tensor | None,
    *,
    ragged_engine: int,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    layer: int = module.layer_idx  # type: ignore[assignment]
    scale = 1.0 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    if torch.compiler.is_compiling():
        output = ragged_attention(query[0], key[0], value[0], ragged_engine, layer, scale, softcap or 0.0, s_aux)
    else:
        batch = _present[ragged_engine]
        output = attend(query[0], key[0], value[0], batch, layer, scale, softcap or 0.0, s_aux)
    return output[None], None


# No mask is registered by that name: transformers then builds none, nor waits for the device to see where packed texts
# begin.
AttentionInterface.register(ATTENTION, _attention)
