"""Ragged tree attention: the tokens of all sessions on one packed axis, each session over its own slot's cells.

It plugs into transformers' `AttentionInterface` under the name ATTENTION, so any decoder whose layers call that
interface runs on it unchanged. The whole attention is one opaque operator, so a model compiles around it without a
graph break.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION = "outrider"
"""Name under which the attention is registered with transformers."""

NO_MASK = -1
"""In a span: every query of the session sees every cell of it, so it has no mask."""

SCATTERED = -1
"""In a span: the session's blocks do not stand in a row in the caches."""

MASK_ALIGNMENT = 16
"""Elements that the rows of a mask, and so the masks of a batch, begin at multiples of. CUDA's memory-efficient kernel
reads masks 16 bytes at a time, from wherever they begin."""


def mask_stride(num_cells: int) -> int:
    """Elements from one row of a mask over `num_cells` cells to the next."""
    return -(-num_cells // MASK_ALIGNMENT) * MASK_ALIGNMENT


class Attending(Protocol):
    """A batch that layers attend over."""

    def attend(
        self,
        query: Tensor,  # [H, N, key_size]
        key: Tensor,  # [num_kv_heads, N, key_size]
        value: Tensor,  # [num_kv_heads, N, value_size]
        layer: int,
        scale: float,
        softcap: float,
        sinks: Tensor | None,  # [H]
    ) -> Tensor:
        """Writes the new keys and values to their cells, then attends: [N, H, value_size].

        `softcap` > 0 bounds the scores to (-softcap, softcap) (Gemma 2, arXiv 2408.00118, section 2); `sinks` adds one
        virtual key of that score and zero value to each head.
        """
        ...


_present: dict[int, Attending] = {}


@contextmanager
def stepping(engine: int, batch: Attending) -> Iterator[None]:
    """For the duration of one forward pass, the layers of the engine with number `engine` work on `batch`."""
    _present[engine] = batch
    try:
        yield
    finally:
        del _present[engine]


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
    return _present[engine].attend(query, key, value, layer, scale, softcap, sinks)


_ragged_attention = torch.library.custom_op("outrider::ragged_attention", _attend, mutates_args=())
"""`Attending.attend` as one opaque operator for graph compilers, whichever batch it is.

It looks the batch up by the engine's number. Were the caches its arguments, a compiler would have to assume that
anybody may see them change, and would copy them around every layer; see docs/decisions/0008-opaque-attention.md.
"""


@_ragged_attention.register_fake
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


class RaggedBatch(NamedTuple):
    """What a layer needs beside its own queries, keys and values. N tokens, S sessions, L layers.

    A session's cells lie in its blocks, which are read where they are if they stand in a row in the caches. Tokens that
    pad the batch to its static size belong to no session; they write to the scratch cell and read nothing.
    """

    key_caches: tuple[Tensor, ...]
    """L x [num_cells, num_kv_heads, key_size]; a whole number of blocks"""
    value_caches: tuple[Tensor, ...]
    """L x [num_cells, num_kv_heads, value_size]"""
    masks: tuple[Tensor | None, ...]
    """L x [sum of queries x mask_stride(cells) over the sessions that need a mask], additive, 0 or -inf, -inf beyond
    the cells. Layers with the same sliding window share one tensor; None where no session needs one."""
    write_cells: Tensor
    """[N] int64: the cell that takes each token's key and value."""
    spans: Tensor
    """[S, 6] int64, on the CPU: first and last + 1 of the session's queries, index in `blocks` of its first block,
    number of its cells, where they begin in the caches or SCATTERED, offset of its mask or NO_MASK."""
    blocks: Tensor
    """[B] int64: the blocks of all sessions."""
    block_cells: int
    """Cells of one block."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layer: int,
        scale: float,
        softcap: float,
        sinks: Tensor | None,
    ) -> Tensor:
        """`Attending.attend`, session by session."""
        key_cache, value_cache, mask = self.key_caches[layer], self.value_caches[layer], self.masks[layer]
        write(key_cache, value_cache, self.write_cells, key, value)
        num_heads, num_tokens, _ = query.shape
        output = query.new_zeros(num_tokens, num_heads, value.shape[-1])
        for first_query, end_query, first_block, num_cells, first_cell, mask_offset in self.spans.tolist():
            queries = query[:, first_query:end_query]  # [H, Q, key_size]
            if first_cell == SCATTERED:
                num_blocks = -(-num_cells // self.block_cells)
                blocks = self.blocks[first_block : first_block + num_blocks]
                keys, values = self._gathered(key_cache, blocks), self._gathered(value_cache, blocks)
                first_cell = 0
            else:
                keys, values = key_cache, value_cache
            keys = keys[first_cell : first_cell + num_cells].transpose(0, 1)  # [num_kv_heads, C, key_size]
            values = values[first_cell : first_cell + num_cells].transpose(0, 1)
            visible = None
            if mask is not None and mask_offset != NO_MASK:
                num_queries = end_query - first_query
                stride = mask_stride(num_cells)
                rows = mask[mask_offset : mask_offset + num_queries * stride].view(num_queries, stride)
                visible = rows[:, :num_cells]  # [Q, C]
            if softcap or sinks is not None:
                attended = capped_attention(queries, keys, values, visible, scale, softcap, sinks)
            else:
                attended = scaled_dot_product_attention(
                    queries[None], keys[None], values[None], visible, scale=scale, enable_gqa=keys.shape[0] != num_heads
                )[0]
            output[first_query:end_query] = attended.transpose(0, 1)
        return output

    def _gathered(self, cache: Tensor, blocks: Tensor) -> Tensor:
        """The cells of `blocks` in a row."""
        return cache.unflatten(0, (-1, self.block_cells)).index_select(0, blocks).flatten(0, 1)


def capped_attention(
    queries: Tensor,  # [H, Q, key_size]
    keys: Tensor,  # [num_kv_heads, C, key_size]
    values: Tensor,  # [num_kv_heads, C, value_size]
    mask: Tensor | None,  # [Q, C]
    scale: float,
    softcap: float,
    sinks: Tensor | None,  # [H]
) -> Tensor:
    """Attention by explicit products, for what no kernel knows: [H, Q, value_size]."""
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


def write(key_cache: Tensor, value_cache: Tensor, cells: Tensor, key: Tensor, value: Tensor) -> None:
    """Puts each token's key and value into its cell."""
    key_cache.index_copy_(0, cells, key.transpose(0, 1))
    value_cache.index_copy_(0, cells, value.transpose(0, 1))


def register(name: str, operator: Callable[..., Tensor]) -> None:
    """Makes `operator` the attention of transformers' models whose implementation is called `name`.

    It takes and returns what `Attending.attend` does, and before the layer's index whatever tells it the batch: what
    the model was called with as `ragged_batch`. No mask is registered by that name: transformers then builds none, nor
    waits for the device to see where packed texts begin.
    """

    def attention(
        module: nn.Module,
        query: Tensor,  # [1, H, N, key_size]
        key: Tensor,  # [1, num_kv_heads, N, key_size]
        value: Tensor,  # [1, num_kv_heads, N, value_size]
        attention_mask: Tensor | None,
        *,
        ragged_batch: int | Tensor,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        scale = 1.0 / math.sqrt(query.shape[-1]) if scaling is None else scaling
        output = operator(query[0], key[0], value[0], ragged_batch, module.layer_idx, scale, softcap or 0.0, s_aux)
        return output[None], None

    AttentionInterface.register(name, attention)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    engine: int,
    layer: int,
    scale: float,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """`Attending.attend` of the batch that the engine with that number steps over; one operator for compilers."""
    operator = _ragged_attention if torch.compiler.is_compiling() else _attend
    return operator(query, key, value, engine, layer, scale, softcap, sinks)


register(ATTENTION, attend)
