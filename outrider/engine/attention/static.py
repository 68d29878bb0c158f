"""A packed batch in static shapes: what describes it lies in one buffer on the device, at places that never change.

Sessions stand side by side along one axis of *columns*: the first session's cells, then the second's, and so on. A
token sees columns of its own session alone. Everything as long as the context, that is which cell of the caches a
column stands for and which columns a token sees, is worked out on the device from the numbers of the sessions' blocks.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from outrider.engine.attention.ragged import capped_attention, write
from outrider.engine.batch import PackedBatch
from outrider.engine.compile.just_in_time import COMPILED_TOKENS_MAX, bucket
from outrider.engine.transfer import staged

COLUMNS_MIN = 256
"""Fewest columns of a static batch. Fewer would save nothing: the kernels of so short a context take as long as their
launch."""

COLUMNS_MAX = 4096
"""Most columns of a static batch. Every token's attention goes over all sessions' columns, so its work grows with
sessions times context. An estimate, not measured: beyond this, kernels that read each session's own cells alone cost
less, though the host queues them one by one."""

PATH_CELLS_PER_TOKEN = 64
"""Room for paths, in cells for each token on the average: sixteen tokens at a depth of 64, or a chain of 44 at once."""

_ROW = 32
"""Integers of one row of the buffer; a multiple of 16 bytes, which kernels want their inputs to begin at, and more than
COMPILED_TOKENS_MAX, so that a row of session numbers has its end mark."""
_TOKEN_IDS, _POSITIONS, _WRITE_CELLS, _ROWS, _FIRST_COLUMNS, _END_COLUMNS, _STARTS, _FIRST_BLOCKS = range(8)
_HEAD = 8 * _ROW


class StaticSize(NamedTuple):
    """The shape of a static batch. Each has a graph of its own."""

    num_tokens: int
    num_columns: int

    @property
    def num_path_cells(self) -> int:
        """Room for the cells of all tokens' paths."""
        return self.num_tokens * PATH_CELLS_PER_TOKEN

    def num_blocks(self, block_cells: int) -> int:
        """Room for the numbers of all sessions' blocks, and for the one that columns beyond them stand for.

        Of each session the last block may be in part beyond its columns, and a session has a token at least.
        """
        return self.num_columns // block_cells + self.num_tokens + 1

    def num_numbers(self, block_cells: int) -> int:
        """Integers that describe a batch of this size."""
        return _HEAD + 2 * self.num_path_cells + self.num_blocks(block_cells)


def column_sizes(num_cells: int) -> tuple[int, ...]:
    """The numbers of columns that batches over caches of `num_cells` cells have, in rising order.

    Sessions that share blocks may have more columns together than there are cells.
    """
    largest = min(max(bucket(num_cells), COLUMNS_MIN), COLUMNS_MAX)
    first, last = COLUMNS_MIN.bit_length(), largest.bit_length()
    return tuple(1 << power - 1 for power in range(first, last + 1))


def static_size(batch: PackedBatch, num_tokens: int) -> StaticSize | None:
    """The smallest static size that holds `batch` padded to at least `num_tokens` tokens; None if there is none."""
    if not batch.token_ids:
        return None
    size = bucket(max(num_tokens, len(batch.token_ids)))
    num_columns = max(bucket(sum(session.num_cells for session in batch.sessions)), COLUMNS_MIN)
    has_room = len(batch.path_cells) <= size * PATH_CELLS_PER_TOKEN and len(batch.rows) <= size
    if size > COMPILED_TOKENS_MAX or num_columns > COLUMNS_MAX or not has_room:
        return None
    return StaticSize(size, num_columns)


