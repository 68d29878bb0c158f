"""Unsent nodes: what one session has drafted and not told yet, and when it is worth a message."""

from __future__ import annotations

import math
from collections.abc import Iterable

from outrider.core.protocol.messages import DraftWindow
from outrider.core.protocol.naming import Outbound
from outrider.core.protocol.tree import LIVE, Node, SpeculationTree

WINDOW_GAIN_MIN = 0.1
"""Expected tokens for which a window is sent at once: a message costs the three processes about 0.3 ms together, a
token of a small target about 3 ms."""

COALESCE_SHARE = 0.25
"""Nodes of less gain are gathered for this share of a verify step before they are sent: a quarter costs a node little
freshness and saves most messages."""


class Unsent:
    """Nodes of `tree`, parents before children. All times are in seconds, by any clock that only rises."""

    __slots__ = ("_last_sent", "_nodes", "_outbound", "_tree")

    def __init__(self, tree: SpeculationTree) -> None:
        self._tree = tree
        self._outbound = Outbound()
        self._nodes: list[Node] = []
        self._last_sent = 0.0

    @property
    def num_live(self) -> int:
        """How many of them are undecided."""
        return sum(node.state is LIVE for node in self._nodes)

    def add(self, nodes: Iterable[Node]) -> None:
        """These are new in the tree."""
        self._nodes += nodes

    def sweep(self) -> None:
        """A commit may have decided some."""
        self._nodes = [node for node in self._nodes if node.state is LIVE]

    def is_due(self, now: float, verify_seconds: float, idle: bool) -> bool:
        """Whether they should be sent now: a verify step takes `verify_seconds`, and `idle` says that no step of this
        session follows."""
        if not self._nodes:
            return False
        if idle or now - self._last_sent >= COALESCE_SHARE * verify_seconds:
            return True
        return self._gain() >= WINDOW_GAIN_MIN

    def num_levels(self, level_gain: float, level_seconds: float, now: float, verify_seconds: float) -> int:
        """How many levels may follow before they are due, each worth at most `level_gain` expected tokens and taking
        `level_seconds`; one at least, as that is not known before."""
        num_by_gain = (WINDOW_GAIN_MIN - self._gain()) / level_gain
        num_by_time = (self._last_sent + COALESCE_SHARE * verify_seconds - now) / (level_seconds or math.inf)
        return max(int(min(num_by_gain, num_by_time)), 1)

    def take_window(self, draft_ms: float, now: float) -> DraftWindow | None:
        """All of them, named, or None. From then on they are sent."""
        nodes, self._nodes = self._nodes, []
        self._last_sent = now
        return self._outbound.window(self._tree, nodes, draft_ms)

    def _gain(self) -> float:
        root_log_prob = self._tree.root.path_log_prob
        return sum(math.exp(node.path_log_prob - root_log_prob) for node in self._nodes)
