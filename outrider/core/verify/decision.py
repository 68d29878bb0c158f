"""A round's decision: how far the target chose what was scored, and the token after that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from outrider.core.protocol.ending import Ending
from outrider.core.protocol.messages import FinishReason
from outrider.core.protocol.tree import Node


class Decision(NamedTuple):
    """What one round commits."""

    position: int
    token_ids: list[int]
    num_accepted: int
    rows: list[int]
    """For each committed token the row of `choices` that chose it."""
    bonus: bool
    """Whether the next token follows a path that was accepted to its end, rather than a rejection."""
    finish_reason: FinishReason | None
    num_prompt_lookup: int = 0
    """How many of the scored nodes the session looked up itself."""
    num_accepted_prompt_lookup: int = 0
    """How many of the accepted ones."""
    num_prediction: int = 0
    """How many of the scored nodes came from the prediction."""
    num_accepted_prediction: int = 0
    """How many of the accepted ones."""


def follow(
    root: Node, nodes: Sequence[Node], choices: Sequence[int], ending: Ending
) -> tuple[Decision, Sequence[Node]]:
    """The path that the target chose from `root`, the line's last token, along the scored `nodes`: and which of these.

    `choices[0]` is the target's token after the root, `choices[i + 1]` the one after `nodes[i]`.
    """
    rows_below: dict[Node | None, dict[int, int]] = {}
    for row, node in enumerate(nodes, 1):
        rows_below.setdefault(node.parent, {})[node.token_id] = row
    position = root.position + 1
    token_ids: list[int] = []
    rows: list[int] = []
    accepted: list[Node] = []
    reason: FinishReason | None = None
    node, row, bonus = root, 0, False
    while row is not None and reason is None:
        token_id = choices[row]
        token_ids.append(token_id)
        rows.append(row)
        reason = ending.reason(token_id, position + len(token_ids))
        below = rows_below.get(node)
        bonus = bool(nodes) and below is None
        row = below.get(token_id) if below is not None else None
        if row is not None:
            node = nodes[row - 1]
            accepted.append(node)
    return Decision(position, token_ids, len(accepted), rows, bonus, reason), accepted
