"""Slots: one session's keys and values each, knowing which token ids they belong to.

A slot's cells 0, 1, 2, ... hold the *cached prefix*, the part of the line that has been fed; fed tree nodes
stand in the cells after it. Whoever wants logits says which tokens; what to keep, move, drop and feed follows from
comparing them with what the slot holds. No count of tokens to trim is ever passed around.

Cells are logical here; a slot takes blocks for them as it grows (its block table), and only `Slot.places` knows where a
cell lies in the KV cache. Blocks that the cached prefix has filled and gone beyond are offered to other slots (prefix
caching), and nobody writes to them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, filterfalse, takewhile
from typing import NamedTuple

from outrider.core.protocol.errors import SlotsExhaustedError
from outrider.engine.kv_cache.blocks import ROOT_HASH, BlockKey, BlockPool, CachedBlock

TREE_CELLS_MAX = 256
"""Cells of a slot beyond its longest line: room for the fed nodes of a tree. Equal to the bounds of
`core/protocol/validation.py` on run-ahead and on draft tokens."""


class TreeCell(NamedTuple):
    """A fed tree node: what its cell holds."""

    parent_cell: int
    token_id: int
    position: int


class Move(NamedTuple):
    """One cell's content goes to another cell of the same slot."""

    source: int
    destination: int


