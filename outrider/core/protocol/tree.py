"""The speculation tree (token tree): every draft token not yet decided, rooted at the last committed token.

Drafter, coordinator and verifier each hold a mirror. Mirrors agree by content: a node *is* its path. Ids under which
nodes cross a stream belong to that stream (`naming.py`), not to the tree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

RECENT_COMMITS_MAX = 1024
"""How many committed nodes a tree remembers, so that guesses still in flight find their place. A guess whose parent is
older counts as stale, which is harmless."""


class NodeState(Enum):
    """Where a node stands."""

    LIVE = 1
    COMMITTED = 2
    DROPPED = 3


# Looked up once: before Python 3.12 each look at an enum's member is a call, and here it would be several per node.
LIVE, COMMITTED, DROPPED = NodeState.LIVE, NodeState.COMMITTED, NodeState.DROPPED


class Node:
    """One guessed token after its parent's path."""

    __slots__ = (
        "children",
        "log_prob",
        "mask_depth",
        "node_id",
        "parent",
        "path_log_prob",
        "position",
        "proposals",
        "state",
        "token_id",
    )

    def __init__(
        self, parent: Node | None, position: int, token_id: int, log_prob: float, log_acceptance: float = 0.0
    ) -> None:
        self.parent = parent
        self.position = position
        self.token_id = token_id
        self.log_prob = log_prob
        """Natural logarithm of the chance that the target chooses the token after the parent's path, as its drafter
        claims."""
        self.path_log_prob: float = log_acceptance if parent is None else parent.path_log_prob + log_acceptance
        """Logarithm of the chance that the target chooses all of the path, from the first root on: compare it only
        within one tree, subtract the present root's for the chance itself."""
        self.children: dict[int, Node] = {}
        self.proposals: Sequence[tuple[int, int]] | None = None
        """Token ids that were proposed below it, nodes or not, with their confidence bins; None until then. The
        drafter's mirror alone has them."""
        self.mask_depth = 0
        """How many mask tokens stood for what the model did not know yet when it made the best of its proposals; 0 if
        it was fed the node itself."""
        self.state = LIVE
        self.node_id = 0
        """Id under which the owner of this mirror sent the node on; 0 while it has not."""


def path_tokens(root: Node, node: Node) -> list[int]:
    """The tokens of the path from below `root` to `node`."""
    token_ids: list[int] = []
    while node is not root:
        token_ids.append(node.token_id)
        assert node.parent is not None
        node = node.parent
    return token_ids[::-1]


class Growth(NamedTuple):
    """What a commit did to the tree."""

    followed: bool
    """Whether the new root was a known node. If not, the commit is a rollback."""
    num_dropped: int
    """How many live nodes became void."""


class SpeculationTree:
    """Undecided nodes below `root`, the node of the last committed token."""

    __slots__ = ("_log_acceptance", "_recent", "num_live", "root")

    def __init__(self, position: int, token_id: int, log_acceptance: Callable[[float], float] | None = None) -> None:
        """Roots the tree at the token committed last: `token_id` at absolute `position`.

        `log_acceptance` tells how likely a guess is right, given that its parent is, from what its drafter claims; both
        are natural logarithms. Without it the claim is taken at its word.
        """
        self._log_acceptance = log_acceptance
        self.root = Node(None, position, token_id, 0.0)
        self.root.state = COMMITTED
        self.num_live = 0
        """Number of live nodes; the root is not one of them."""
        self._recent: deque[Node] = deque([self.root], maxlen=RECENT_COMMITS_MAX)

    def committed(self, position: int) -> Node | None:
        """The node committed at `position`, or None if that is too long ago (or not yet)."""
        index = position - self._recent[0].position
        return self._recent[index] if 0 <= index < len(self._recent) else None

    def attach(self, parent: Node, token_id: int, log_prob: float) -> Node | None:
        """Adds a child to `parent`, or finds the one that has the token already.

        Below a node that was committed before the root only the committed token exists: that guess is *absorbed* by the
        committed node. Any other, and any below a dropped node, is stale: None.
        """
        siblings = parent.children
        child = siblings.get(token_id)
        if child is not None:
            return child if child.state is not DROPPED else None
        if parent.state is not LIVE and parent is not self.root:
            return None
        log_acceptance = log_prob if self._log_acceptance is None else self._log_acceptance(log_prob)
        child = siblings[token_id] = Node(parent, parent.position + 1, token_id, log_prob, log_acceptance)
        self.num_live += 1
        return child

    def commit(self, token_ids: Sequence[int]) -> Growth:
        """Moves the root along newly committed `token_ids`, which follow the present root directly.

        Where a child carries the token, it becomes the root and its subtree survives; where none does, the root is a
        fresh node and everything else is dropped.
        """
        followed = True
        num_dropped = 0
        for token_id in token_ids:
            root = self.root
            child = root.children.pop(token_id, None)
            num_dropped += _drop(list(root.children.values()))
            if child is None:
                followed = False
                child = Node(root, root.position + 1, token_id, 0.0)
            else:
                self.num_live -= 1
            child.parent = None
            child.state = COMMITTED
            root.children = {token_id: child}
            self.root = child
            self._recent.append(child)
        self.num_live -= num_dropped
        return Growth(followed, num_dropped)

    def drop(self, node: Node) -> None:
        """Takes a live node and all below it out of the tree: a guess that should not have been made."""
        assert node.parent is not None
        del node.parent.children[node.token_id]
        self.num_live -= _drop([node])

    def live_nodes(self) -> Iterator[Node]:
        """All live nodes, parents before children."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())


def _drop(tops: list[Node]) -> int:
    """Voids the subtrees of `tops`, a list that becomes longer; returns how many nodes there are.

    They lose their children, so that no circle of references keeps them for the garbage collector.
    """
    for node in tops:
        node.state = DROPPED
        if node.children:
            tops.extend(node.children.values())
            node.children.clear()
    return len(tops)
