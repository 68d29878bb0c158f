"""Constrained guesses: each forced token of a constraint, and of another proposer's guesses those that it allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from outrider.core.propose.constraint import Constraint
from outrider.core.propose.lookup import Ngrams, PromptLookup
from outrider.core.propose.proposer import CERTAIN, Proposer
from outrider.core.protocol.line import Line
from outrider.core.protocol.tree import Node, path_tokens


class AllowedProposer:
    """A `Proposer`: what another one guesses, as far as a constraint allows it."""

    __slots__ = ("_constraint", "_inner")

    def __init__(self, constraint: Constraint, inner: Proposer) -> None:
        """The constraint is told elsewhere of what was decided."""
        self._constraint = constraint
        self._inner = inner

    def prepare(self) -> bool:
        """See `Proposer.prepare`."""
        return self._inner.prepare()

    def propose(self, root: Node, node: Node) -> Mapping[int, float]:
        """See `Proposer.propose`."""
        guesses = self._inner.propose(root, node)
        if not guesses:
            return guesses
        path = path_tokens(root, node)
        return {token_id: each for token_id, each in guesses.items() if self._constraint.allows([*path, token_id])}

    def commit(self, token_ids: Sequence[int]) -> None:
        """See `Proposer.commit`."""
        self._inner.commit(token_ids)


def allowed(constraint: Constraint | None, proposer: Proposer | None) -> Proposer | None:
    """What `proposer` guesses, as far as the `constraint` allows it, if there is one."""
    return proposer if constraint is None or proposer is None else AllowedProposer(constraint, proposer)


class ConstrainedProposer:
    """A `Proposer`. What is forced needs no other guess."""

    __slots__ = ("_constraint", "_inner", "_is_inner_ready")

    def __init__(self, constraint: Constraint, inner: Proposer | None) -> None:
        """`inner` guesses where nothing is forced. The constraint is told elsewhere of what was decided."""
        self._constraint = constraint
        self._inner = allowed(constraint, inner)
        self._is_inner_ready = False

    def prepare(self) -> bool:
        """See `Proposer.prepare`."""
        self._is_inner_ready = self._inner is not None and self._inner.prepare()
        return True

    def propose(self, root: Node, node: Node) -> Mapping[int, float]:
        """See `Proposer.propose`."""
        token_id = self._constraint.forced(path_tokens(root, node))
        if token_id is not None:
            return {token_id: CERTAIN}
        return self._inner.propose(root, node) if self._inner is not None and self._is_inner_ready else {}

    def commit(self, token_ids: Sequence[int]) -> None:
        """See `Proposer.commit`."""
        if self._inner is not None:
            self._inner.commit(token_ids)


def proposer_of(line: Line, ngram_table: Callable[[], Ngrams] | None, constraint: Constraint | None) -> Proposer | None:
    """What guesses for a session at its verifier: the table that `ngram_table` makes for its line, and `constraint`."""
    lookup = None if ngram_table is None else PromptLookup(ngram_table(), line)
    return lookup if constraint is None else ConstrainedProposer(constraint, lookup)
