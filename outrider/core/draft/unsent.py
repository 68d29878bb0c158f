"""Unsent nodes: what one session has drafted and not told yet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from outrider.core.protocol.messages import DraftWindow
from outrider.core.protocol.naming import Outbound
from outrider.core.protocol.tree import LIVE, Node, SpeculationTree


class Unsent:
    """Nodes of `tree`, parents before children."""

    __slots__ = ("_nodes", "_outbound", "_root_log_prob", "_total", "_tree")

    def __init__(self, tree: SpeculationTree) -> None:
        self._tree = tree
        self._outbound = Outbound()
        self._nodes: list[Node] = []
        self._root_log_prob = tree.root.path_log_prob
        self._total = 0.0
        """Chance of each of them to be chosen, seen from a root of that logarithm, added up."""

    @property
    def num_live(self) -> int:
        """How many of them are undecided."""
        return sum(node.state is LIVE for node in self._nodes)

    @property
    def gain(self) -> float:
        """How many of them the target is expected to choose."""
        return self._total * math.exp(self._root_log_prob - self._tree.root.path_log_prob)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._nodes)

    def add(self, nodes: Sequence[Node]) -> None:
        """These are new in the tree."""
        self._nodes += nodes
        self._total += self._chances(nodes)

    def sweep(self) -> None:
        """A commit may have decided some."""
        self._nodes = [node for node in self._nodes if node.state is LIVE]
        self._root_log_prob = self._tree.root.path_log_prob
        self._total = self._chances(self._nodes)

    def take_window(self, draft_ms: float, now: float) -> DraftWindow | None:
        """All of them, named, or None. They are sent at `now`, in seconds."""
        nodes, self._nodes, self._total = self._nodes, [], 0.0
        return self._outbound.window(self._tree, nodes, draft_ms, now * 1000.0)

    def _chances(self, nodes: Sequence[Node]) -> float:
        total, root_log_prob = 0.0, self._root_log_prob
        for node in nodes:
            total += math.exp(node.path_log_prob - root_log_prob)
        return total
