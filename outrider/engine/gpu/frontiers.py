"""What the kernel of `advance.py` knows of drafting sessions, at places of the device that never change."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from outrider.core.protocol.validation import TREE_WIDTH_MAX
from outrider.engine.kv_cache.slots import TREE_CELLS_MAX

HEAD = 4
"""Integers before those of sessions, a multiple of 16 bytes, as kernels want it."""
OPENED_MAX = 16
"""Most nodes with which a session begins."""
NODES_MAX = 512
"""Most nodes that it has in the end: those, and as many as there is credit for, 256."""
CELLS_MAX = 64
"""Most nodes that are fed of it."""
NODE = 16
"""Integers of a node: token, position, whose guess it is, the cell of its parent, its own one and whether it was taken.
From the ninth on the cells of its path, as in a sight."""
OPENED = 16 + 2 * CELLS_MAX
SESSION = OPENED + OPENED_MAX * NODE
"""Integers of a session: its slot, the length of its line, most children of a node, how many nodes may be added, how
long the text may become, how many nodes there are and were fed, how many cells are free, how many levels are done,
whether no more are to follow. From 16 on its free cells, where in the caches they lie, and the nodes with which it
begins."""
REALS = 2 + OPENED_MAX
"""Real numbers of a session: logarithms of its root's chance, of the least that is worth drafting (see `Outlook`), and
of the nodes with which it begins. Those of guesses follow, bin after bin."""
NUM_GUESSES, GUESSES, MARGINS = 5, 8, 8 + TREE_WIDTH_MAX
LOG_ROW = MARGINS + TREE_WIDTH_MAX
"""Numbers of a row of the log: the first five of its node, then how many guesses there are, their tokens and their
margins."""
NOT_TAKEN, DOUBTFUL = -2, -1
"""In place of the number of guesses: the row has no node; rounding may decide what the guesses are."""

BEYOND = 2**30
"""How far tokens see that see everything."""


class Frontiers(NamedTuple):
    """Of S sessions at most. A step has N rows."""

    integers: Tensor
    """[HEAD + S * SESSION] int32: how many sessions there are, how many rows of a step each has, and from HEAD on what
    is known of each."""
    reals: Tensor
    """[S, reals] float64"""
    nodes: Tensor
    """[S, NODES_MAX, NODE] int32"""
    log_probs: Tensor
    """[S, NODES_MAX] float64: of each node's path."""
    taken: Tensor
    """[N] int32: the node of each row, -1 without one."""
    log: Tensor
    """[levels, N, LOG_ROW] float64: what came out. In a step of fewer rows than there is room for the rows of a level
    stand closer together."""
    edges: Tensor
    """[16] float64: bounds between bins of margin, filled up with infinity."""
    windows: Tensor
    """[windows] int32: how far tokens see, of each kind of layer."""


def frontiers(
    num_sessions: int,
    num_rows: int,
    num_levels: int,
    edges: Sequence[float],
    windows: Sequence[int | None],
    device: torch.device,
) -> Frontiers:
    """Room for so many, and no session yet. Guesses fall into bins by rank and by `edges`, 15 at most."""

    def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, device=device)

    bounds = [*edges, *[float("inf")] * (16 - len(edges))]
    return Frontiers(
        zeros(HEAD + num_sessions * SESSION, dtype=torch.int32),
        zeros(num_sessions, REALS + TREE_WIDTH_MAX * (len(edges) + 1), dtype=torch.float64),
        zeros(num_sessions, NODES_MAX, NODE, dtype=torch.int32),
        zeros(num_sessions, NODES_MAX, dtype=torch.float64),
        zeros(num_rows, dtype=torch.int32),
        zeros(num_levels, num_rows, LOG_ROW, dtype=torch.float64),
        torch.tensor(bounds, dtype=torch.float64, device=device),
        torch.tensor([BEYOND if each is None else each for each in windows], dtype=torch.int32, device=device),
    )


class Start(NamedTuple):
    """With what a session begins."""

    slot: int
    line_end: int
    width: int
    credit: int
    max_length: int
    cells: Sequence[int]
    """That are free for its nodes, CELLS_MAX at most."""
    places: Sequence[int]
    """Where they lie in the caches."""
    nodes: Sequence[StartNode]
    """OPENED_MAX at most."""
    log_root: float
    log_floor: float
    log_acceptances: Sequence[float]
    """See `Outlook`."""


class StartNode(NamedTuple):
    """A node that may be taken."""

    token_id: int
    position: int
    path: Sequence[int]
    """Cells of the nodes above it."""
    log_prob: float


def written(starts: Sequence[Start], num_rows: int) -> tuple[array[int], array[float]]:
    """How `integers` and `reals` of such sessions begin, which have so many rows each."""
    integers = array("i", (len(starts), num_rows, *[0] * (HEAD - 2)))
    reals = array("d")
    num_before = 0
    for start in starts:
        nodes, cells = start.nodes, start.cells
        own = [start.slot, start.line_end, start.width, start.credit, start.max_length, len(nodes), 0, len(cells)]
        for row in (own, cells, start.places):
            integers.extend(row)
            integers.extend([0] * ((16 if row is own else CELLS_MAX) - len(row)))
        for number, node in enumerate(nodes):
            parent_cell = node.path[-1] if node.path else start.line_end - 1
            integers.extend((node.token_id, node.position, -1 - num_before - number, parent_cell, 0, 0, 0, 0))
            mask = sum(1 << cell - start.line_end for cell in node.path)
            integers.frombytes(mask.to_bytes(TREE_CELLS_MAX // 8, sys.byteorder))
        integers.extend([0] * (NODE * (OPENED_MAX - len(nodes))))
        num_before += len(nodes)
        reals.extend((start.log_root, start.log_floor, *(node.log_prob for node in nodes)))
        reals.extend([0.0] * (OPENED_MAX - len(nodes)))
        reals.extend(start.log_acceptances)
    return integers, reals
