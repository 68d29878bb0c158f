"""Attention in static shapes, so that a CUDA graph can replay it: what describes a batch lies in one buffer on the
device, at places that never change.

Everything as long as the context, that is which cell of the KV cache a column stands for and which columns a token
sees, is worked out on the device from the numbers of the sessions' blocks; see `static_batch.py` for the columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from outrider.engine.attention.bounded import BOUNDED_ATTENTION
from outrider.engine.attention.by_session import TorchAttention, capped_attention, write
from outrider.engine.attention.interface import (
    NARROW_CELLS,
    AttentionBackend,
    AttentionStep,
    BatchTensors,
    LayerCall,
    ModelFacts,
)
from outrider.engine.attention.paged import PagedAttention
from outrider.engine.attention.static_batch import (
    COLUMNS_MAX,
    END_COLUMNS,
    FIRST_BLOCKS,
    FIRST_COLUMNS,
    HEAD,
    POSITIONS,
    ROW,
    ROWS,
    STARTS,
    TOKEN_IDS,
    WRITE_CELLS,
    StaticSize,
    column_sizes,
    static_numbers,
    static_size,
)
from outrider.engine.batch import COMPILED_SIZES, COMPILED_TOKENS_MAX, PackedBatch
from outrider.engine.kv_cache.tensors import KVCache
from outrider.engine.transfer import staged


@dataclass(slots=True)
class StaticBatch:
    """What a forward pass over N tokens and C columns needs beside the weights. L layers."""

    token_ids: Tensor
    """[1, N] int64"""
    positions: Tensor
    """[1, N] int64"""
    rows: Tensor
    """[N] int64: the tokens whose logits are wanted, filled up with token 0."""
    write_cells: Tensor
    """[N] int64: the cell that takes each token's key and value."""
    cells: Tensor
    """[C] int64: the cell that each column stands for."""
    key_caches: tuple[Tensor, ...]
    """L x [num_cells, num_kv_heads, key_size]"""
    value_caches: tuple[Tensor, ...]
    """L x [num_cells, num_kv_heads, value_size]"""
    windows: tuple[int | None, ...]
    """L: each layer's sliding window in tokens."""
    masks: dict[int | None, Tensor]
    """By window: [N, C], additive, 0 or -inf."""
    _repeated: dict[tuple[int | None, int], Tensor] = field(default_factory=dict[tuple[int | None, int], Tensor])

    def mask(self, layer: int, num_repeats: int) -> Tensor:
        """The layer's mask, `num_repeats` times one below the other: [num_repeats x N, C]. Made once for all layers."""
        key = self.windows[layer], num_repeats
        if key not in self._repeated:
            self._repeated[key] = self.masks[key[0]].repeat(num_repeats, 1)
        return self._repeated[key]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, layer: LayerCall) -> Tensor:
        """`AttentionStep.attend`, for all sessions at once.

        Heads that share keys become further queries of one head, so keys and values are neither repeated nor read again
        for each, and every kernel that takes a mask takes them.
        """
        key_cache, value_cache = self.key_caches[layer.index], self.value_caches[layer.index]
        write(key_cache, value_cache, self.write_cells, key, value)
        keys = key_cache.index_select(0, self.cells).transpose(0, 1)  # [num_kv_heads, C, key_size]
        values = value_cache.index_select(0, self.cells).transpose(0, 1)
        num_heads, num_tokens, key_size = query.shape
        num_kv_heads = keys.shape[0]
        if layer.softcap or layer.sinks is not None:
            attended = capped_attention(query, keys, values, self.mask(layer.index, 1), layer)
        else:
            num_shared = num_heads // num_kv_heads
            queries = query.reshape(num_kv_heads, num_shared * num_tokens, key_size)
            mask = self.mask(layer.index, num_shared)
            attended = scaled_dot_product_attention(queries[None], keys[None], values[None], mask, scale=layer.scale)
        return attended.reshape(num_heads, num_tokens, -1).transpose(0, 1).contiguous()


