"""A packed batch in static shapes, as plain numbers: what `static.py` reads on the device.

Sessions stand side by side along one axis of *columns*: the first session's cells, then the second's, and so on. A
token sees columns of its own session alone.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

from outrider.engine.batch import COMPILED_TOKENS_MAX, PackedBatch, bucket

COLUMNS_MIN = 256
"""Fewest columns of a static batch. Fewer would save nothing: the kernels of so short a context take as long as their
launch."""

COLUMNS_MAX = 4096
"""Most columns of a static batch. Every token's attention goes over all sessions' columns, so its work grows with
sessions times context. An estimate, not measured: beyond this, kernels that read each session's own cells alone cost
less, though the host queues them one by one."""

PATH_CELLS_PER_TOKEN = 64
"""Room for paths, in cells for each token on the average: sixteen tokens at a depth of 64, or a chain of 44 at once."""

ROW = 32
"""Integers of one row of the buffer; a multiple of 16 bytes, which kernels want their inputs to begin at, and more than
COMPILED_TOKENS_MAX, so that a row of session numbers has its end mark."""
TOKEN_IDS, POSITIONS, WRITE_CELLS, ROWS, FIRST_COLUMNS, END_COLUMNS, STARTS, FIRST_BLOCKS = range(8)
"""The rows, in their order."""
HEAD = 8 * ROW
"""Integers of all rows; paths and blocks follow."""


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
        return HEAD + 2 * self.num_path_cells + self.num_blocks(block_cells)


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
    starts += [column] * (ROW - len(starts))
    first_blocks += [len(blocks)] * (ROW - len(first_blocks))
    blocks += [scratch_block] * (size.num_blocks(block_cells) - len(blocks))
    num_missing = size.num_path_cells - len(path_columns)
    own_column = batch.path_cells[batch.path_offsets[1] - 1] if batch.path_offsets[1] else ends[0] - 1
    numbers = array("q")
    for row in (batch.token_ids, batch.positions, batch.write_cells, batch.rows, firsts, ends, starts, first_blocks):
        numbers.extend(row)
        numbers.extend([0] * (ROW - len(row)))
    numbers.extend(path_columns + [own_column] * num_missing)  # of token 0, which sees it anyway
    numbers.extend(ages + [0] * num_missing)
    numbers.extend(blocks)
    return numbers
