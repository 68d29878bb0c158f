"""The best chain of a speculation tree: what vLLM, which verifies no tree, is given of it. Pure."""

from __future__ import annotations

import math

from outrider.core.protocol.tree import Node, SpeculationTree, path_tokens


def best_chain(tree: SpeculationTree, num_tokens: int) -> list[int]:
    """The path below the root, of at most `num_tokens`, of which the target is expected to accept the most.

    What is accepted of a path in expectation is the sum of the chances that its nodes are reached.
    """
    root = tree.root
    nodes = [node for node in tree.live_nodes() if node.position <= root.position + num_tokens]
    worth: dict[Node, float] = {}
    following: dict[Node, Node] = {}
    for node in reversed(nodes):  # children before parents
        expected = math.exp(node.path_log_prob - root.path_log_prob) + worth.get(node, 0.0)
        assert node.parent is not None
        if expected > worth.get(node.parent, 0.0):
            worth[node.parent], following[node.parent] = expected, node
    end = root
    while end in following:
        end = following[end]
    return path_tokens(root, end)
