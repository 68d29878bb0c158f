"""The speculation tree, by example and against a reference that knows nothing but a set of paths."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from outrider.core.protocol.tree import RECENT_COMMITS_MAX, Node, NodeState, SpeculationTree

TOKEN_IDS = st.integers(0, 3)


def grow(tree: SpeculationTree, *token_ids: int) -> Node:
    """Attaches a chain below the root and returns its last node."""
    node = tree.root
    for token_id in token_ids:
        child = tree.attach(node, token_id, -1.0)
        assert child is not None
        node = child
    return node


def test_a_commit_along_a_child_keeps_its_subtree_and_drops_its_siblings() -> None:
    tree = SpeculationTree(4, 9)
    kept, sibling = grow(tree, 1, 2), grow(tree, 5, 6)
    growth = tree.commit([1])
    assert growth == (True, 2)
    assert list(tree.live_nodes()) == [kept]
    assert (tree.root.position, tree.root.token_id, tree.num_live) == (5, 1, 1)
    assert sibling.state is NodeState.DROPPED
    assert kept.parent is tree.root


def test_a_commit_of_an_unknown_token_drops_everything() -> None:
    tree = SpeculationTree(4, 9)
    guess = grow(tree, 1, 2)
    assert tree.commit([7]) == (False, 2)
    assert (tree.root.position, tree.root.token_id, tree.num_live) == (5, 7, 0)
    assert guess.state is NodeState.DROPPED


def test_a_commit_that_leaves_the_tree_on_its_way_is_a_rollback() -> None:
    tree = SpeculationTree(4, 9)
    grow(tree, 1, 2)
    assert tree.commit([1, 3, 4]) == (False, 1)
    assert tree.root.position == 7


def test_committing_nothing_changes_nothing() -> None:
    tree = SpeculationTree(4, 9)
    root = tree.root
    grow(tree, 1)
    assert tree.commit([]) == (True, 0)
    assert tree.root is root
    assert tree.num_live == 1


def test_a_path_is_one_node() -> None:
    tree = SpeculationTree(0, 9)
    node = tree.attach(tree.root, 1, -0.5)
    assert tree.attach(tree.root, 1, -0.7) is node
    assert tree.num_live == 1


def test_a_guess_below_a_committed_node_is_absorbed_or_stale() -> None:
    tree = SpeculationTree(0, 9)
    old_root = tree.root
    tree.commit([1, 2])
    assert tree.attach(old_root, 1, -0.5) is tree.committed(1)
    assert tree.attach(old_root, 3, -0.5) is None
    assert tree.num_live == 0


def test_nothing_grows_below_a_dropped_node() -> None:
    tree = SpeculationTree(0, 9)
    dropped = grow(tree, 1, 2)
    tree.commit([3])
    assert dropped.parent is not None
    assert tree.attach(dropped, 4, -0.5) is None
    assert tree.attach(dropped.parent, 2, -0.5) is None
    assert tree.num_live == 0


def test_path_log_prob_sums_along_the_path() -> None:
    tree = SpeculationTree(0, 9)
    assert grow(tree, 1, 2, 3).path_log_prob == -3.0


def test_recent_commits_are_found_by_position_and_old_ones_are_forgotten() -> None:
    tree = SpeculationTree(10, 9)
    tree.commit([0] * RECENT_COMMITS_MAX)
    last = 10 + RECENT_COMMITS_MAX
    assert tree.committed(last) is tree.root
    assert tree.committed(last + 1) is None
    assert tree.committed(10) is None
    oldest = tree.committed(11)
    assert oldest is not None
    assert oldest.position == 11


class TreeAgainstPaths(RuleBasedStateMachine):
    """A set of live paths and the committed one: no nodes, no links, nothing to get wrong."""

    handles: Bundle[Node] = Bundle("handles")

    @initialize(target=handles)
    def plant(self) -> Node:
        self.tree = SpeculationTree(0, 9)
        self.committed: tuple[int, ...] = (9,)
        self.live: set[tuple[int, ...]] = set()
        self.path_of: dict[int, tuple[int, ...]] = {id(self.tree.root): self.committed}
        self.all_handles = [self.tree.root]
        return self.tree.root

    @rule(target=handles, parent=handles, token_id=TOKEN_IDS)
    def attach(self, parent: Node, token_id: int) -> Node:
        path = (*self.path_of[id(parent)], token_id)
        node = self.tree.attach(parent, token_id, -1.0)
        if path == self.committed[: len(path)]:
            assert node is self.tree.committed(len(path) - 1)
        elif path in self.live or path[:-1] in self.live or path[:-1] == self.committed:
            self.live.add(path)
            assert node is not None
            assert node.state is NodeState.LIVE
        else:
            assert node is None
        return self._known(node, path) if node is not None else parent

    @rule(target=handles, token_ids=st.lists(TOKEN_IDS, max_size=3))
    def commit(self, token_ids: list[int]) -> Node:
        return self._commit(token_ids)

    @rule(target=handles, handle=handles)
    def commit_up_to(self, handle: Node) -> Node:
        """Commits along known nodes, which random tokens seldom do."""
        path = self.path_of[id(handle)]
        return self._commit(list(path[len(self.committed) :]) if path in self.live else [])

    def _commit(self, token_ids: list[int]) -> Node:
        growth = self.tree.commit(token_ids)
        num_before, followed, num_followed = len(self.live), True, 0
        for token_id in token_ids:
            self.committed += (token_id,)
            num_followed += self.committed in self.live
            followed = followed and self.committed in self.live
            self.live = {path for path in self.live if path[:-1][: len(self.committed)] == self.committed}
        assert growth == (followed, num_before - len(self.live) - num_followed)
        return self._known(self.tree.root, self.committed)

    def _known(self, node: Node, path: tuple[int, ...]) -> Node:
        assert self.path_of.setdefault(id(node), path) == path
        self.all_handles.append(node)
        return node

    @invariant()
    def live_nodes_are_the_live_paths(self) -> None:
        found: dict[int, tuple[int, ...]] = {id(self.tree.root): self.committed}
        for node in self.tree.live_nodes():
            assert node.parent is not None
            found[id(node)] = (*found[id(node.parent)], node.token_id)
            assert node.position == len(found[id(node)]) - 1
        del found[id(self.tree.root)]
        assert sorted(found.values()) == sorted(self.live)
        assert self.tree.num_live == len(self.live)

    @invariant()
    def every_node_knows_its_state(self) -> None:
        for node in self.all_handles:
            path = self.path_of[id(node)]
            if path == self.committed[: len(path)]:
                assert node.state is NodeState.COMMITTED
                assert self.tree.committed(node.position) is node
            else:
                assert node.state is (NodeState.LIVE if path in self.live else NodeState.DROPPED)

    @invariant()
    def the_root_is_the_last_committed_token(self) -> None:
        assert self.tree.root.position == len(self.committed) - 1
        assert self.tree.root.token_id == self.committed[-1]
        assert self.tree.root.parent is None


TestTreeAgainstPaths = TreeAgainstPaths.TestCase
TestTreeAgainstPaths.settings = settings(max_examples=80, stateful_step_count=30)
