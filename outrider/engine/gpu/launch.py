"""Launches of the kernels of `tree_attention.py`: two for each layer, whatever the batch, and two more to write."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import triton  # pyright: ignore[reportMissingImports]
from torch import Tensor

from outrider.engine.gpu import launcher, tree_attention
from outrider.engine.gpu.work_list import PAGE_CELLS, PART_OFFSETS, WRITE_CELLS, Layout

_kernels: Any = tree_attention
"""What Triton's decorator makes of them is told to no type checker."""

CELL_MAGNITUDE_MAX = 1e15
"""Largest absolute value that a cell takes: finite in every product with a query, and so nothing where it is masked."""

WIDTH_MIN = 16
"""Fewest rows and columns of a matrix instruction."""

_PROGRAMS_PER_PROCESSOR = 2
"""Programs that wait for memory in turn."""

_STAGES_MAX = 3

_NUM_WARPS = 8
"""Of a program of `attend`: with four, its registers do not suffice."""

_ROWS_MIN = 4
_ROW_NUMBERS_MAX = 4096
"""Fewest rows of a program that takes rows for itself, and most rows by numbers of a row, which its registers hold."""


class Machine(NamedTuple):
    """What a launch has to know of its device."""

    num_processors: int
    shared_bytes: int
    """Fast memory that one program may take."""


@cache
def machine(device: torch.device) -> Machine:
    """`device`; where it is none of CUDA, one that the interpreter plays."""
    if device.type != "cuda":
        return Machine(num_processors=1, shared_bytes=96 << 10)
    found = torch.cuda.get_device_properties(device)
    return Machine(found.multi_processor_count, found.shared_memory_per_block_optin)


class Tile(NamedTuple):
    """In what pieces a program of `attend` computes."""

    rows: int
    key_width: int
    value_width: int
    num_warps: int
    num_stages: int
    """How many pages are on their way to the processor at a time."""


def tile(num_rows: int, key_size: int, value_size: int, dtype: torch.dtype, shared_bytes: int) -> Tile | None:
    """For heads of these sizes; None if one page of theirs does not fit in shared memory."""
    rows, key_width, value_width = (
        max(triton.next_power_of_2(size), WIDTH_MIN) for size in (num_rows, key_size, value_size)
    )
    kept = rows * (key_width + PAGE_CELLS) * dtype.itemsize
    page = PAGE_CELLS * (key_width + value_width) * dtype.itemsize
    num_stages = min((shared_bytes - kept) // page, _STAGES_MAX)
    if num_stages < 1:
        return None
    return Tile(rows, key_width, value_width, _NUM_WARPS, num_stages)


class DeviceWork(NamedTuple):
    """A work list on the device."""

    layout: Layout
    numbers: Tensor
    """int32; longer than the list if it lies in a buffer."""
    num_parts: int
    """At least so many as it has."""
    tile_tokens: int

    def row(self, row: int) -> Tensor:
        """[N] int32: one of the rows that the list begins with."""
        first = row * self.layout.row
        return self.numbers[first : first + self.layout.num_tokens]

    def sights(self, window: int) -> Tensor:
        """Of the window with that index."""
        return self.numbers[self.layout.first_sight(window) :]


def write(content: Tensor, cache: Tensor, work: DeviceWork) -> None:
    """Puts each token's key or value, [num_kv_heads, N, size], into its cell."""
    num_kv_heads, num_tokens, size = content.shape
    num_rows = num_tokens * num_kv_heads
    rows = rows_of(num_rows, size, content.device)
    launcher.run(
        _kernels.write,
        (triton.cdiv(num_rows, rows),),
        content,
        cache,
        work.row(WRITE_CELLS),
        num_rows,
        *content.stride()[:2],
        min(CELL_MAGNITUDE_MAX, torch.finfo(cache.dtype).max),
        KV_HEADS=num_kv_heads,
        SIZE=size,
        WIDTH=triton.next_power_of_2(size),
        ROWS=rows,
    )


def rows_of(num_rows: int, size: int, device: torch.device) -> int:
    """How many rows of `size` numbers a program that takes each for itself has, so that all processors have work."""
    share = num_rows // (_PROGRAMS_PER_PROCESSOR * machine(device).num_processors)
    most = max(_ROW_NUMBERS_MAX // triton.next_power_of_2(size), 1)
    return min(max(triton.next_power_of_2(share), _ROWS_MIN), most)


class Scoring(NamedTuple):
    """How scores are made of products."""

    scale: float
    softcap: float
    sinks: Tensor | None


def attention(
    query: Tensor,  # [H, N, key_size]
    key_cache: Tensor,  # [num_cells, num_kv_heads, key_size]
    value_cache: Tensor,  # [num_cells, num_kv_heads, value_size]
    work: DeviceWork,
    window: int,
    scoring: Scoring,
) -> Tensor:
    """What each token of the work list gets, [N, H, value_size]. The layer's window has the index `window`."""
    num_heads, num_tokens, key_size = query.shape
    _, num_kv_heads, value_size = value_cache.shape
    group = num_heads // num_kv_heads
    device = machine(query.device)
    tiled = tile(work.tile_tokens * group, key_size, value_size, query.dtype, device.shared_bytes)
    assert tiled is not None
    num_sums = max(work.num_parts, 1) * num_heads
    sums = query.new_empty(num_sums, value_size, dtype=torch.float32)
    maxima, totals = query.new_empty(2, num_sums, dtype=torch.float32)
    sights = work.sights(window)
    output = query.new_empty(num_tokens, num_heads, value_size)
    num_programs = max(_PROGRAMS_PER_PROCESSOR * device.num_processors // num_kv_heads, 1)
    launcher.run(
        _kernels.attend,
        (num_programs, num_kv_heads),
        query,
        key_cache,
        value_cache,
        work.numbers,
        work.numbers[work.layout.first_item :],
        sights,
        sums,
        maxima,
        totals,
        *query.stride()[:2],
        scoring.scale,
        scoring.softcap,
        KV_HEADS=num_kv_heads,
        GROUP=group,
        VALUE=value_size,
        KEY=key_size,
        KEY_WIDTH=tiled.key_width,
        VALUE_WIDTH=tiled.value_width,
        ROWS=tiled.rows,
        HAS_SOFTCAP=scoring.softcap > 0.0,
        PRECISION="ieee",
        num_warps=tiled.num_warps,
        num_stages=tiled.num_stages,
    )
    rows = rows_of(num_tokens * num_heads, value_size, query.device)
    launcher.run(
        _kernels.combine,
        (triton.cdiv(num_tokens * num_heads, rows),),
        output,
        work.numbers[PART_OFFSETS * work.layout.row :],
        sights,
        sums,
        maxima,
        totals,
        scoring.sinks,
        num_tokens * num_heads,
        HEADS=num_heads,
        VALUE=value_size,
        WIDTH=triton.next_power_of_2(value_size),
        ROWS=rows,
    )
    return output
