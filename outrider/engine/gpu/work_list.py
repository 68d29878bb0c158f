"""What the kernels of `tree_attention.py` are told of a step: one list of integers, which one copy brings to a GPU.

- An *item* is work for one tile: up to so many successive tokens of a session over one split of its cells. Kernels take
  items from the list, so neither their grid nor the shape of anything depends on the batch.
- A *sight* says which cells a token sees: those of the line from its lowest to its limit, where the tree begins, and
  the ones behind the limit whose bits are set. Each sliding window has sights of its own.
- A *part* is what a token gets of one split. Its parts stand in a row.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from outrider.engine.batch import PackedBatch
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX

PAGE_CELLS = 64
"""Cells of one page, which is a block of the KV cache and what one product of a tile goes over: few enough that little
of a session's last page is left unused, enough for the largest instructions."""

SPLIT_CELLS = 512
"""Cells of one split. An estimate, not measured: at 2k of context one session with eight key heads keeps 32 programs
busy, and what is written of a split is a tenth of what is read."""

WORD_BITS = 32
WORDS = TREE_CELLS_MAX // WORD_BITS
"""Of the mask of the cells behind the limit."""

WORD_0 = 2
"""Index in a sight of the mask's first word; the lowest cell and the limit stand before it."""
SIGHT = 12
"""Integers of a sight, a multiple of 16 bytes."""

ITEM = 8
"""Integers of an item: where in the list its session's pages begin, first token, number of tokens, first and end cell,
its first token's part, and how many parts each of its tokens has. The last is not used."""

TOKEN_IDS, POSITIONS, ROWS, WRITE_CELLS, PART_OFFSETS, ROW_SLOTS, ROW_POSITIONS, ROW_CHOICES = range(8)
"""The rows that the list begins with, in their order. The last three say of each wanted row its slot, the position of
the token that is chosen from it, and how many are: none of those that fill up."""
_NUM_ROWS = 8

MOVES_MAX = 256
"""Most cells that a step moves itself: four for each of 64 sessions. A program holds so many at once."""
MOVE_SOURCES = 4
"""Integers from the number of moves to their sources. Their destinations stand MOVES_MAX behind those."""
_MOVES = MOVE_SOURCES + 2 * MOVES_MAX
_ALIGNMENT = 4
"""Integers: kernels want what they read to begin at a multiple of 16 bytes."""


