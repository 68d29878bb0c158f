"""Frontier: the nodes of one session that may be expanded next, the likeliest first."""

from __future__ import annotations

import heapq
from typing import Protocol

from outrider.core.protocol.tree import LIVE, Node


class Frontier(Protocol):
    """Which node to expand next, and how much credit those need that are in a step."""

    num_reserved: int
    """Nodes for which there must be credit until what was taken is expanded or postponed."""

    def push(self, node: Node) -> None:
        """A new node may be expanded."""
        ...

    def best(self, root: Node) -> float | None:
        """Logarithm of what the most promising node below `root`, or it itself, is worth: the chance that it is reached
        where nothing is known of what follows it. None if there is none."""
        ...

    def take(self, root: Node) -> Node:
        """The node that `best` spoke of."""
        ...

    def postpone(self, root: Node, node: Node) -> None:
        """What was taken last of `node` is not expanded after all."""
        ...

    def settle(self, node: Node) -> None:
        """All that was taken of `node` is about to be expanded."""
        ...


class LikeliestFirst:
    """The frontier of a model that proposes for one place below each node. Each node is taken once."""

    __slots__ = ("_heap", "_num_pushed", "_width", "num_reserved")

    def __init__(self, width: int) -> None:
        """A node gets at most `width` children."""
        self.num_reserved = 0
        self._width = width
        self._heap: list[tuple[float, int, Node]] = []
        self._num_pushed = 0

    def push(self, node: Node) -> None:
        """See `Frontier.push`."""
        self._num_pushed += 1
        heapq.heappush(self._heap, (-node.path_log_prob, self._num_pushed, node))

    def best(self, root: Node) -> float | None:
        """See `Frontier.best`."""
        if root.proposals is None and not self.num_reserved:
            return 0.0
        heap = self._heap
        while heap:
            node = heap[0][2]
            if node.state is LIVE and node.proposals is None:
                return node.path_log_prob - root.path_log_prob
            heapq.heappop(heap)
        return None

    def take(self, root: Node) -> Node:
        """See `Frontier.take`."""
        node = root if root.proposals is None and not self.num_reserved else heapq.heappop(self._heap)[2]
        self.num_reserved += self._width
        return node

    def likeliest(self, most: int) -> list[Node]:
        """Up to `most` nodes that may be expanded, the likeliest first."""
        live = [entry for entry in self._heap if entry[2].state is LIVE and entry[2].proposals is None]
        if len(live) < len(self._heap):
            self._heap = live
            heapq.heapify(live)
        return [node for _, _, node in heapq.nsmallest(most, live)]

    def postpone(self, root: Node, node: Node) -> None:
        """See `Frontier.postpone`."""
        self.num_reserved -= self._width
        if node is not root:
            self.push(node)

    def settle(self, node: Node) -> None:
        """See `Frontier.settle`."""
        self.num_reserved -= self._width
