"""Attention session by session with torch's own kernels: on any device, for any layer, one loop on the host."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from outrider.engine.attention.interface import AttentionBackend, BatchTensors, LayerCall, ModelFacts
from outrider.engine.attention.masks import NO_MASK, SCATTERED, mask_stride, spans_and_masks
from outrider.engine.batch import PackedBatch
from outrider.engine.kv_cache.cells import movable, stored
from outrider.engine.transfer import queued


class SessionSteps(NamedTuple):
    """What the layers need beside their own queries, keys and values. N tokens, S sessions, L layers.

    A session's cells lie in its blocks, which are read where they are if they stand in a row in the KV cache. Tokens
    that pad the batch belong to no session; they write to the scratch cell and read nothing.
    """

    key_caches: tuple[Tensor, ...]
    """L x [num_cells, num_kv_heads, key_size]; a whole number of blocks"""
    value_caches: tuple[Tensor, ...]
    """L x [num_cells, num_kv_heads, value_size]"""
    masks: tuple[Tensor, ...]
    """L x [sum of queries x mask_stride(cells) over the sessions that need a mask], additive, 0 or -inf, -inf beyond
    the cells. Layers with the same sliding window share one tensor."""
    write_cells: Tensor
    """[N] int64: the cell that takes each token's key and value."""
    spans: Tensor
    """[S, 6] int64, on the CPU: first and last + 1 of the session's queries, index in `blocks` of its first block,
    number of its cells, where they begin in the caches or SCATTERED, offset of its mask or NO_MASK."""
    blocks: Tensor
    """[B] int64: the blocks of all sessions."""
    block_cells: int
    """Cells of one block."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: LayerCall) -> Tensor:
        """`AttentionStep.attend`."""
        index = layer.index
        key_cache, value_cache, mask = self.key_caches[index], self.value_caches[index], self.masks[index]
        _write(key_cache, value_cache, self.write_cells, key, value)
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
            own_keys, own_values = (
                each[first_cell : first_cell + num_cells].to(query.dtype) for each in (keys, values)
            )
            keys = own_keys.transpose(0, 1)  # [num_kv_heads, C, key_size]
            values = own_values.transpose(0, 1)
            visible = None
            if mask_offset != NO_MASK:
                num_queries = end_query - first_query
                stride = mask_stride(num_cells)
                rows = mask[mask_offset : mask_offset + num_queries * stride].view(num_queries, stride)
                visible = rows[:, :num_cells]  # [Q, C]
            if layer.softcap or layer.sinks is not None:
                attended = _capped_attention(queries, keys, values, visible, layer)
            else:
                enable_gqa = keys.shape[0] != num_heads
                attended = scaled_dot_product_attention(
                    queries[None], keys[None], values[None], visible, scale=layer.scale, enable_gqa=enable_gqa
                )[0]
            output[first_query:end_query] = attended.transpose(0, 1)
        return output

    def _gathered(self, cache: Tensor, blocks: Tensor) -> Tensor:
        """The cells of `blocks` in a row."""
        gathered = movable(cache).unflatten(0, (-1, self.block_cells)).index_select(0, blocks)
        return gathered.flatten(0, 1).view(cache.dtype)


class TorchAttention(AttentionBackend):
    """`torch`: session by session."""

    name = "torch"

    @classmethod
    def problem(cls, facts: ModelFacts) -> str:
        """None: torch has kernels for every device and layer."""
        return ""

    @classmethod
    def block_size(cls, facts: ModelFacts) -> int:
        """Small, as blocks are gathered cell by cell."""
        return 16

    def prepare(self, batch: PackedBatch, tensors: BatchTensors) -> SessionSteps:
        """See `AttentionBackend.prepare`."""
        facts, cache = self._facts, self._cache
        spans, visible = spans_and_masks(batch, tuple({layer.window for layer in facts.layers}))
        masks = {window: _additive(queued(part, facts.device), facts.dtype) for window, part in visible.items()}
        return SessionSteps(
            key_caches=cache.keys,
            value_caches=cache.values,
            masks=tuple(masks[layer.window] for layer in facts.layers),
            write_cells=tensors.write_cells,
            spans=spans,
            blocks=tensors.blocks,
            block_cells=cache.block_cells,
        )


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask that attention adds to its scores: 0 where `visible`, elsewhere -inf."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


def _capped_attention(
    queries: Tensor,  # [H, Q, key_size]
    keys: Tensor,  # [num_kv_heads, C, key_size]
    values: Tensor,  # [num_kv_heads, C, value_size]
    mask: Tensor | None,  # [Q, C]
    layer: LayerCall,
) -> Tensor:
    """Attention by explicit products, for what no kernel knows: [H, Q, value_size]."""
    num_repeats = queries.shape[0] // keys.shape[0]
    keys = keys.repeat_interleave(num_repeats, 0)
    values = values.repeat_interleave(num_repeats, 0)
    scores = (queries @ keys.transpose(1, 2)) * layer.scale  # [H, Q, C]
    if layer.softcap:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    if mask is not None:
        scores = scores + mask
    if layer.sinks is not None:
        sink_scores = layer.sinks.view(-1, 1, 1).expand(-1, scores.shape[1], 1).to(scores.dtype)
        scores = torch.cat([scores, sink_scores], dim=-1)
    weights = torch.softmax(scores.float(), dim=-1).to(values.dtype)
    return weights[..., : keys.shape[1]] @ values


def _write(key_cache: Tensor, value_cache: Tensor, cells: Tensor, key: Tensor, value: Tensor) -> None:
    """Puts each token's key and value into its cell."""
    for cache, content in ((key_cache, key), (value_cache, value)):
        movable(cache).index_copy_(0, cells, movable(stored(content.transpose(0, 1), cache.dtype)))
