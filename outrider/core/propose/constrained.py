"""Constrained guesses: each forced token of a constraint, and of another proposer's guesses those that it allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from outrider.core.propose.constraint import Constraint
from outrider.core.propose.lookup import PromptLookup
from outrider.core.propose.ngram import NgramTable
from outrider.core.propose.proposer import CERTAIN, Proposer
from outrider.core.protocol.line import Line
from outrider.core.protocol.tree import Node, path_tokens


class ConstrainedProposer:
    """A `Proposer`. What is forced needs no other guess."""

    __slots__ = ("_constraint", "_inner", "_is_inner_ready")

    def __init__(self, constraint: Constraint, inner: Proposer | None) -> None:
        """`inner` guesses where nothing is forced. The constraint is told elsewhere of what was decided."""
        self._constraint = constraint
        self._inner = inner
        self._is_inner_ready = False

    def prepare(self) -> bool:
        """See `Proposer.prepare`."""
        self._is_inner_ready = self._inner is not None and self._inner.prepare()
        return True

    def propose(self, root: Node, node: Node) -> Mapping[int, float]:
        """See `Proposer.propose`."""
        path = path_tokens(root, node)
        token_id = self._constraint.forced(path)
        if token_id is not None:
            return {token_id: CERTAIN}
        if self._inner is None or not self._is_inner_ready:
            return {}
        guesses = self._inner.propose(root, node)
        return {token_id: each for token_id, each in guesses.items() if self._constraint.allows([*path, token_id])}

    def commit(self, token_ids: Sequence[int]) -> None:
        """See `Proposer.commit`."""
        if self._inner is not None:
            self._inner.commit(token_ids)


def proposer_of(
    line: Line, ngram_table: Callable[[], NgramTable] | None, constraint: Constraint | None
) -> Proposer | None:
    """What guesses for a session at its verifier: the table that `ngram_table` makes for its line, and `constraint`."""
    lookup = None if ngram_table is None else PromptLookup(ngram_table(), line)
    return lookup if constraint is None else ConstrainedProposer(constraint, lookup)
