"""Attention in machine code on a CPU: the operator of `native/ragged_attention.cpp`.

Forward passes that are compiled ahead of time call it without Python: it plugs into transformers' `AttentionInterface`
under the name NATIVE_ATTENTION. Other passes reach it as they reach every backend.
"""

from __future__ import annotations

import itertools
import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.engine import native
from outrider.engine.attention.interface import AttentionBackend, BatchTensors, LayerCall, ModelFacts
from outrider.engine.attention.operator import register
from outrider.engine.batch import PackedBatch
from outrider.engine.kv_cache.tensors import KVCache

NATIVE_ATTENTION = "outrider-native"
"""Name under which the attention is registered with transformers."""

_numbers = itertools.count()


class NativeStep(NamedTuple):
    """A batch as the operator reads it."""

    description: Tensor

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: LayerCall) -> Tensor:
        """`AttentionStep.attend`."""
        return _attend(query, key, value, self.description, layer)


class NativeAttention(AttentionBackend):
    """`native`: each session over its own cells, without masks, the same bits in whatever batch."""

    name = "native"

    def __init__(self, facts: ModelFacts, cache: KVCache) -> None:
        """See `AttentionBackend`. The operators are loaded."""
        super().__init__(facts, cache)
        self.number = next(_numbers)
        """What the operators know its KV cache by."""
        windows = [layer.window or 0 for layer in facts.layers]
        torch.ops.outrider_native.set_caches(self.number, cache.keys, cache.values, windows, cache.block_cells)
        weakref.finalize(self, torch.ops.outrider_native.forget_caches, self.number)

    @classmethod
    def problem(cls, facts: ModelFacts) -> str:
        """See `AttentionBackend.problem`."""
        if facts.device.type != "cpu":
            return "it computes on processors; use --device cpu"
        if facts.kv_cache_dtype is not None:
            return "it reads cells of the model's own type alone; use torch or tree, or --kv-cache-dtype auto"
        return "" if native.available(facts.device) else "the native operators are not built"

    @classmethod
    def block_size(cls, facts: ModelFacts) -> int:
        """A power of two, and as many as one instruction reads."""
        return 16

    def prepare(self, batch: PackedBatch, tensors: BatchTensors) -> NativeStep:
        """See `AttentionBackend.prepare`."""
        return NativeStep(self.described(batch))

    def described(self, batch: PackedBatch) -> Tensor:
        """The batch as the operator reads it, for the KV cache of this backend."""
        return described(self.number, batch)


def described(number: int, batch: PackedBatch) -> Tensor:
    """The batch as one list of integers, int64, for the KV cache with that number. Its reader is `Batch` in the
    source."""
    numbers = [number, len(batch.sessions), *batch.write_cells, *batch.limits, *batch.path_offsets]
    for session in batch.sessions:
        numbers += session[:3]
    numbers += batch.path_cells
    numbers += batch.blocks
    return native.integers(numbers)


def _attend(query: Tensor, key: Tensor, value: Tensor, description: Tensor, layer: LayerCall) -> Tensor:
    return torch.ops.outrider_native.ragged_attention(query, key, value, description, *layer)


register(NATIVE_ATTENTION, _attend)
