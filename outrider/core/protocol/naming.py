"""Ids of draft tokens (nodes) on one stream: the sender chooses them, as shorthand for paths.

Ids count up from 1 without gaps and are never used again, so a receiver can tell a window that it has seen, a
parent that has meanwhile become void, and a parent that never existed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from outrider.core.protocol.errors import ProtocolViolationError
from outrider.core.protocol.messages import DraftWindow
from outrider.core.protocol.tree import COMMITTED, LIVE, RECENT_COMMITS_MAX, Node, SpeculationTree

WINDOW_NODES_MAX = 256
"""Most nodes in one window; more is a protocol violation."""

_SWEEP_NAMES_MIN = 256
"""Names kept before the first sweep for void ones; afterwards a sweep runs each time their number has doubled."""


class Outbound:
    """Gives this mirror's nodes their ids on one outgoing stream."""

    __slots__ = ("_last_id",)

    def __init__(self) -> None:
        self._last_id = 0

    def window(
        self, tree: SpeculationTree, nodes: Iterable[Node], draft_ms: float = 0.0, sent_ms: float = 0.0
    ) -> DraftWindow | None:
        """Names the live ones among `nodes` (parents first, none named before); None if none is live."""
        live = [node for node in nodes if node.state is LIVE]
        if not live:
            return None
        root, node_id = tree.root, self._last_id
        parent_ids: list[int] = []
        for node in live:
            node_id += 1
            node.node_id = node_id
            parent = node.parent
            assert parent is not None
            # `base` names the root for every receiver, even one that was too far ahead to know the root's own id.
            parent_ids.append(0 if parent is root else parent.node_id)
        first_id, self._last_id = self._last_id + 1, node_id
        return DraftWindow(
            base=root.position,
            first_id=first_id,
            parent_ids=parent_ids,
            token_ids=[node.token_id for node in live],
            log_probs=[node.log_prob for node in live],
            draft_ms=draft_ms,
            sent_ms=sent_ms,
        )


class Grafted(NamedTuple):
    """What became of a window's nodes."""

    added: list[Node]
    """Nodes that are new in the tree, parents first."""
    num_known: int
    """Nodes that the tree held already, absorbed by committed ones among them."""
    num_stale: int
    """Nodes whose place has been decided otherwise."""
    late: list[tuple[int, float, bool]]
    """Guesses for a place that had been decided already: rank among those, what was claimed, whether it is right."""

    @property
    def num_news(self) -> int:
        """Nodes named for the first time; those that an earlier delivery of the window brought do not count."""
        return len(self.added) + self.num_known + self.num_stale


class Inbound:
    """Finds the nodes that a peer names on one incoming stream."""

    __slots__ = ("_last_id", "_max_live_nodes", "_nodes", "_sweep_at", "_vocab_size")

    def __init__(self, *, vocab_size: int, max_live_nodes: int) -> None:
        """Token ids must be below `vocab_size`; the tree may hold `max_live_nodes` (the credit granted)."""
        self._vocab_size = vocab_size
        self._max_live_nodes = max_live_nodes
        self._last_id = 0
        self._nodes: dict[int, Node] = {}
        self._sweep_at = _SWEEP_NAMES_MIN

    def graft(self, tree: SpeculationTree, window: DraftWindow) -> Grafted:
        """Adds a window's nodes to `tree`. A window seen before changes nothing.

        Raises ProtocolViolationError if the window breaks the protocol; the tree then holds none of its nodes that were
        not yet checked, and the stream must end.
        """
        self._check(tree, window)
        added: list[Node] = []
        late: list[tuple[int, float, bool]] = []
        late_parent: Node | None = None
        rank = num_known = num_stale = 0
        nodes, root, base = self._nodes, tree.root, tree.committed(window.base)
        last_id, num_live = self._last_id, tree.num_live
        for node_id, (parent_id, token_id, log_prob) in enumerate(
            zip(window.parent_ids, window.token_ids, window.log_probs, strict=True), window.first_id
        ):
            if node_id <= last_id:
                continue
            self._last_id = node_id
            parent = nodes.get(parent_id) if parent_id else base
            if parent is None:
                num_stale += 1
                continue
            node = tree.attach(parent, token_id, log_prob)
            if parent.state is COMMITTED and parent is not root:
                rank = rank + 1 if parent is late_parent else 0
                late_parent = parent
                late.append((rank, log_prob, node is not None))
            if node is None:
                num_stale += 1
                continue
            nodes[node_id] = node
            if tree.num_live > num_live:
                num_live += 1
                added.append(node)
            else:
                num_known += 1
        if tree.num_live > self._max_live_nodes:
            raise ProtocolViolationError(
                f"{tree.num_live} live draft nodes exceed the credit of {self._max_live_nodes}; wait for a commit"
            )
        self._sweep(tree)
        return Grafted(added, num_known, num_stale, late)

    def _check(self, tree: SpeculationTree, window: DraftWindow) -> None:
        num_nodes = len(window.token_ids)
        if len(window.parent_ids) != num_nodes or len(window.log_probs) != num_nodes:
            raise ProtocolViolationError("parent_ids, token_ids and log_probs of a window must have one length")
        if num_nodes > WINDOW_NODES_MAX:
            raise ProtocolViolationError(f"a window of {num_nodes} nodes exceeds the bound of {WINDOW_NODES_MAX}")
        if not 1 <= window.first_id <= self._last_id + 1:
            raise ProtocolViolationError(
                f"first_id {window.first_id} leaves a gap: ids count up from 1, the next one is {self._last_id + 1}"
            )
        if window.base > tree.root.position:
            raise ProtocolViolationError(
                f"base {window.base} is not committed: the line ends at position {tree.root.position}"
            )
        for name, milliseconds in (("draft_ms", window.draft_ms), ("sent_ms", window.sent_ms)):
            if not 0.0 <= milliseconds < math.inf:
                raise ProtocolViolationError(f"{name} {milliseconds} is not a finite number of at least 0")
        if not num_nodes:
            return
        for node_id, parent_id in enumerate(window.parent_ids, window.first_id):
            if not 0 <= parent_id < node_id:
                raise ProtocolViolationError(f"node {node_id} names the unknown parent {parent_id}")
        for token_id in (min(window.token_ids), max(window.token_ids)):
            if not 0 <= token_id < self._vocab_size:
                raise ProtocolViolationError(
                    f"token id {token_id} is out of range: the vocabulary has {self._vocab_size}"
                )
        # The sum shows what is not a number or infinite, wherever it stands; finite ones may add up to infinity, too.
        if max(window.log_probs) > 0.0 or not math.isfinite(sum(window.log_probs)):
            for log_prob in window.log_probs:
                if not (log_prob <= 0.0 and math.isfinite(log_prob)):
                    raise ProtocolViolationError(f"log-probability {log_prob} is not a finite number of at most 0")

    def _sweep(self, tree: SpeculationTree) -> None:
        if len(self._nodes) < self._sweep_at:
            return
        oldest = tree.root.position - RECENT_COMMITS_MAX
        self._nodes = {
            node_id: node
            for node_id, node in self._nodes.items()
            if node.state is LIVE or (node.state is COMMITTED and node.position > oldest)
        }
        if len(self._nodes) > self._max_live_nodes + RECENT_COMMITS_MAX:
            raise ProtocolViolationError(f"{len(self._nodes)} ids name fewer nodes; give each path one id")
        self._sweep_at = max(_SWEEP_NAMES_MIN, 2 * len(self._nodes))
