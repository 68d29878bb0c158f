"""Lattice: the paths through what one pass of a parallel draft model proposes for several places in a row.

What is proposed beyond a mask token is proposed whatever stands in its place, so a path may take any of the proposals
for each place. The likeliest paths become nodes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import count

from outrider.core.protocol.tree import COMMITTED, Node, SpeculationTree

Proposals = Sequence[tuple[int, int]]
"""Token ids for one place, best first, each with its confidence bin."""


class Bounds:
    """What keeps a lattice small."""

    __slots__ = ("allows", "log_floor", "num_nodes")

    def __init__(self, num_nodes: int, log_floor: float, allows: Callable[[Node, int], bool]) -> None:
        self.num_nodes = num_nodes
        """Most new nodes."""
        self.log_floor = log_floor
        """Least logarithm of the chance of a path, in the tree's own terms."""
        self.allows = allows
        """Whether a token may stand below a node."""


def grow(
    tree: SpeculationTree,
    parent: Node,
    rows: Sequence[Proposals],
    log_acceptance: Callable[[int], float],
    bounds: Bounds,
) -> list[Node]:
    """Adds what was proposed below `parent`, the likeliest first, and returns the new nodes, parents before children.

    `rows` are the proposals of its own row and of the mask tokens below it, in their order; `log_acceptance` tells what
    a guess of a bin is worth. Nodes that have proposals made beyond as few mask tokens, or fewer, keep theirs. The
    guesses below the others are believed as the new proposals have it.
    """
    found = [{token_id: log_acceptance(its_bin) for token_id, its_bin in row} for row in rows]
    heap: list[tuple[float, int, Node, int, int]] = []
    new: list[Node] = []
    numbers = count()

    def open(node: Node, mask_depth: int) -> None:
        if node.proposals is not None and node.mask_depth <= mask_depth:
            return
        node.proposals = [*(node.proposals or ()), *rows[mask_depth]]
        node.mask_depth = mask_depth
        _believe(node, found[mask_depth])
        for token_id, log_prob in found[mask_depth].items():
            heapq.heappush(heap, (-node.path_log_prob - log_prob, next(numbers), node, mask_depth, token_id))

    open(parent, 0)
    while heap and len(new) < bounds.num_nodes:
        key, _, node, mask_depth, token_id = heapq.heappop(heap)
        if -key < bounds.log_floor:
            break
        num_live = tree.num_live
        child = None
        if mask_depth == 0 or bounds.allows(node, token_id):  # what a row without mask tokens proposes is allowed
            child = tree.attach(node, token_id, found[mask_depth][token_id])
        if child is None:
            continue
        if tree.num_live > num_live:
            new.append(child)
        if mask_depth + 1 < len(rows):
            open(child, mask_depth + 1)
    return new


def _believe(node: Node, found: dict[int, float]) -> None:
    """The children of `node` are as likely as it was found now; what was not proposed again, no more than the last."""
    if not found:
        return
    least = min(found.values())
    for child in node.children.values():
        if child.state is COMMITTED:
            continue
        log_prob = found.get(child.token_id, least)
        change = log_prob - child.log_prob
        child.log_prob = log_prob
        below = [child]
        for each in below:
            each.path_log_prob += change
            below += each.children.values()
