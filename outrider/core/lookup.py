"""Prompt lookup at the verifier: what the line's own past says comes below the guesses that have arrived.

A drafter's guesses are a message away, and after a rejection often nothing is at hand. The verifier decides a round and
begins the next one at once, and a table of n-grams (`ngram.py`) answers in microseconds: what it says stands below the
root while nothing else does, and below the drafter's last guesses. Like all guesses these are scored only if they are
worth their time (`selection.py`). They last for one round, so that nobody else has to know of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from outrider.core.calibration import Calibration
from outrider.core.evidence import lookup_cell
from outrider.core.ngram import NgramTable, path_context
from outrider.core.tree import LIVE, Node, SpeculationTree

_LOG_CHANCE_MIN = math.log(0.05)
"""Chance from which a guess becomes a node: what is less likely is hardly ever worth a row."""


class Lookup:
    """The verifier's own guesses in one session's tree."""

    __slots__ = ("_asked", "_calibration", "_ngrams", "_tree")

    def __init__(self, ngrams: NgramTable, tree: SpeculationTree, calibration: Calibration) -> None:
        """`ngrams` is a table of the line at whose end `tree` is rooted; `calibration` has the cells of
        `VERIFY_CHANCES`."""
        self._ngrams = ngrams
        self._tree = tree
        self._calibration = calibration
        self._asked: set[Node] = set()
        """Nodes below which there are guesses, nodes or not: none of them had been sent any."""

    def has_guessed(self, node: Node) -> bool:
        """Whether the guesses for the place after `node` are these."""
        return node in self._asked

    def below(self, node: Node) -> Collection[Node]:
        """The guesses for the place after `node`, which has no children: from now on they are."""
        root_log_prob = self._tree.root.path_log_prob
        floor = _LOG_CHANCE_MIN + root_log_prob - node.path_log_prob
        if floor >= 0.0:
            return ()
        chances = self._ngrams.chances(path_context(node, self._tree.root, self._ngrams.context))
        if not chances:
            return ()
        self._asked.add(node)
        log_chance = self._calibration.log_chance
        for token_id, chance in chances.items():
            cell = lookup_cell(chance)
            if log_chance(cell) >= floor:
                self._tree.attach(node, token_id, math.log(chance), cell)
            else:
                node.guesses.append((token_id, cell))
        return node.children.values()

    def withdraw(self) -> None:
        """Takes all that is undecided out of the tree again, as if it had never been guessed."""
        for node in self._asked:
            if node.state is LIVE or node is self._tree.root:
                node.guesses.clear()
                for child in list(node.children.values()):
                    self._tree.drop(child)
        self._asked.clear()

    def commit(self, token_ids: Iterable[int]) -> None:
        """Learns tokens that were decided. The tree stands behind them already."""
        self.withdraw()
        self._ngrams.commit(token_ids)
