"""Which nodes are worth a place in the next forward pass."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from outrider.core.tree import Node, SpeculationTree


def most_probable(tree: SpeculationTree, limit: int, max_position: int) -> list[Node]:
    """At most `limit` live nodes at positions up to `max_position`, in order of path probability.

    A parent is never less probable than its child, so the chosen nodes form a subtree, parents before children.
    """
    chosen: list[Node] = []
    order = 0
    heap: list[tuple[float, int, Node]] = []
    parent = tree.root
    while len(chosen) < limit:
        if parent.position < max_position:
            for child in parent.children.values():
                heapq.heappush(heap, (-child.path_log_prob, order, child))
                order += 1
        if not heap:
            break
        parent = heapq.heappop(heap)[2]
        chosen.append(parent)
    return chosen


def paths_to(nodes: Iterable[Node], root: Node) -> list[Node]:
    """The union of the paths from below `root` to each of `nodes`, parents before children."""
    path_nodes: dict[int, Node] = {}
    for node in nodes:
        path: list[Node] = []
        while node is not root and id(node) not in path_nodes:
            path.append(node)
            assert node.parent is not None
            node = node.parent
        path_nodes.update((id(ancestor), ancestor) for ancestor in reversed(path))
    return list(path_nodes.values())
