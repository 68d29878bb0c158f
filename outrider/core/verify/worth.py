"""What guesses were worth, in tokens: a right one is one, and each that was scored costs other sessions its price."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from outrider.core.estimate.confidence import claim_bin
from outrider.core.protocol.tree import Node


def worths(root: Node, token_ids: Sequence[int], log_acceptance_min: float, price: float) -> list[float]:
    """Of the guesses for each place that `token_ids`, after `root`, decide; see `DraftWait.observe_places`.

    Those count that were likely enough to be scored, by `log_acceptance_min`; one costs `price`.
    """
    found: list[float] = []
    node: Node | None = root
    for token_id in token_ids:
        if node is None or not node.children:
            break
        floor, worth = node.path_log_prob + log_acceptance_min, 0.0
        for child_id, child in node.children.items():
            if child.path_log_prob >= floor:
                worth += (child_id == token_id) - price
        found.append(worth)
        node = node.children.get(token_id)
    return found


def worths_of_late(
    guesses: Iterable[tuple[int, float, bool]],
    log_acceptance: Callable[[int], float],
    log_acceptance_min: float,
    price: float,
) -> list[float]:
    """The same for guesses that came after their place was decided: rank, claimed log-probability, whether right."""
    found: list[float] = []
    for rank, log_prob, right in guesses:
        if rank == 0:
            found.append(0.0)
        if log_acceptance(claim_bin(log_prob)) >= log_acceptance_min:
            found[-1] += right - price
    return found
