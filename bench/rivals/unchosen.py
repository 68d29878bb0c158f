"""What a step scores where nothing is chosen: all that its rounds may, whatever it costs and promises."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.tree import Node
from outrider.core.verify.selection import Beside, Candidates, Selection


def all_that_may(trees: Sequence[Candidates], curve: StepCurve, beside: Beside) -> Selection:
    """The nodes of each tree up to its limit, the likeliest first where there are more. See `most_probable`."""
    nodes = list(map(_likeliest, trees))
    num_tokens = beside.num_tokens + len(trees) + sum(map(len, nodes))
    return Selection(nodes, curve.seconds(num_tokens), probability_min=0.0)


def _likeliest(tree: Candidates) -> list[Node]:
    """Up to the limit, parents before children."""
    chosen: list[Node] = []
    if tree.limit > 0 and tree.overlay is not None:
        tree.overlay.prepare()
    heap: list[tuple[float, int, Node]] = []
    node, num_pushed = tree.tree.root, 0
    while len(chosen) < tree.limit:
        for child in tree.below(node):
            num_pushed += 1
            heapq.heappush(heap, (-child.path_log_prob, num_pushed, child))
        if not heap:
            break
        _, _, node = heapq.heappop(heap)
        chosen.append(node)
    return chosen
