"""Slots: room for one session's keys and values each, knowing which token ids they belong to.

A slot's cells 0, 1, 2, ... hold the *trunk*, the part of the line that has been fed; tree nodes that have been fed
stand in the cells after it. Whoever wants logits says which tokens; what to keep, move, drop and feed follows from
comparing them with what the slot holds. No count of tokens to trim is ever passed around.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from outrider.core.errors import SlotsExhaustedError

TREE_CELLS_MAX = 256
"""Cells of a slot beyond its longest line: room for the fed nodes of a tree. Equal to the bounds of
`core/validation.py` on run-ahead and on draft tokens."""


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

    __slots__ = ("_children", "_line", "_num_agreed", "cells", "first_cell", "index", "num_cells", "trunk")

    def __init__(self, index: int, first_cell: int, num_cells: int) -> None:
        self.index = index
        self.first_cell = first_cell
        """Index in the caches of the slot's cell 0."""
        self.num_cells = num_cells
        """How many cells the slot has. The next ones are another session's."""
        self.trunk: list[int] = []
        """Token ids of the cells 0 .. len(trunk) - 1, which are their positions too."""
        self.cells: dict[int, TreeCell] = {}
        """The fed tree nodes by their cells, all at len(trunk) or above, parents fed before children."""
        self._children: dict[tuple[int, int], int] = {}
        self._line: Sequence[int] | None = None
        self._num_agreed = 0

    @property
    def end_cell(self) -> int:
        """One past the highest cell in use."""
        return max(self.cells, default=len(self.trunk) - 1) + 1

    def align(self, line: Sequence[int]) -> list[Move]:
        """Makes what is held agree with `line`: drops what contradicts it, turns tree nodes that lie on it into trunk.

        A line only grows, so the same list object is compared from where it last ended. Returns the moves that keep the
        trunk contiguous; they happen at once, sources read before destinations are written.
        """
        if line is not self._line:
            self._line = line
            self._num_agreed = 0
        num_agreed = self._num_agreed
        end = min(len(self.trunk), len(line))
        while num_agreed < end and self.trunk[num_agreed] == line[num_agreed]:
            num_agreed += 1
        if num_agreed < len(self.trunk):
            del self.trunk[num_agreed:]
            self._forget_tree()
        moves = self._promote(line) if self.cells and len(self.trunk) < len(line) else []
        self._num_agreed = len(self.trunk)
        return moves

    def find(self, parent_cell: int, token_id: int) -> int | None:
        """The cell of the tree node with `token_id` below `parent_cell`, if it has been fed."""
        return self._children.get((parent_cell, token_id))

    def free_cells(self, count: int, first: int) -> list[int]:
        """`count` unused cells for tree nodes, the lowest from `first` on. They stay unused until `hold` names them."""
        found: list[int] = []
        cell = first
        while len(found) < count:
            if cell not in self.cells:
                found.append(cell)
            cell += 1
        return found

    def hold(self, cell: int, content: TreeCell) -> None:
        """Notes that `cell` holds the fed tree node `content`."""
        self.cells[cell] = content
        self._children[content.parent_cell, content.token_id] = cell

    def clear(self) -> None:
        """Forgets everything held."""
        self.trunk.clear()
        self._line = None
        self._num_agreed = 0
        self._forget_tree()

    def _promote(self, line: Sequence[int]) -> list[Move]:
        tip = len(self.trunk) - 1
        new_place: dict[int, int] = {}
        while len(self.trunk) < len(line):
            cell = self._children.get((tip, line[len(self.trunk)]))
            if cell is None:
                break
            new_place[cell] = len(self.trunk)
            self.trunk.append(line[len(self.trunk)])
            tip = cell
        survivors = self._below(tip) if len(self.trunk) == len(line) else []
        end_trunk = len(self.trunk)
        taken = {cell for cell in survivors if cell >= end_trunk}
        free = end_trunk
        for cell in survivors:
            if cell >= end_trunk:
                new_place[cell] = cell
                continue
            while free in taken:
                free += 1
            new_place[cell] = free
            taken.add(free)
        held = [(new_place[cell], self.cells[cell]) for cell in survivors]
        self._forget_tree()
        for cell, content in held:
            self.hold(cell, content._replace(parent_cell=new_place[content.parent_cell]))
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


class SlotPool:
    """A fixed number of slots over one range of cells."""

    def __init__(self, num_slots: int, max_context: int) -> None:
        """Each slot has room for `max_context` line tokens and TREE_CELLS_MAX tree nodes."""
        self.slot_cells = max_context + TREE_CELLS_MAX
        self.num_cells = num_slots * self.slot_cells + 1
        """Cells that a cache must have: all slots' and the scratch cell, which takes what padding writes."""
        self.scratch_cell = self.num_cells - 1
        self._free = [Slot(index, index * self.slot_cells, self.slot_cells) for index in reversed(range(num_slots))]
        self.num_slots = num_slots

    @property
    def num_free(self) -> int:
        """How many slots nobody holds."""
        return len(self._free)

    def acquire(self) -> Slot:
        """A slot that holds nothing. Raises SlotsExhaustedError."""
        if not self._free:
            raise SlotsExhaustedError(
                f"all {self.num_slots} slots are taken; try again later or raise --max-sessions of this worker"
            )
        return self._free.pop()

    def release(self, slot: Slot) -> None:
        """Gives a slot back."""
        slot.clear()
        self._free.append(slot)