class Slot:
    """What one session's cells hold."""

    __slots__ = (
        "_children",
        "_hashes",
        "_line",
        "_num_agreed",
        "_pool",
        "_tree_end",
        "blocks",
        "cached_prefix",
        "cells",
        "index",
        "num_cached_tokens",
        "num_cells",
        "root",
        "shares",
    )

    def __init__(self, index: int, num_cells: int, pool: BlockPool) -> None:
        self.index = index
        self.num_cells = num_cells
        """How many cells the slot may use."""
        self.blocks: list[int] = []
        """The blocks that hold its cells, in the order of the cells. The first ones are cached."""
        self.num_cached_tokens = 0
        """How many tokens of the line were found cached since the slot was empty."""
        self.shares = True
        """Whether the slot looks for cached blocks and caches its own."""
        self.root: int | str = ROOT_HASH
        """What stands before its first block: a cache salt, or the empty text alone."""
        self.cached_prefix: list[int] = []
        """Token ids of the cells 0 .. len(cached_prefix) - 1, which are their positions too."""
        self.cells: dict[int, TreeCell] = {}
        """The fed tree nodes by their cells, all at len(cached_prefix) or above, parents fed before children."""
        self._children: dict[tuple[int, int], int] = {}
        self._tree_end = 0
        """One past the highest of those cells, 0 if there are none."""
        self._line: Sequence[int] | None = None
        self._num_agreed = 0
        self._pool = pool
        self._hashes: list[int] = []
        """For each of its cached blocks the block hash."""

    @property
    def block_cells(self) -> int:
        """Cells of one block."""
        return self._pool.block_cells

    @property
    def end_cell(self) -> int:
        """One past the highest cell in use."""
        return max(self._tree_end, len(self.cached_prefix))

    def align(self, line: Sequence[int]) -> list[Move]:
        """Makes what is held agree with `line`: drops what contradicts it, makes tree nodes that lie on it a part of
        the cached prefix, and holds the cached blocks that continue it if the slot has nothing but such.

        A line only grows, so the same list object is compared from where it last ended. Returns the moves that keep the
        cached prefix contiguous; they happen at once, sources read before destinations are written.
        """
        if line is not self._line:
            if self._line is None and self.shares:
                self._pool.num_tokens_asked += len(line)
            self._line = line
            self._num_agreed = 0
        num_agreed = self._num_agreed
        end = min(len(self.cached_prefix), len(line))
        while num_agreed < end and self.cached_prefix[num_agreed] == line[num_agreed]:
            num_agreed += 1
        if num_agreed < len(self.cached_prefix) or len(self._hashes) * self._pool.block_cells >= len(line):
            self._cut(num_agreed, line)
        moves = self._promote(line) if self.cells and len(self.cached_prefix) < len(line) else []
        if self.has_only_cached:
            self._attach(line)
        self._num_agreed = len(self.cached_prefix)
        return moves

    def find(self, parent_cell: int, token_id: int) -> int | None:
        """The cell of the tree node with `token_id` below `parent_cell`, if it has been fed."""
        return self._children.get((parent_cell, token_id))

    def free_cells(self, first: int) -> Iterator[int]:
        """The unused cells for tree nodes, rising from `first` on. They stay unused until `hold` names them."""
        return filterfalse(self.cells.__contains__, count(first))

    def hold(self, cell: int, content: TreeCell) -> None:
        """Notes that `cell` holds the fed tree node `content`."""
        self.cells[cell] = content
        self._children[content.parent_cell, content.token_id] = cell
        if cell >= self._tree_end:
            self._tree_end = cell + 1

    def places(self, cells: Iterable[int]) -> list[int]:
        """Where in the caches `cells` lie."""
        blocks, block_cells = self.blocks, self._pool.block_cells
        return [blocks[cell // block_cells] * block_cells + cell % block_cells for cell in cells]

    def reserve(self, end_cell: int) -> None:
        """Takes blocks until there is room for the cells below `end_cell`. Raises RuntimeError if they run out."""
        while len(self.blocks) * self._pool.block_cells < end_cell:
            self.blocks.append(self._pool.take())

    def settle(self) -> None:
        """Offers the blocks that the cached prefix has filled to other slots, and gives back those behind the last cell
        in use.

        All of the cached prefix has been computed. A block is offered only when the prefix goes beyond it: the prefix's
        last token may be fed again, and nobody writes to a cached block.
        """
        while (key := self.next_key(self.cached_prefix)) is not None:
            place = len(self._hashes)
            self.blocks[place], block_hash = self._pool.cache(self.blocks[place], key)
            self._hashes.append(block_hash)
        self._give_back(-(-self.end_cell // self._pool.block_cells))

    @property
    def has_only_cached(self) -> bool:
        """Whether the slot holds cached blocks and nothing else, so that more of them may follow."""
        return len(self.blocks) == len(self._hashes)

    def next_key(self, line: Sequence[int]) -> BlockKey | None:
        """The key of the first block of `line` that is not known to be cached; None if the line ends in it."""
        first = len(self._hashes) * self._pool.block_cells
        end = first + self._pool.block_cells
        if end >= len(line) or not self.shares:
            return None
        return self._hashes[-1] if self._hashes else self.root, tuple(line[first:end])

    def num_missing_blocks(self, line: Sequence[int], num_nodes: int) -> int:
        """How many available blocks a job of `line` and `num_nodes` tree nodes takes at most until it is done."""
        end_cell = max(self.end_cell, len(line) + num_nodes + len(self.cells))
        num_kept = len(self.blocks)
        if self._line is not None and line is not self._line:
            num_kept -= len(self._hashes)  # the line may contradict them
        elif self.has_only_cached:
            num_kept += sum(1 for _ in takewhile(self._pool.is_held, (found.block for found in self._findable(line))))
        return max(-(-min(end_cell, self.num_cells) // self._pool.block_cells) - num_kept, 0)

    def clear(self) -> None:
        """Forgets everything held. What is cached stays findable."""
        self.cached_prefix.clear()
        self._line = None
        self._num_agreed = 0
        self.num_cached_tokens = 0
        self._forget_tree()
        self._give_back(0)

    def _cut(self, num_agreed: int, line: Sequence[int]) -> None:
        """Drops the tree, and the cached prefix from `num_agreed` on; or from further ahead, so that neither what is
        fed next nor the last token of `line`, which may be fed again, stands in a cached block."""
        block_cells = self._pool.block_cells
        num_blocks = min(num_agreed, max(len(line) - 1, 0)) // block_cells
        if num_blocks < len(self._hashes):
            num_agreed = num_blocks * block_cells
            self._give_back(num_blocks)
        del self.cached_prefix[num_agreed:]
        self._forget_tree()

    def _attach(self, line: Sequence[int]) -> None:
        first = len(self.cached_prefix)
        for found in self._findable(line):
            self._pool.hold(found.block)
            self.blocks.append(found.block)
            self._hashes.append(found.block_hash)
        end = len(self.blocks) * self._pool.block_cells
        self.cached_prefix.extend(line[first:end])
        self.num_cached_tokens += end - first
        self._pool.num_tokens_found += end - first

    def _findable(self, line: Sequence[int]) -> Iterator[CachedBlock]:
        """The cached blocks that continue the slot's own along `line`, which goes beyond them."""
        key = self.next_key(line)
        end = (len(self._hashes) + 1) * self._pool.block_cells
        while key is not None and (found := self._pool.find(key)) is not None:
            yield found
            first, end = end, end + self._pool.block_cells
            key = (found.block_hash, tuple(line[first:end])) if end < len(line) else None

    def _give_back(self, num_kept: int) -> None:
        """Gives back all blocks but the first `num_kept`."""
        if num_kept < len(self.blocks):
            self._pool.release(self.blocks[num_kept:])
            del self.blocks[num_kept:], self._hashes[num_kept:]

    def _promote(self, line: Sequence[int]) -> list[Move]:
        tip = len(self.cached_prefix) - 1
        new_place: dict[int, int] = {}
        while len(self.cached_prefix) < len(line):
            cell = self._children.get((tip, line[len(self.cached_prefix)]))
            if cell is None:
                break
            new_place[cell] = len(self.cached_prefix)
            self.cached_prefix.append(line[len(self.cached_prefix)])
            tip = cell
        survivors = self._below(tip) if len(self.cached_prefix) == len(line) else []
        end_prefix = len(self.cached_prefix)
        taken = {cell for cell in survivors if cell >= end_prefix}
        free = end_prefix
        for cell in survivors:
            if cell >= end_prefix:
                new_place[cell] = cell
                continue
            while free in taken:
                free += 1
            new_place[cell] = free
            taken.add(free)
        held = [(new_place[cell], *self.cells[cell]) for cell in survivors]
        self._forget_tree()
        for cell, parent_cell, token_id, position in held:
            self.hold(cell, TreeCell(new_place[parent_cell], token_id, position))
        return [Move(source, place) for source, place in new_place.items() if source != place]

    def _below(self, top: int) -> list[int]:
        """Cells of the tree nodes below `top`, parents before children."""
        reached = {top}
        found: list[int] = []
        for cell, content in self.cells.items():
            if content.parent_cell in reached:
                reached.add(cell)
                found.append(cell)
        return found

    def _forget_tree(self) -> None:
        self.cells.clear()
        self._children.clear()
        self._tree_end = 0


class SlotPool:
    """A fixed number of slots over one pool of blocks."""

    def __init__(self, num_slots: int, max_context: int, blocks: BlockPool) -> None:
        """Each slot may use cells for `max_context` line tokens and TREE_CELLS_MAX tree nodes."""
        self.num_slots = num_slots
        slot_cells = max_context + TREE_CELLS_MAX
        self._free = [Slot(index, slot_cells, blocks) for index in reversed(range(num_slots))]

    @property
    def num_free(self) -> int:
        """How many slots nobody holds."""
        return len(self._free)

    def acquire(self, *, shares: bool = True, cache_salt: str = "") -> Slot:
        """A slot that holds nothing; without `shares` it stands apart, and computes all that it is asked for. It shares
        with those alone that were acquired with the same `cache_salt`.

        Raises SlotsExhaustedError.
        """
        if not self._free:
            raise SlotsExhaustedError(
                f"all {self.num_slots} slots are taken; try again later or raise --max-sessions of this worker"
            )
        slot = self._free.pop()
        slot.shares = shares
        slot.root = cache_salt or ROOT_HASH
        return slot

    def release(self, slot: Slot) -> None:
        """Gives a slot and its blocks back."""
        slot.clear()
        self._free.append(slot)
