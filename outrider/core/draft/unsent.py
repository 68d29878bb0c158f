"""Unsent nodes: what one session has drafted and not told yet."""

from __future__ import annotations

import math
from collections.abc import Iterable

from outrider.core.protocol.messages import DraftWindow
from outrider.core.protocol.naming import Outbound
from outrider.core.protocol.tree import LIVE, Node, SpeculationTree


class Unsent:
    """Nodes of `tree`, parents before children."""

    __slots__ = ("_nodes", "_outbound", "_tree")

    def __init__(self, tree: SpeculationTree) -> None:
        self._tree = tree
        self._outbound = Outbound()
        self._nodes: list[Node] = []

    @property
    def num_live(self) -> int:
        """How many of them are undecided."""
        return sum(node.state is LIVE for node in self._nodes)

    @property
    def gain(self) -> float:
        """How many of them the target is expected to choose."""
        root_log_prob = self._tree.root.path_log_prob
        return sum(math.exp(node.path_log_prob - root_log_prob) for node in self._nodes)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._nodes)

    def add(self, nodes: Iterable[Node]) -> None:
        """These are new in the tree."""
        self._nodes += nodes

    def sweep(self) -> None:
        """A commit may have decided some."""
        self._nodes = [node for node in self._nodes if node.state is LIVE]

    def take_window(self, draft_ms: float, now: float) -> DraftWindow | None:
        """All of them, named, or None. They are sent at `now`, in seconds."""
        nodes, self._nodes = self._nodes, []
        return self._outbound.window(self._tree, nodes, draft_ms, now * 1000.0)
