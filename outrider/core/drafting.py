"""A draft session: where the drafter should look next, and what it has to tell."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence

from outrider.core.line import Line
from outrider.core.messages import DraftOpen, Window
from outrider.core.naming import Outbound
from outrider.core.tree import Growth, Node, NodeState, SpeculationTree


class DraftSession:
    """One session's line and tree as the drafter sees them."""

    def __init__(self, opening: DraftOpen) -> None:
        self.line = Line(opening.token_ids, opening.num_prompt_tokens)
        self.tree = SpeculationTree(len(self.line) - 1, self.line.token_ids[-1])
        self._max_run_ahead = opening.max_run_ahead
        self._tree_width = opening.tree_width
        self._max_length = opening.max_length
        self._outbound = Outbound()
        self._frontier: list[tuple[float, int, Node]] = []
        self._num_pushed = 0
        self._unsent: list[Node] = []

    def commit(self, position: int, token_ids: Sequence[int]) -> Growth:
        """Moves the line and the tree along. Applying it twice changes nothing.

        Raises ProtocolViolationError for a gap or a contradiction.
        """
        return self.tree.commit(self.line.commit(position, token_ids))

    @property
    def num_sent_live(self) -> int:
        """How many nodes that were sent are still undecided."""
        return self.tree.num_live - sum(node.state is NodeState.LIVE for node in self._unsent)

    def frontier(self, limit: int) -> list[Node]:
        """At most `limit` nodes to expand next, most probable path first.

        The root comes before everything else. Empty when the credit is used up or the line's end is reached.
        """
        num_allowed = min(limit, (self._max_run_ahead - self.tree.num_live) // self._tree_width)
        if num_allowed <= 0:
            return []
        root = self.tree.root
        if not root.expanded:
            return [root] if root.position + 1 < self._max_length else []
        chosen: list[Node] = []
        while self._frontier and len(chosen) < num_allowed:
            node = heapq.heappop(self._frontier)[2]
            if node.state is NodeState.LIVE and not node.expanded:
                chosen.append(node)
        return chosen

    def postpone(self, nodes: Iterable[Node]) -> None:
        """Gives nodes that were chosen but not expanded back to the frontier."""
        for node in nodes:
            self._push(node)

    def expand(self, parent: Node, token_ids: Sequence[int], log_probs: Sequence[float]) -> None:
        """Adds the draft model's proposals below `parent`, best first, but for those of probability 0."""
        parent.expanded = True
        for token_id, log_prob in zip(token_ids, log_probs, strict=True):
            if log_prob == -math.inf:
                continue
            child = self.tree.attach(parent, token_id, min(log_prob, 0.0))
            if child is not None and child.state is NodeState.LIVE:
                self._unsent.append(child)
                if child.position + 1 < self._max_length:
                    self._push(child)

    def take_window(self, draft_ms: float) -> Window | None:
        """What has not been sent yet, or None."""
        unsent, self._unsent = self._unsent, []
        return self._outbound.window(self.tree, unsent, draft_ms)

    def _push(self, node: Node) -> None:
        if node is self.tree.root:
            return
        self._num_pushed += 1
        heapq.heappush(self._frontier, (-node.path_log_prob, self._num_pushed, node))
