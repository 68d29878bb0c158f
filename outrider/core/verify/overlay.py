"""What a verifier guesses by itself in one round: an overlay on the speculation tree, which never holds any of it.

A drafter's guesses are a message away, and after a rejection often nothing is at hand. The verifier decides a round and
begins the next one at once, and a proposer (`propose/proposer.py`) answers in microseconds: its guesses stand below the
root while nothing else does, and below the drafter's last guesses. Like all guesses these are scored only if they are
worth their time (`selection.py`). The overlay is thrown away with its round, so nobody else has to know of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from outrider.core.estimate.confidence import lookup_bin
from outrider.core.propose.proposer import Proposer
from outrider.core.protocol.tree import Node, SpeculationTree

_LOG_ACCEPTANCE_MIN = math.log(0.05)
"""Chance from which a guess becomes a node. In replays of the bundled pair at temperature 0.8 (`python -m
bench.simulate.replay --ngram-table`, 50 prompts) 0.03 was no better, and 0.1 took 4 % longer."""

_ASKING_LOG_ACCEPTANCE_MIN = math.log(0.2)
"""Chance from which a node is worth asking what comes below it. From 0.05 on the same replays take 0.6 % less time, and
asking takes twice as long."""

_NOTHING: Mapping[int, Node] = {}


class Overlay:
    """Guesses below the leaves of one session's tree, for one round. Its nodes know their parents, not the reverse."""

    __slots__ = ("_below", "_guesses", "_is_ready", "_log_acceptance", "_proposer", "_tree")

    def __init__(self, tree: SpeculationTree, proposer: Proposer, log_acceptance: Callable[[int], float]) -> None:
        """`log_acceptance` tells how likely guesses of a bin (`lookup_bin`) are right, given that their parent is."""
        self._tree = tree
        self._proposer = proposer
        self._log_acceptance = log_acceptance
        self._is_ready: bool | None = None
        self._below: dict[Node, Mapping[int, Node]] = {}
        """For each node that was asked about its children here, by token."""
        self._guesses: dict[Node, list[tuple[int, int]]] = {}
        """For each node below which anything was guessed the token ids, nodes or not, with their bins."""

    def prepare(self) -> None:
        """The round begins, or begins again."""
        if self._is_ready is None:
            self._is_ready = self._proposer.prepare()

    def below(self, node: Node) -> Mapping[int, Node]:
        """The guesses for the place after `node`, a leaf of the tree or a guess, by token: the same all round."""
        below = self._below.get(node)
        if below is None:
            below = self._below[node] = self._propose(node) if self._is_ready else _NOTHING
        return below

    def made(self, node: Node, token_id: int) -> Node | None:
        """The guess of that token below `node`, if it was made."""
        return self._below.get(node, _NOTHING).get(token_id)

    def guesses(self, node: Node) -> Sequence[tuple[int, int]]:
        """What was guessed for the place after `node`, nodes or not: token ids with their bins."""
        return self._guesses.get(node, ())

    def holds(self, node: Node) -> bool:
        """Whether `node` is one of these guesses."""
        return node.parent in self._guesses

    def num_among(self, nodes: Sequence[Node]) -> int:
        """How many of `nodes` are these guesses."""
        return sum(map(self.holds, nodes)) if self._guesses else 0

    def _propose(self, node: Node) -> Mapping[int, Node]:
        root = self._tree.root
        log_acceptance = node.path_log_prob - root.path_log_prob
        if log_acceptance < _ASKING_LOG_ACCEPTANCE_MIN:
            return _NOTHING
        probabilities = self._proposer.propose(root, node)
        if not probabilities:
            return _NOTHING
        learned, floor, position = self._log_acceptance, _LOG_ACCEPTANCE_MIN - log_acceptance, node.position + 1
        guesses = self._guesses[node] = [
            (token_id, lookup_bin(probability)) for token_id, probability in probabilities.items()
        ]
        return {
            token_id: Node(node, position, token_id, learned_log, learned_log)
            for token_id, confidence_bin in guesses
            if (learned_log := learned(confidence_bin)) >= floor
        }