def static_numbers(batch: PackedBatch, size: StaticSize, num_cells: int, block_cells: int) -> array[int]:
    """Pads `batch` to `size` and describes it by integers, which `read` reads on the device.

    The caches have `num_cells` cells, of which the last takes what padding writes. Padding tokens see column 0,
    whatever it holds: a token that sees nothing would compute NaN.
    """
    batch.pad(size.num_tokens, num_cells - 1)
    starts: list[int] = []
    first_blocks: list[int] = []
    blocks: list[int] = []
    firsts = [0] * size.num_tokens
    ends = [1] * size.num_tokens
    path_columns: list[int] = []
    ages: list[int] = []
    column = 0
    for session in batch.sessions:
        starts.append(column)
        first_blocks.append(len(blocks))
        num_blocks = -(-session.num_cells // block_cells)
        blocks += batch.blocks[session.first_block : session.first_block + num_blocks]
        for token in range(session.first_token, session.end_token):
            firsts[token], ends[token] = column, column + batch.limits[token]
            path = batch.path_cells[batch.path_offsets[token] : batch.path_offsets[token + 1]]
            row_start = token * size.num_columns + column
            path_columns += [row_start + cell for cell in path]
            ages += range(len(path) - 1, -1, -1)
        column += session.num_cells
    scratch_block = num_cells // block_cells - 1
    starts += [column] * (_ROW - len(starts))
    first_blocks += [len(blocks)] * (_ROW - len(first_blocks))
    blocks += [scratch_block] * (size.num_blocks(block_cells) - len(blocks))
    num_missing = size.num_path_cells - len(path_columns)
    own_column = batch.path_cells[batch.path_offsets[1] - 1] if batch.path_offsets[1] else ends[0] - 1
    numbers = array("q")
    for row in (batch.token_ids, batch.positions, batch.write_cells, batch.rows, firsts, ends, starts, first_blocks):
        numbers.extend(row)
        numbers.extend([0] * (_ROW - len(row)))
    numbers.extend(path_columns + [own_column] * num_missing)  # of token 0, which sees it anyway
    numbers.extend(ages + [0] * num_missing)
    numbers.extend(blocks)
    return numbers


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
        """`Attending.attend`, for all sessions at once.

        Heads that share keys become further queries of one head, so keys and values are neither repeated nor read again
        for each, and every kernel that takes a mask takes them.
        """
        key_cache, value_cache = self.key_caches[layer], self.value_caches[layer]
        write(key_cache, value_cache, self.write_cells, key, value)
        keys = key_cache.index_select(0, self.cells).transpose(0, 1)  # [num_kv_heads, C, key_size]
        values = value_cache.index_select(0, self.cells).transpose(0, 1)
        num_heads, num_tokens, key_size = query.shape
        num_kv_heads = keys.shape[0]
        if softcap or sinks is not None:
            attended = capped_attention(query, keys, values, self.mask(layer, 1), scale, softcap, sinks)
        else:
            num_shared = num_heads // num_kv_heads
            queries = query.reshape(num_kv_heads, num_shared * num_tokens, key_size)
            mask = self.mask(layer, num_shared)
            attended = scaled_dot_product_attention(queries[None], keys[None], values[None], mask, scale=scale)
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
        lengths = [_HEAD, size.num_path_cells, size.num_path_cells, size.num_blocks(self._block_cells)]
        head, path_columns, ages, blocks = self._numbers[: sum(lengths)].split(lengths)
        head = head.view(8, _ROW)
        columns = torch.arange(num_columns, device=self._device)
        session = torch.searchsorted(head[_STARTS], columns, right=True) - 1
        own_cells = columns - head[_STARTS].index_select(0, session)
        places = head[_FIRST_BLOCKS].index_select(0, session) + own_cells // self._block_cells
        places = places.clamp_max(len(blocks) - 1)  # beyond the sessions' columns all are the scratch block
        cells = blocks.index_select(0, places) * self._block_cells + own_cells % self._block_cells
        firsts, ends = head[_FIRST_COLUMNS, :num_tokens, None], head[_END_COLUMNS, :num_tokens, None]
        positions = head[_POSITIONS, :num_tokens]
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
            token_ids=head[_TOKEN_IDS, :num_tokens][None],
            positions=positions[None],
            rows=head[_ROWS, :num_tokens],
            write_cells=head[_WRITE_CELLS, :num_tokens],
            cells=cells,
            key_caches=key_caches,
            value_caches=value_caches,
            windows=self._windows,
            masks=masks,
        )
