"""Outlook: what a draft session will expand, level after level, for as long as nothing arrives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from outrider.core.protocol.tree import Node


class Outlook(NamedTuple):
    """All that decides it; what it depends on besides is what the draft model will propose."""

    root: Node
    nodes: Sequence[Node]
    """What may be expanded next, the likeliest first. The model was fed all that stand above them. The root alone, if
    it was not expanded yet: then the model may lack the end of the line, too."""
    width: int
    """Most children of a node."""
    credit: int
    """How many nodes may still be added."""
    max_length: int
    """What follows a node is drafted if it stands before this position."""
    log_floor: float
    """Least logarithm of the chance of a node, seen from the root, that is worth drafting."""
    log_acceptances: Sequence[float]
    """For each confidence bin (`margin_bin`) the logarithm of the chance that such a guess is right."""


class Expansion(NamedTuple):
    """A node that a level has expanded."""

    session: int
    """Which of the sessions that draft together."""
    origin: int
    """Which of the expansions before it proposed the node; below 0: -1 - its place among the nodes of all outlooks."""
    token_id: int
    """The node's own."""
    token_ids: Sequence[int]
    """What the model proposes below it, best first."""
    bins: Sequence[int]
    """For each its confidence bin; see `margin_bin`."""
