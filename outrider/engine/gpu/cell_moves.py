"""Moves of cells on a GPU: a kernel in Triton that reads from the work list what moves, so that it can be captured."""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
# Triton comes with torch for GPUs alone, launches what it compiles by an index, and has types of its own in a kernel.
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from outrider.engine.gpu import launcher, work_list

SOURCES = tl.constexpr(work_list.MOVE_SOURCES)
MOVES = tl.constexpr(work_list.MOVES_MAX)

_WIDTH = 16
"""Numbers of a cell that a program moves: 32 bytes in 16 bits, which a GPU reads at once. Few enough that the registers
of a program hold them of all cells."""


def move_cells(storage: Tensor, moves: Tensor) -> None:
    """Copies cells in all planes of `storage` [planes, cells, num_kv_heads, size], every source read before any
    destination is written. `moves` is the part of a work list that begins with their number."""
    num_planes, _, num_kv_heads, size = storage.shape
    cell = num_kv_heads * size
    grid = num_planes, triton.cdiv(cell, _WIDTH)
    launcher.run(move, grid, storage, moves, storage.stride(0), CELL=cell, WIDTH=_WIDTH, num_warps=8)


@triton.jit
def move(storage, moves, plane_stride, CELL: tl.constexpr, WIDTH: tl.constexpr):
    """Grid [planes, CELL by WIDTH]. A program has its columns of all cells to itself, so it alone has to wait until
    everything is read."""
    count = tl.load(moves)
    if count > 0:
        indices = tl.arange(0, MOVES)
        columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        is_move = indices < count
        is_used = is_move[:, None] & (columns < CELL)[None, :]
        source = tl.load(moves + SOURCES + indices, mask=is_move, other=0).to(tl.int64)
        destination = tl.load(moves + SOURCES + MOVES + indices, mask=is_move, other=0).to(tl.int64)
        plane = storage + tl.program_id(0).to(tl.int64) * plane_stride
        content = tl.load(plane + (source * CELL)[:, None] + columns[None, :], mask=is_used)
        tl.debug_barrier()
        tl.store(plane + (destination * CELL)[:, None] + columns[None, :], content, mask=is_used)
