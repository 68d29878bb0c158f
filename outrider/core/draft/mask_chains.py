"""Mask chains: the frontier of a parallel draft model, which weighs mask tokens and nodes against one another.

What a row of a pass is worth is what it adds: the chance that its place is reached, times how much oftener than before
the target's token will be among the proposals for that place (`foresight.py`). So a node with proposals that were made
beyond mask tokens may be expanded again, by its own token's row, and a mask token below it is worth what a node is that
stands as far ahead and is as likely. All in units of what a node's own row adds where nothing is known.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

from outrider.core.estimate.foresight import Foresight
from outrider.core.protocol.tree import DROPPED, LIVE, Node

_WORTH_MIN = 0.01
"""Least that a row is held worth, as a share of its place's chance: a row that adds nothing by itself may be the way to
others, since a path is fed from above and a chain of mask tokens has no gaps."""

_EPSILON = 1e-9


class MaskChains:
    """See `Frontier`. A node that is taken again gets one mask token more, in a chain below it.

    A node comes after its parent: who feeds it feeds its path, too.
    """

    __slots__ = ("_foresight", "_has_place", "_heap", "_num_pushed", "_taken", "_width", "num_reserved")

    def __init__(self, width: int, foresight: Foresight, has_place: Callable[[Node, int], bool]) -> None:
        """A node gets at most `width` children. `has_place` tells of a node and a number of mask tokens below it
        whether what follows them may be drafted."""
        self.num_reserved = 0
        self._width = width
        self._foresight = foresight
        self._has_place = has_place
        self._heap: list[tuple[float, int, Node, int]] = []
        """Negative worth, number, node and how many mask tokens it has then; 0: its own row."""
        self._num_pushed = 0
        self._taken: dict[Node, int] = {}
        """How many mask tokens those have that are in the step."""

    def push(self, node: Node) -> None:
        """See `Frontier.push`."""
        self._push(node, 0)

    def push_below(self, node: Node) -> None:
        """Whatever stands right below `node`, which is taken or was expanded, may be expanded."""
        for child in node.children.values():
            if _is_expanded(child):
                self.push_below(child)
            else:
                self._push(child, 0)

    def best(self, root: Node) -> float | None:
        """See `Frontier.best`. A root is worth as much as one of which nothing is known: all else hangs on it."""
        if self._is_open(root):
            return 0.0
        heap = self._heap
        while heap:
            key, number, node, num_masks = heap[0]
            worth = self._log_worth(node, num_masks)
            if worth is None:
                heapq.heappop(heap)
            elif worth < -key - _EPSILON:  # what was taken meanwhile adds the same, in part
                heapq.heapreplace(heap, (-worth, number, node, num_masks))
            else:
                return worth - root.path_log_prob
        return None

    def take(self, root: Node) -> Node:
        """See `Frontier.take`."""
        if self._is_open(root):
            node, num_masks = root, 0
        else:
            _, _, node, num_masks = heapq.heappop(self._heap)
        self._taken[node] = num_masks
        self.num_reserved += 1 if num_masks else self._width
        self._push(node, num_masks + 1)
        if not num_masks:
            self.push_below(node)
        return node

    def postpone(self, root: Node, node: Node) -> None:
        """See `Frontier.postpone`."""
        num_masks = self._taken[node]
        if num_masks:
            self.num_reserved -= 1
            self._taken[node] = num_masks - 1
        else:
            self.num_reserved -= self._width
            del self._taken[node]
        if node is not root or num_masks:
            self._push(node, num_masks)

    def settle(self, node: Node) -> None:
        """See `Frontier.settle`."""
        self.num_reserved -= self._width + self._taken.pop(node)

    def _push(self, node: Node, num_masks: int) -> None:
        worth = self._log_worth(node, num_masks)
        if worth is not None:
            self._num_pushed += 1
            heapq.heappush(self._heap, (-worth, self._num_pushed, node, num_masks))

    def _log_worth(self, node: Node, num_masks: int) -> float | None:
        """What that row adds, not yet set against the root's chance; None if it cannot be, or can no more."""
        coverage = self._foresight.coverage
        if num_masks:
            if num_masks >= len(coverage) or self._taken.get(node) != num_masks - 1 or node.state is DROPPED:
                return None
            known = self._known_below(node, num_masks)
        else:
            parent = node.parent
            if node.state is not LIVE or not self._is_open(node) or parent is None:
                return None
            if parent not in self._taken and not _is_expanded(parent):
                return None
            known = self._known(node)
        if not self._has_place(node, num_masks):
            return None
        worth = max((coverage[num_masks] - known) / coverage[0], _WORTH_MIN)
        return node.path_log_prob + self._foresight.log_reach[num_masks] + math.log(worth)

    def _known_below(self, node: Node, num_masks: int) -> float:
        """How often the target's token is among the proposals so many places below `node`, as they are already."""
        below: Node | None = node
        for _ in range(num_masks):
            below = next(iter(below.children.values()), None)  # the likeliest, as a rule
            if below is None:
                return 0.0
        return self._foresight.coverage[0] if below in self._taken else self._known(below)

    def _known(self, node: Node) -> float:
        """The same for what follows `node`, with what the step will add."""
        coverage = self._foresight.coverage
        known = 0.0 if node.proposals is None else coverage[node.mask_depth]
        ancestor, distance = node.parent, 1
        while ancestor is not None and (num_masks := self._taken.get(ancestor)) is not None:
            if num_masks >= distance:
                known = max(known, coverage[distance])
            ancestor, distance = ancestor.parent, distance + 1
        return known

    def _is_open(self, node: Node) -> bool:
        return not _is_expanded(node) and node not in self._taken


def _is_expanded(node: Node) -> bool:
    return node.proposals is not None and node.mask_depth == 0