class StaticBuffer:
    """The place on the device where static batches are described, and the caches that they are about."""

    def __init__(
        self,
        key_caches: tuple[Tensor, ...],
        value_caches: tuple[Tensor, ...],
        windows: Sequence[int | None],
        block_cells: int,
    ) -> None:
        """The caches are a whole number of blocks of `block_cells` cells; no session holds the last one."""
        self._caches = key_caches, value_caches
        self._windows = tuple(windows)
        self._num_cells, self._block_cells = len(key_caches[0]), block_cells
        self._device, self._dtype = key_caches[0].device, key_caches[0].dtype
        largest = StaticSize(COMPILED_TOKENS_MAX, COLUMNS_MAX).num_numbers(block_cells)
        with torch.inference_mode():  # like what other steps feed the model: a compiler tells the two kinds apart
            self._numbers = torch.zeros(largest, dtype=torch.int64, device=self._device)

    def load(self, batch: PackedBatch, size: StaticSize) -> None:
        """Pads `batch` and queues the one copy that brings it to the device; the host waits for nothing."""
        described = static_numbers(batch, size, self._num_cells, self._block_cells)
        numbers = staged(torch.frombuffer(described, dtype=torch.int64), self._device)
        self._numbers[: len(numbers)].copy_(numbers, non_blocking=True)

    def read(self, size: StaticSize) -> StaticBatch:
        """Reads the batch of `size` that was loaded last, by operations on the device alone: they can be captured."""
        num_tokens, num_columns = size
        lengths = [HEAD, size.num_path_cells, size.num_path_cells, size.num_blocks(self._block_cells)]
        head, path_columns, ages, blocks = self._numbers[: sum(lengths)].split(lengths)
        head = head.view(8, ROW)
        columns = torch.arange(num_columns, device=self._device)
        session = torch.searchsorted(head[STARTS], columns, right=True) - 1
        own_cells = columns - head[STARTS].index_select(0, session)
        places = head[FIRST_BLOCKS].index_select(0, session) + own_cells // self._block_cells
        places = places.clamp_max(len(blocks) - 1)  # beyond the sessions' columns all are the scratch block
        cells = blocks.index_select(0, places) * self._block_cells + own_cells % self._block_cells
        firsts, ends = head[FIRST_COLUMNS, :num_tokens, None], head[END_COLUMNS, :num_tokens, None]
        positions = head[POSITIONS, :num_tokens]
        masks: dict[int | None, Tensor] = {}
        for window in dict.fromkeys(self._windows):
            oldest = firsts if window is None else torch.maximum(firsts, firsts + positions[:, None] - window + 1)
            visible = (columns >= oldest) & (columns < ends)  # [N, C]
            in_window = torch.ones_like(ages, dtype=torch.bool) if window is None else ages < window
            visible.view(-1).scatter_(0, path_columns, in_window)
            mask = torch.zeros(visible.shape, dtype=self._dtype, device=self._device)
            masks[window] = mask.masked_fill_(~visible, float("-inf"))
        key_caches, value_caches = self._caches
        return StaticBatch(
            token_ids=head[TOKEN_IDS, :num_tokens][None],
            positions=positions[None],
            rows=head[ROWS, :num_tokens],
            write_cells=head[WRITE_CELLS, :num_tokens],
            cells=cells,
            key_caches=key_caches,
            value_caches=value_caches,
            windows=self._windows,
            masks=masks,
        )


class StaticAttention(AttentionBackend):
    """`static`: small steps in static shapes, which are captured; larger ones by blocks or session by session."""

    name = "static"
    implementation = BOUNDED_ATTENTION
    buckets: ClassVar[Sequence[int]] = COMPILED_SIZES[::-1]

    def __init__(self, facts: ModelFacts, cache: KVCache) -> None:
        """See `AttentionBackend`."""
        super().__init__(facts, cache)
        self._large = _large(facts)(facts, cache)
        windows = [layer.window for layer in facts.layers]
        self._buffer = StaticBuffer(cache.keys, cache.values, windows, cache.block_cells)

    @classmethod
    def problem(cls, facts: ModelFacts) -> str:
        """See `AttentionBackend.problem`."""
        if facts.kv_cache_dtype is not None:
            return NARROW_CELLS
        return "" if facts.captures else "its steps are CUDA graphs; it needs --device cuda and --compile auto or on"

    @classmethod
    def block_size(cls, facts: ModelFacts) -> int:
        """That of larger steps."""
        return _large(facts).block_size(facts)

    def prepare(self, batch: PackedBatch, tensors: BatchTensors) -> AttentionStep:
        """What does not come in a static size is attended as without them."""
        return self._large.prepare(batch, tensors)

    def sizes(self, num_tokens: int) -> list[StaticSize]:
        """The longest contexts first: the shorter ones use their memory."""
        columns = column_sizes(self._cache.scratch_cell)
        return [StaticSize(num_tokens, num_columns) for num_columns in reversed(columns)]

    def size_of(self, batch: PackedBatch) -> StaticSize | None:
        """See `Capturable`."""
        return static_size(batch, batch.num_tokens_min)

    def load(self, batch: PackedBatch, size: StaticSize) -> None:
        """See `Capturable`."""
        self._buffer.load(batch, size)

    def read(self, size: StaticSize) -> StaticBatch:
        """See `Capturable`."""
        return self._buffer.read(size)


def _large(facts: ModelFacts) -> type[AttentionBackend]:
    return TorchAttention if PagedAttention.problem(facts) else PagedAttention
