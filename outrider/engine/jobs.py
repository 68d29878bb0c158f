"""Jobs (prefill, decode, verify, draft alike): which tokens need logits, and what the KV cache lacks for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from outrider.core.schedule.subtree import LINE_END
from outrider.engine.kv_cache.blocks import BlockKey
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX, Move, Slot, TreeCell


class Job(NamedTuple):
    """Logits wanted by one session: after a path and after the nodes of a tree below it.

    Prefill, decoding, verifying, drafting, rollback and resuming are all this, with different lengths.
    """

    slot: Slot
    line: Sequence[int]
    """All token ids of the line. Pass the same list object each time; it may only grow."""
    parents: Sequence[int] = ()
    """For each node the index of its parent among the nodes, or LINE_END. Parents stand before children."""
    token_ids: Sequence[int] = ()
    """For each node its token id."""
    wanted: Sequence[int] = (LINE_END,)
    """Nodes (or LINE_END) whose following token's logits are wanted, in the order of the result."""
    num_masks: int = 0
    """How many of the nodes, the last ones, are mask tokens. The slot never holds them: their cells are free again
    after the pass."""
    num_choices: int = 0
    """How many tokens the pass itself should choose from each of the logits, if it can do that: TREE_WIDTH_MAX at most,
    by the engine's sampling tables."""


@dataclass(slots=True)
class Feed:
    """What one job puts into one forward pass."""

    job: Job
    moves: list[Move]
    token_ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    """Within the slot."""
    num_prefix: int = 0
    """How many of the fed tokens belong to the line; they come first."""
    num_new_prefix: int = 0
    """How many of those the slot did not hold."""
    nodes: list[tuple[int, TreeCell]] = field(default_factory=list)
    """Cells and contents of the fed tree nodes that the slot will hold, in the order of their tokens."""
    paths: list[list[int]] = field(default_factory=list)
    """For each fed tree node or mask token the cells of its path, from below the line to its own."""
    rows: list[int] = field(default_factory=list)
    """For each wanted token its index among the fed ones; empty while the line is not yet fed to its end."""
    complete: bool = True
    """Whether the wanted logits come out of this pass. If not, the same job has to be run again."""


def plan(job: Job, max_tokens: int, computing: set[BlockKey] | None = None) -> Feed:
    """What to feed for `job`, at most `max_tokens` tokens of its line (tree nodes come on top, in the last pass).

    That is nothing at all if the line needs tokens and none is granted, or if a job planned before with the same
    `computing`, which collects the blocks that a pass computes, computes the very block that this slot needs next: by
    the next pass that is cached. The moves of a feed without tokens count nevertheless.

    Raises ValueError if the line and the tree need more cells than the slot may use, RuntimeError if the blocks run
    out; the slot then has to be cleared.
    """
    slot, line = job.slot, job.line
    feed = Feed(job, slot.align(line))
    num_held = len(slot.cached_prefix)
    computing = set() if computing is None else computing
    key = slot.next_key(line) if num_held < len(line) else None
    if key in computing and slot.has_only_cached:
        max_tokens = 0
    end = min(len(line), num_held + max_tokens)
    feed.num_new_prefix = end - num_held
    feed.complete = end == len(line)
    if end == num_held < len(line):
        return feed
    if key is not None:
        computing.add(key)
    first = num_held
    if feed.complete and LINE_END in job.wanted and num_held == len(line):
        first -= 1  # held already, but its logits are wanted
    feed.token_ids.extend(line[first:end])
    feed.positions.extend(range(first, end))
    feed.cells.extend(range(first, end))
    feed.num_prefix = end - first
    if feed.complete and job.token_ids:
        _plan_nodes(feed)
    elif feed.complete:
        feed.rows = [feed.num_prefix - 1] * len(job.wanted)
    end_cell = max(feed.cells, default=-1) + 1
    if end_cell > slot.num_cells:
        raise ValueError(
            f"a line of {len(line)} tokens with a tree of {len(job.token_ids)} nodes needs {end_cell} cells of a slot "
            f"of {slot.num_cells}; keep lines within the context and undecided nodes within {TREE_CELLS_MAX}"
        )
    slot.reserve(end_cell)
    return feed


def _plan_nodes(feed: Feed) -> None:
    job, slot = feed.job, feed.job.slot
    tip = len(job.line) - 1
    wanted = set(job.wanted)
    free = slot.free_cells(len(job.line))
    # By node; one place more, where LINE_END finds the line's last token.
    node_cells = [tip] * (len(job.token_ids) + 1)
    paths: list[list[int]] = [[]] * len(node_cells)
    row_of: dict[int, int] = {LINE_END: feed.num_prefix - 1}
    first_mask = len(job.token_ids) - job.num_masks
    for node, (parent, token_id) in enumerate(zip(job.parents, job.token_ids, strict=True)):
        parent_cell = node_cells[parent]
        held_cell = slot.find(parent_cell, token_id) if node < first_mask else None
        cell = node_cells[node] = held_cell if held_cell is not None else next(free)
        path = paths[node] = [*paths[parent], cell]
        if held_cell is not None and node not in wanted:
            continue
        position = tip + len(path)
        row_of[node] = len(feed.token_ids)
        feed.token_ids.append(token_id)
        feed.positions.append(position)
        feed.cells.append(cell)
        if node < first_mask:
            feed.nodes.append((cell, TreeCell(parent_cell, token_id, position)))
        feed.paths.append(path)
    feed.rows = [row_of[node] for node in job.wanted]


def settle(feed: Feed) -> None:
    """Notes in the slot what a successful pass has fed."""
    slot = feed.job.slot
    slot.cached_prefix.extend(feed.token_ids[feed.num_prefix - feed.num_new_prefix : feed.num_prefix])
    for cell, content in feed.nodes:
        slot.hold(cell, content)
    slot.settle()
