"""The part of a tree that a step feeds, in plain numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from outrider.core.protocol.tree import Node

LINE_END = -1
"""Index that stands for the line's last token where indices of nodes are expected."""


class Subtree(NamedTuple):
    """Nodes below the line's last token, parents before children."""

    parents: Sequence[int]
    """For each node the index of its parent among the nodes, or LINE_END."""
    token_ids: Sequence[int]
    """For each node its token id."""
    wanted: Sequence[int]
    """Nodes, or LINE_END, whose following token is asked for, in the order of the result."""


LINE_ALONE = Subtree((), (), (LINE_END,))
"""No nodes: what follows the line."""


def subtree(root: Node, wanted: Iterable[Node]) -> Subtree:
    """The paths from `root` to each of `wanted`, which stand in its tree, `root` among them or not."""
    index_of = {root: LINE_END}
    parents: list[int] = []
    token_ids: list[int] = []
    wanted = list(wanted)
    for node in wanted:
        path: list[Node] = []
        while node not in index_of:
            path.append(node)
            assert node.parent is not None
            node = node.parent
        index = index_of[node]
        for node in reversed(path):
            parents.append(index)
            token_ids.append(node.token_id)
            index = index_of[node] = len(parents) - 1
    return Subtree(parents, token_ids, [index_of[node] for node in wanted])
