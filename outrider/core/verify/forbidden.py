"""Forbidden guesses: what a session's constraint takes out of its tree, since it would be scored in vain."""

from __future__ import annotations

from outrider.core.propose.constraint import Constraint
from outrider.core.protocol.naming import Grafted
from outrider.core.protocol.tree import LIVE, SpeculationTree, path_tokens


def without_forbidden(tree: SpeculationTree, grafted: Grafted, constraint: Constraint) -> Grafted:
    """What is left of `grafted` when `tree` has lost those of its nodes that the constraint forbids."""
    for node in grafted.added:
        if node.state is LIVE and not constraint.allows(path_tokens(tree.root, node)):
            tree.drop(node)
    return grafted._replace(added=[node for node in grafted.added if node.state is LIVE])
