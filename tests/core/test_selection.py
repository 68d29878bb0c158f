"""Which nodes are worth a place, against the plain definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outrider.core.selection import most_probable, paths_to
from outrider.core.tree import Node, SpeculationTree


@st.composite
def trees(draw: st.DrawFn) -> SpeculationTree:
    """Random trees of up to 20 nodes at positions from 5 on."""
    tree = SpeculationTree(4, 0)
    nodes = [tree.root]
    for _ in range(draw(st.integers(0, 20))):
        parent = nodes[draw(st.integers(0, len(nodes) - 1))]
        node = tree.attach(parent, draw(st.integers(0, 4)), -draw(st.integers(0, 8)) / 4)
        assert node is not None
        nodes.append(node)
    return tree


def path(node: Node, root: Node) -> list[Node]:
    """The nodes from below `root` to `node`."""
    found: list[Node] = []
    while node is not root:
        found.append(node)
        assert node.parent is not None
        node = node.parent
    return found[::-1]


@given(trees(), st.integers(0, 10), st.integers(3, 10))
def test_the_most_probable_nodes_come_with_their_parents(tree: SpeculationTree, limit: int, max_position: int) -> None:
    chosen = most_probable(tree, limit, max_position)
    eligible = sorted((node.path_log_prob for node in tree.live_nodes() if node.position <= max_position), reverse=True)
    assert [node.path_log_prob for node in chosen] == eligible[:limit]
    placed = [tree.root]
    for node in chosen:
        assert node.parent in placed
        placed.append(node)


@given(trees(), st.data())
def test_paths_hold_each_ancestor_once_and_before_its_children(tree: SpeculationTree, data: st.DataObject) -> None:
    live = list(tree.live_nodes())
    wanted = [node for node in live if data.draw(st.booleans())]
    found = paths_to(wanted, tree.root)
    assert {id(node) for node in found} == {id(step) for node in wanted for step in path(node, tree.root)}
    placed = [tree.root]
    for node in found:
        assert node.parent in placed
        assert node not in placed
        placed.append(node)
