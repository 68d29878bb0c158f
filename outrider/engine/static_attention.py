"""Ragged tree attention over static shapes: all that tells one step from the next is read on the device.

So a forward pass can be captured once and replayed. It plugs into transformers' `AttentionInterface` under the name
STATIC_ATTENTION. A model on it also takes batches of other shapes, by `outrider.engine.attention`, and the operator is
the same one for a compiler: what was compiled for a number of tokens serves both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from outrider.engine.attention import _capped_attention, ragged_attention
from outrider.engine.static_batch import StaticBatch

STATIC_ATTENTION = "outrider-static"
"""Name under which the attention is registered with transformers."""

CELL_MAGNITUDE_MAX = 1e15
"""Largest absolute value that a cell takes. Sessions share a step's products: a weight of 0 times a neighbour's value
must be 0, and a neighbour's score finite before -inf is added to it. 1e15 times the largest queries that models have, a
few thousand, over a few hundred dimensions is far below the largest float32, 3e38."""

_present: dict[int, StaticBatch] = {}


@contextmanager
def static_stepping(engine: int, batch: StaticBatch) -> Iterator[None]:
    """For the duration of one forward pass, the layers of the engine with number `engine` work on `batch`."""
    _present[engine] = batch
    try:
        yield
    finally:
        del _present[engine]


def attend_static(
    query: Tensor,  # [H, N, key_size]
    key: Tensor,  # [num_kv_heads, N, key_size]
    value: Tensor,  # [num_kv_heads, N, value_size]
    batch: StaticBatch,
    layer: int,
    scale: float,
    softcap: float,
    sinks: Tensor | None,  # [H]
) -> Tensor:
    """What `attend` computes, for all sessions at once: [N, H, value_size].

    Heads that share keys become further queries of one head, so keys and values are neither repeated nor read again
    for each, and every kernel that takes a mask takes them.
    """
    batch.key_caches[layer].index_copy_(0, batch.write_cells, key.transpose(0, 1))
    batch.value_caches[layer].index_copy_(0, batch.write_cells, value.transpose(0, 1))
    keys = batch.key_caches[layer].index_select(0, batch.cells).transpose(0, 1)  # [num_kv_heads, C, key_size]
    values = batch.value_caches[layer].index_select(0, batch.cells).transpose(0, 1)
    num_heads, num_tokens, key_size = query.shape
    num_kv_heads = keys.shape[0]
    if softcap or sinks is not None:
        attended = _capped_attention(query, keys, values, batch.mask(layer, 1), scale, softcap, sinks)
    else:
        num_shared = num_heads // num_kv_heads
        queries = query.reshape(num_kv_heads, num_shared * num_tokens, key_size)
        mask = batch.mask(layer, num_shared)
        attended = scaled_dot_product_attention(queries[None], keys[None], values[None], mask, scale=scale)
    return attended.reshape(num_heads, num_tokens, -1).transpose(0, 1).contiguous()


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    engine: int,
    layer: int,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    batch = _present.get(engine)
    if batch is None:
        return ragged_attention(query, key, value, engine, layer, scale, softcap, sinks)
    return attend_static(query, key, value, batch, layer, scale, softcap, sinks)


_static_attention = torch.library.custom_op("outrider::static_attention", _attend, mutates_args=())
"""`_attend` as one opaque operator for graph compilers; why opaque: docs/decisions/0008-opaque-attention.md."""


@_static_attention.register_fake
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


def _bounded(content: Tensor) -> Tensor:
    """What a cell may take of `content`: NaN as 0, and nothing beyond CELL_MAGNITUDE_MAX."""
    largest = min(CELL_MAGNITUDE_MAX, torch.finfo(content.dtype).max)
    return content.nan_to_num(0.0).clamp(-largest, largest)


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
    attend = _static_attention if torch.compiler.is_compiling() else _attend
    keys, values = _bounded(key[0]), _bounded(value[0])
    output = attend(query[0], keys, values, ragged_engine, layer, scale, softcap or 0.0, s_aux)
    return output[None], None


AttentionInterface.register(STATIC_ATTENTION, _attention)
