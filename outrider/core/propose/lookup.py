"""Prompt lookup at the verifier: what the line's own past says comes below the guesses that have arrived.

A drafter's guesses are a message away, and after a rejection often nothing is at hand. The verifier decides a round and
begins the next one at once, and a table of n-grams (`ngram.py`) answers in microseconds: what it says stands below the
root while nothing else does, and below the drafter's last guesses. Like all guesses these are scored only if they are
worth their time (`selection.py`). They last for one round, so that nobody else has to know of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from outrider.core.estimate.calibration import Calibration
from outrider.core.estimate.confidence import lookup_bin
from outrider.core.propose.ngram import HISTORY_TOKENS_MAX, NgramTable, path_context
from outrider.core.protocol.line import Line
from outrider.core.protocol.tree import LIVE, Node, SpeculationTree

_LOG_ACCEPTANCE_MIN = math.log(0.05)
"""Chance from which a guess becomes a node. In replays of the bundled pair at temperature 0.8 (`python -m
bench.simulate.replay --ngram-table`, 50 prompts) 0.03 was no better, and 0.1 took 4 % longer."""

READ_TOKENS_MAX = 512
"""Most tokens of a line that its table reads in one round, in a millisecond: after a long prompt the verifier guesses
some rounds later."""

_ASKING_LOG_ACCEPTANCE_MIN = math.log(0.2)
"""Chance from which a node is worth asking what comes below it. From 0.05 on the same replays take 0.6 % less time, and
asking takes twice as long."""


class Lookup:
    """The verifier's own guesses in one session's tree."""

    __slots__ = ("_asked", "_calibration", "_line", "_ngrams", "_num_read", "_tree")

    def __init__(self, ngrams: NgramTable, line: Line, tree: SpeculationTree, calibration: Calibration) -> None:
        """`ngrams` is an empty table, for `line`, at whose end `tree` is rooted; `calibration` has the cells of
        `VERIFY_PROBABILITIES`."""
        self._ngrams = ngrams
        self._line = line
        self._num_read = max(len(line) - HISTORY_TOKENS_MAX, 0)
        self._tree = tree
        self._calibration = calibration
        self._asked: set[Node] = set()
        """Nodes below which there are guesses, nodes or not: none of them had been sent any."""

    def read_on(self) -> bool:
        """Reads some of what the table does not know of the line. Returns whether it knows all then; before that there
        are no guesses."""
        if self._num_read < len(self._line):
            token_ids = self._line.token_ids[self._num_read : self._num_read + READ_TOKENS_MAX]
            self._ngrams.read(token_ids)
            self._num_read += len(token_ids)
        return self._num_read == len(self._line)

    def has_guessed(self, node: Node) -> bool:
        """Whether the guesses for the place after `node` are these."""
        return node in self._asked

    def below(self, node: Node) -> Collection[Node]:
        """The guesses for the place after `node`, which has no children: from now on they are."""
        log_acceptance = node.path_log_prob - self._tree.root.path_log_prob
        if log_acceptance < _ASKING_LOG_ACCEPTANCE_MIN:
            return ()
        probabilities = self._ngrams.probabilities(path_context(node, self._tree.root, self._ngrams.context))
        if not probabilities:
            return ()
        self._asked.add(node)
        learned, guesses, floor = self._calibration.log_acceptance, node.guesses, _LOG_ACCEPTANCE_MIN - log_acceptance
        for token_id, probability in probabilities.items():
            confidence_bin = lookup_bin(probability)
            guesses.append((token_id, confidence_bin))
            if learned(confidence_bin) >= floor:
                self._tree.add(node, token_id, learned(confidence_bin))
        return node.children.values()

    def num_among(self, nodes: Sequence[Node]) -> int:
        """How many of `nodes` are these guesses."""
        return sum(node.parent in self._asked for node in nodes) if self._asked else 0

    def withdraw(self) -> None:
        """Takes all that is undecided out of the tree again, as if it had never been guessed."""
        for node in self._asked:
            if node.state is LIVE or node is self._tree.root:
                node.guesses.clear()
                self._tree.drop_below(node)
        self._asked.clear()

    def commit(self, token_ids: Sequence[int]) -> None:
        """Learns tokens that were decided. Line and tree have them already."""
        self.withdraw()
        if self._num_read == len(self._line) - len(token_ids):
            self._ngrams.commit(token_ids)
            self._num_read = len(self._line)
