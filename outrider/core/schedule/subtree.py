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
    num_masks: int = 0
    """How many of the nodes, the last ones, are mask tokens: each stands for a token that is not known yet."""


LINE_ALONE = Subtree((), (), (LINE_END,))
"""No nodes: what follows the line."""


def subtree(root: Node, wanted: Iterable[Node], mask_token_id: int | None = None) -> Subtree:
    """The paths from `root` to each of `wanted`, which stand in its tree, `root` among them or not.

    Each time that a node is wanted again, it is one more mask token that is wanted, in a chain below the node.
    """
    index_of = {root: LINE_END}
    parents: list[int] = []
    token_ids: list[int] = []
    wanted = list(wanted)
    distinct = dict.fromkeys(wanted)
    for node in distinct:
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
    if len(distinct) == len(wanted):
        return Subtree(parents, token_ids, [index_of[node] for node in wanted])
    assert mask_token_id is not None, "a node is wanted twice, and the model has no mask token"
    num_masks = len(wanted) - len(distinct)
    indices: list[int] = []
    for node in wanted:
        if node in distinct:
            del distinct[node]
        else:
            parents.append(index_of[node])
            token_ids.append(mask_token_id)
            index_of[node] = len(parents) - 1
        indices.append(index_of[node])
    return Subtree(parents, token_ids, indices, num_masks)
