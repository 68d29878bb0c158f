"""What a verifier guesses by itself in one session: its proposers, and the overlay of the round at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from outrider.core.estimate.confidence import claim_bin
from outrider.core.propose.constrained import allowed, proposer_of
from outrider.core.propose.constraint import Constraint
from outrider.core.propose.lookup import Ngrams
from outrider.core.propose.prediction import Prediction
from outrider.core.propose.proposer import Proposer
from outrider.core.propose.recall import Recall
from outrider.core.protocol.line import Line
from outrider.core.protocol.tree import Node, SpeculationTree
from outrider.core.verify.overlay import Overlay


class OwnGuesses:
    """Guesses from the session's own line, from its client's prediction, and from recent answers."""

    def __init__(
        self,
        tree: SpeculationTree,
        line: Line,
        log_acceptance: Callable[[int], float],
        *,
        ngram_table: Callable[[], Ngrams] | None,
        prediction: Prediction | None,
        recall: Recall | None,
        constraint: Constraint | None,
        is_wanted: bool,
    ) -> None:
        """The root of `tree` is the end of `line`. `log_acceptance` tells how likely guesses of a bin are right.

        Nothing is guessed unless that is wanted.
        """
        self._tree = tree
        self._line = line
        self._log_acceptance = log_acceptance
        self._ngram_table = ngram_table
        self._constraint = constraint
        self._proposer: Proposer | None = None
        self._prediction = prediction
        self._recall = recall
        self._predicting = allowed(constraint, prediction)
        self._recalling = allowed(constraint, recall)
        self._is_wanted = is_wanted
        self.overlay: Overlay | None = None
        """Of this round; None if nothing is guessed here."""
        self.renew()

    def renew(self) -> None:
        """What was guessed is void, since something has changed."""
        self.overlay = None
        if not self._is_wanted:
            return
        self._proposer = self._proposer or proposer_of(self._line, self._ngram_table, self._constraint)
        if self._proposer is not None or self._predicting is not None or self._recalling is not None:
            self.overlay = Overlay(self._tree, self._proposer, self._log_acceptance, self._predicting, self._recalling)

    def commit(self, token_ids: Sequence[int]) -> None:
        """The line has grown by `token_ids`."""
        if self.overlay is None:
            return
        for proposer in (self._proposer, self._prediction, self._recall):
            if proposer is not None:
                proposer.commit(token_ids)
        self.renew()

    def drafted_first(self, nodes: Sequence[Node]) -> Sequence[Node]:
        """Still with parents before children: nothing that was drafted stands below what was guessed here."""
        return nodes if self.overlay is None else sorted(nodes, key=self.overlay.holds)

    def decided(self, token_ids: Sequence[int]) -> Iterator[tuple[int, Sequence[tuple[int, int]]]]:
        """The places that `token_ids` are about to decide, each with what was guessed for it: by the drafter or else
        here, and by the prediction, asked for or not. See `calibration.decided`."""
        node: Node | None = self._tree.root
        for token_id in token_ids:
            if node is None:
                break
            if node.children:
                yield token_id, [(child.token_id, claim_bin(child.log_prob)) for child in node.children.values()]
                node = node.children.get(token_id)
            elif self.overlay is None:
                break
            else:
                yield token_id, self.overlay.guesses(node)
                node = self.overlay.made(node, token_id)
        if self._prediction is not None:
            yield from self._prediction.guesses(token_ids)
