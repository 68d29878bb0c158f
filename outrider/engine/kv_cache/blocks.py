"""Blocks: the KV cache in equal pieces, which slots take as they grow; and prefix caching, by which slots share them.

A full block of a line's tokens is *cached* under what it holds: its own token ids and everything before them. Another
slot whose line begins alike finds it and holds it too, so a prompt that many sessions have in common is computed and
stored once. Cached blocks that nobody holds stay findable until their room is needed, oldest first.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

ROOT_HASH = 0
"""Block hash of the empty text: what stands before a line's first block."""

BlockKey = tuple[int | str, tuple[int, ...]]
"""What a cached block is found by: the block hash of the one before it, and its own token ids. For a line's first block
that of the empty text, or in its place the cache salt of those who share with one another alone."""


class CachedBlock(NamedTuple):
    """A cached block."""

    block: int
    block_hash: int
    """Stands for the whole text up to the block's end, so that keys do not grow with the text. It is counted, not
    computed, and never given twice: two texts never have the same, and where a text's blocks were evicted and computed
    again, no block behind them is found by mistake."""


class BlockPool:
    """A fixed number of blocks. Each is free, held by one or more slots, or cached and held by none."""

    def __init__(self, num_blocks: int, block_cells: int) -> None:
        """`num_blocks` blocks of `block_cells` cells each, numbered from 0."""
        self.num_blocks = num_blocks
        self.block_cells = block_cells
        self.num_tokens_asked = 0
        """Line tokens that slots have begun with, ..."""
        self.num_tokens_found = 0
        """... and how many of those were found cached."""
        self._free = list(reversed(range(num_blocks)))
        self._num_holders = [0] * num_blocks
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Cached blocks that nobody holds, in the order in which they are evicted."""
        self._cached: dict[BlockKey, CachedBlock] = {}
        self._keys: dict[int, BlockKey] = {}
        """The key of each cached block."""
        self._hashes = itertools.count(ROOT_HASH + 1)

    @property
    def num_available(self) -> int:
        """How many blocks can be taken: the free ones, and those that would be evicted."""
        return len(self._free) + len(self._idle)

    def take(self) -> int:
        """A block for one slot alone. Raises RuntimeError if none is available."""
        if self._free:
            block = self._free.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            del self._cached[self._keys.pop(block)]
        else:
            raise RuntimeError(
                f"all {self.num_blocks} blocks of keys and values are held; whoever runs a step has to ask "
                "num_missing_blocks of each job first, and to forget a slot where they exceed num_available"
            )
        self._num_holders[block] = 1
        return block

    def find(self, key: BlockKey) -> CachedBlock | None:
        """The block cached under `key`."""
        return self._cached.get(key)

    def is_held(self, block: int) -> bool:
        """Whether a slot holds `block`."""
        return self._num_holders[block] > 0

    def hold(self, block: int) -> None:
        """Counts one more slot that holds a cached block."""
        self._num_holders[block] += 1
        self._idle.pop(block, None)

    def cache(self, block: int, key: BlockKey) -> CachedBlock:
        """Makes `block`, which one slot holds, findable under `key`; returns what is found from now on.

        That is another block where one was cached under `key` before; the slot then holds that in place of its own.
        """
        cached = self._cached.get(key)
        if cached is None:
            cached = self._cached[key] = CachedBlock(block, next(self._hashes))
            self._keys[block] = key
        else:
            self.hold(cached.block)
            self.release([block])
        return cached

    def release(self, blocks: Sequence[int]) -> None:
        """Ends a slot's hold on `blocks`, which stand in the order of the text.

        The last goes first, so of a text nobody holds, what stands behind is evicted before what it stands on.
        """
        for block in reversed(blocks):
            self._num_holders[block] -= 1
            if self._num_holders[block]:
                continue
            if block in self._keys:
                self._idle[block] = None
            else:
                self._free.append(block)
