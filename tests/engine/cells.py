"""Caches whose cells hold, instead of keys and values, the text up to the token that they belong to."""

from __future__ import annotations

import random
from collections.abc import Sequence

from outrider.engine.jobs import LINE_END, Feed, settle
from outrider.engine.kv_cache.slots import Slot

Text = tuple[int, ...]


class Cells:
    """The cells of one pool of blocks."""

    def __init__(self) -> None:
        self.texts: dict[int, Text] = {}
        self._writers: dict[int, Slot] = {}

    def run(self, feeds: Sequence[Feed]) -> list[list[Text]]:
        """One pass: moves and writes as the engine does, and settles.

        Returns, for each feed, for each wanted row, the text that its token attends to.
        """
        moves = [(feed.job.slot, feed.job.slot.places(move)) for feed in feeds for move in feed.moves]
        moved = [(slot, destination, self.texts[source]) for slot, (source, destination) in moves]
        assert len({destination for _, destination, _ in moved}) == len(moved)
        for slot, destination, text in moved:
            self._write(slot, destination, text)
        for feed in feeds:
            self._write_tokens(feed)
        for feed in feeds:
            self._check(feed)
        rows = [[self.text(feed.job.slot, feed.cells[row]) for row in feed.rows] for feed in feeds]
        for feed in feeds:
            settle(feed)
        return rows

    def _write(self, slot: Slot, place: int, text: Text) -> None:
        assert place // slot.block_cells not in slot._pool._keys, "a cached block is written to"
        self.texts[place] = text
        self._writers[place] = slot

    def text(self, slot: Slot, cell: int) -> Text:
        """What the slot's `cell` holds."""
        return self.texts[slot.places([cell])[0]]

    def _write_tokens(self, feed: Feed) -> None:
        slot = feed.job.slot
        parent_cells = [cell - 1 for cell in feed.cells[: feed.num_prefix]]
        parent_cells += [content.parent_cell for _, content in feed.nodes]
        assert len(set(feed.cells)) == len(feed.cells)
        for token_id, position, cell, parent_cell in zip(
            feed.token_ids, feed.positions, feed.cells, parent_cells, strict=True
        ):
            text = (*self.text(slot, parent_cell), token_id) if parent_cell >= 0 else (token_id,)
            assert position == len(text) - 1
            self._write(slot, slot.places([cell])[0], text)

    def _check(self, feed: Feed) -> None:
        slot, line = feed.job.slot, feed.job.line
        num_fed = len(slot.cached_prefix) + feed.num_new_prefix
        assert [self.text(slot, cell) for cell in range(num_fed)] == [tuple(line[: end + 1]) for end in range(num_fed)]
        for cell, content in (slot.cells | dict(feed.nodes)).items():
            assert self.text(slot, cell) == (*self.text(slot, content.parent_cell), content.token_id)
            assert cell >= num_fed
        # Whatever is in sight of a mask, hidden or not, has been written by this session or belongs to its line.
        in_sight = range(num_fed, max([slot.end_cell, *(cell + 1 for cell in feed.cells)]))
        assert all(self._writers[place] is slot for place in slot.places(in_sight))


def random_tree(rng: random.Random) -> tuple[list[int], list[int]]:
    """Parents and token ids of up to nine nodes, no two of them the same path."""
    children: set[tuple[int, int]] = set()
    parents: list[int] = []
    token_ids: list[int] = []
    for _ in range(rng.randint(0, 9)):
        parent, token_id = rng.randint(LINE_END, len(parents) - 1), rng.randrange(3)
        if (parent, token_id) not in children:
            children.add((parent, token_id))
            parents.append(parent)
            token_ids.append(token_id)
    return parents, token_ids


def path_to(node: int, parents: Sequence[int], token_ids: Sequence[int]) -> Text:
    """The token ids from the line's end to `node`."""
    return () if node == LINE_END else (*path_to(parents[node], parents, token_ids), token_ids[node])