class Layout(NamedTuple):
    """Where a list over N tokens and W windows has its parts: rows, moves, sights, items, and at last all sessions'
    pages."""

    num_tokens: int
    num_windows: int

    @property
    def row(self) -> int:
        """Integers from one row to the next: N + 1, rounded up."""
        return -(-(self.num_tokens + 1) // _ALIGNMENT) * _ALIGNMENT

    @property
    def first_move(self) -> int:
        """Where the number of moves stands."""
        return _NUM_ROWS * self.row

    def first_sight(self, window: int) -> int:
        """Where the sights of the window with that index begin."""
        return self.first_move + _MOVES + window * self.num_tokens * SIGHT

    @property
    def first_item(self) -> int:
        """Where the number of items stands, in place of an item, and then the items."""
        return self.first_sight(self.num_windows)

    def end(self, num_items: int, num_pages: int) -> int:
        """How long a list with so many items and pages is."""
        return self.first_item + (1 + num_items) * ITEM + num_pages


class WorkList(NamedTuple):
    """A step as the kernels read it."""

    layout: Layout
    numbers: array[int]
    num_items: int
    num_parts: int


_TILE_ROWS = 64
"""Rows of a tile: as many as the matrix instructions of a Hopper want, and at each of them an H200 still waits for
memory, not for the product."""

_TILE_NUMBERS = 64 * 128
"""Rows by numbers of a head that the registers of a program hold."""


def tile_tokens(groups: Sequence[int], head_size: int) -> int:
    """How many tokens a tile holds if so many query heads share a key head in each layer, of `head_size` at most."""
    return max(min(_TILE_ROWS, _TILE_NUMBERS // head_size) // max(groups), 1)


def num_parts(batch: PackedBatch) -> int:
    """At most so many parts the batch has."""
    return sum(
        (session.end_token - session.first_token) * -(-session.num_cells // SPLIT_CELLS) for session in batch.sessions
    )


def work_list(batch: PackedBatch, windows: Sequence[int | None], tokens: int) -> WorkList:
    """The list of a padded batch in tiles of `tokens` tokens, for layers that have one of the `windows`, all different.

    Raises ValueError if blocks are no pages, or if a tree reaches further behind its line than a mask does.
    """
    if batch.sessions and batch.block_cells != PAGE_CELLS:
        raise ValueError(f"kernels read blocks of {PAGE_CELLS} cells, not of {batch.block_cells}")
    layout = Layout(len(batch.token_ids), len(windows))
    offsets: list[int] = []
    items: list[tuple[int, ...]] = []
    pages: list[int] = []
    parts = 0
    for session in batch.sessions:
        first_page = len(pages)
        pages += batch.blocks[session.first_block :][: -(-session.num_cells // PAGE_CELLS)]
        for first in range(session.first_token, session.end_token, tokens):
            tile = range(first, min(first + tokens, session.end_token))
            end_cell = max(_end_cell(batch, token) for token in tile)
            splits = range(0, end_cell, SPLIT_CELLS)
            for split, cell in enumerate(splits):
                last = min(cell + SPLIT_CELLS, end_cell)
                items.append((first_page, first, len(tile), cell, last, parts + split, len(splits), 0))
            for _ in tile:
                offsets.append(parts)
                parts += len(splits)
    offsets += [parts] * (layout.num_tokens + 1 - len(offsets))
    first_page = layout.end(len(items), 0)
    numbers = array("i")
    row_positions = [batch.positions[row] + 1 for row in batch.rows]
    tokens_and_rows = batch.token_ids, batch.positions, batch.rows, batch.write_cells, offsets
    for row in (*tokens_and_rows, batch.row_slots, row_positions, batch.row_choices):
        numbers.extend(row)
        numbers.extend([0] * (layout.row - len(row)))
    numbers.extend([len(batch.moves), *[0] * (MOVE_SOURCES - 1)])
    for cells in zip(*batch.moves, strict=True) if batch.moves else ((), ()):
        numbers.extend(cells)
        numbers.extend([0] * (MOVES_MAX - len(cells)))
    for window in windows:
        numbers.extend(_sights(batch, window))
    numbers.extend([len(items), *[0] * (ITEM - 1)])
    for pages_before, *fields in items:
        numbers.append(first_page + pages_before)
        numbers.extend(fields)
    numbers.extend(pages)
    return WorkList(layout, numbers, len(items), parts)


def _end_cell(batch: PackedBatch, token: int) -> int:
    """One past the last cell that the token sees."""
    return max(batch.limits[token], max(_path(batch, token), default=-1) + 1)


def _path(batch: PackedBatch, token: int) -> list[int]:
    return batch.path_cells[batch.path_offsets[token] : batch.path_offsets[token + 1]]


def _sights(batch: PackedBatch, window: int | None) -> array[int]:
    found = array("i")
    for token, (position, limit) in enumerate(zip(batch.positions, batch.limits, strict=True)):
        path = _path(batch, token)
        lowest = 0
        if window is not None:
            lowest = min(max(position - window + 1, 0), limit)
            path = path[-window:]
        mask = 0
        for cell in path:
            mask |= 1 << cell - limit
        found.extend((lowest, limit))
        found.frombytes(_bytes(mask))
        found.extend([0] * (SIGHT - WORD_0 - WORDS))
    return found


def _bytes(mask: int) -> bytes:
    try:
        return mask.to_bytes(WORDS * WORD_BITS // 8, sys.byteorder)
    except OverflowError as error:
        raise ValueError(
            f"a tree reaches {mask.bit_length()} cells behind its line; keep undecided nodes within {TREE_CELLS_MAX}"
        ) from error
