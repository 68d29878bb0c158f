"""What a verifier guesses by itself in one round: an overlay on the speculation tree, which never holds any of it.

A drafter's guesses are a message away, and after a rejection often nothing is at hand. The verifier decides a round and
begins the next one at once, and a proposer (`propose/proposer.py`) answers in microseconds: its guesses stand below the
root while nothing else does, and below the drafter's last guesses. What recent answers go on with (`propose/recall.py`)
stands beside what the line itself repeats; of the same token the likelier guess counts. A client's prediction speaks at
every node: where it guesses what a drafter has guessed too, the likelier of both nodes asks for a place. Like all
guesses these are scored only if they are worth their time (`selection.py`). The overlay is thrown away with its round,
so nobody else has to know of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

from outrider.core.estimate.confidence import lookup_bin, prediction_bin, recall_bin
from outrider.core.propose.proposer import CERTAIN, Proposer
from outrider.core.protocol.tree import Node, SpeculationTree

_LOG_ACCEPTANCE_MIN = math.log(0.05)
"""Chance from which a guess becomes a node. In replays of the bundled pair at temperature 0.8 (`python -m
bench.simulate.replay --ngram-table`, 50 prompts) 0.03 was no better, and 0.1 took 4 % longer."""

_ASKING_LOG_ACCEPTANCE_MIN = math.log(0.2)
"""Chance from which a node is worth asking what comes below it. From 0.05 on the same replays take 0.6 % less time, and
asking takes twice as long."""

_CERTAIN_LOG_ACCEPTANCE = math.log(0.999)
"""What is taken for certain: a little less, so that shorter paths come first."""
_LIKELY = math.log(0.5)
"""Chance of the predicted next token from which no round waits for drafts: they seldom go as deep as a prediction."""

_NOTHING: Mapping[int, Node] = {}
_SILENCE: Mapping[int, float] = {}


class Overlay:
    """Guesses for one session's tree, for one round. Its nodes know their parents, not the reverse."""

    __slots__ = (
        "_below",
        "_guesses",
        "_is_predicted",
        "_is_ready",
        "_is_recalled",
        "_log_acceptance",
        "_predicted",
        "_prediction",
        "_proposer",
        "_recall",
        "_tree",
    )

    def __init__(
        self,
        tree: SpeculationTree,
        proposer: Proposer | None,
        log_acceptance: Callable[[int], float],
        prediction: Proposer | None = None,
        recall: Proposer | None = None,
    ) -> None:
        """`log_acceptance` tells how likely guesses of a bin are right, given that their parent is: those of `proposer`
        in a `lookup_bin`, those of `prediction` in a `prediction_bin`, those of `recall`, which speaks below both, in a
        `recall_bin`."""
        self._tree = tree
        self._proposer = proposer
        self._prediction = prediction
        self._recall = recall
        self._log_acceptance = log_acceptance
        self._is_ready: bool | None = None
        self._is_predicted = self._is_recalled = False
        self._below: dict[Node, Mapping[int, Node]] = {}
        """For each node that was asked about its children here, by token."""
        self._guesses: dict[Node, list[tuple[int, int]]] = {}
        """For each node below which anything was guessed the token ids, nodes or not, with their bins."""
        self._predicted: dict[Node, Node | None] = {}
        """For each node that the prediction was asked about what it has there, if that is a node."""

    def prepare(self) -> None:
        """The round begins, or begins again."""
        if self._is_ready is None:
            self._is_ready = self._proposer is not None and self._proposer.prepare()
            self._is_predicted = self._prediction is not None and self._prediction.prepare()
            self._is_recalled = self._recall is not None and self._recall.prepare()

    def children(self, node: Node) -> Collection[Node]:
        """What may ask for a place after `node`: what the drafter has sent or, if that is nothing, what was looked up,
        and what is predicted. The same all round."""
        others = node.children or self.below(node)
        if self._prediction is None:
            return others.values()
        predicted = self.predicted(node)
        if predicted is None:
            return others.values()
        rival = others.get(predicted.token_id)
        if rival is not None and rival.path_log_prob >= predicted.path_log_prob:
            return others.values()
        return [predicted, *(other for other in others.values() if other is not rival)]

    def predicted(self, node: Node) -> Node | None:
        """What the prediction has after `node`, any node, if that is likely enough for one."""
        if not self._is_predicted or self._prediction is None:
            return None
        if node not in self._predicted:
            self._predicted[node] = self._predict(self._prediction, node)
        return self._predicted[node]

    def is_predicted(self) -> bool:
        """Whether the line's next token is more likely than not the prediction's. Begins the round."""
        self.prepare()
        root = self._tree.root
        predicted = self.predicted(root)
        return predicted is not None and predicted.path_log_prob - root.path_log_prob >= _LIKELY

    def below(self, node: Node) -> Mapping[int, Node]:
        """What was looked up after `node`, a leaf of the tree or a guess, by token: the same all round."""
        below = self._below.get(node)
        if below is None:
            below = self._below[node] = self._propose(node) if self._is_ready or self._is_recalled else _NOTHING
        return below

    def made(self, node: Node, token_id: int) -> Node | None:
        """The guess of that token below `node`, if it was made: of both kinds the likelier one."""
        looked_up, predicted = self._below.get(node, _NOTHING).get(token_id), self._predicted.get(node)
        if predicted is None or predicted.token_id != token_id:
            return looked_up
        return max(predicted, looked_up or predicted, key=lambda guess: guess.path_log_prob)

    def guesses(self, node: Node) -> Sequence[tuple[int, int]]:
        """What was looked up for the place after `node`, nodes or not: token ids with their bins; nothing certain."""
        return self._guesses.get(node, ())

    def num_own(self, nodes: Sequence[Node]) -> tuple[int, int]:
        """How many of `nodes` were looked up, and how many predicted."""
        return self.num_looked_up(nodes), sum(map(self._is_from_prediction, nodes)) if self._predicted else 0

    def num_looked_up(self, nodes: Sequence[Node]) -> int:
        """How many of `nodes` were looked up."""
        if not self._guesses:
            return 0
        return sum(node.parent in self._guesses and not self._is_from_prediction(node) for node in nodes)

    def _is_from_prediction(self, node: Node) -> bool:
        return node.parent is not None and self._predicted.get(node.parent) is node

    def _predict(self, prediction: Proposer, node: Node) -> Node | None:
        log_acceptance = node.path_log_prob - self._tree.root.path_log_prob
        if log_acceptance < _ASKING_LOG_ACCEPTANCE_MIN:
            return None
        for token_id, probability in prediction.propose(self._tree.root, node).items():
            learned_log = self._log_acceptance(prediction_bin(probability))
            if log_acceptance + learned_log >= _LOG_ACCEPTANCE_MIN:
                return Node(node, node.position + 1, token_id, learned_log, learned_log)
        return None

    def holds(self, node: Node) -> bool:
        """Whether `node` is one of these guesses."""
        return node.parent in self._guesses or self._is_from_prediction(node)

    def _propose(self, node: Node) -> Mapping[int, Node]:
        root = self._tree.root
        log_acceptance = node.path_log_prob - root.path_log_prob
        if log_acceptance < _ASKING_LOG_ACCEPTANCE_MIN:
            return _NOTHING
        probabilities = recalled = _SILENCE
        if self._is_ready and self._proposer is not None:
            probabilities = self._proposer.propose(root, node)
        if self._is_recalled and self._recall is not None:
            recalled = self._recall.propose(root, node)
        if not probabilities and not recalled:
            return _NOTHING
        learned, floor, position = self._log_acceptance, _LOG_ACCEPTANCE_MIN - log_acceptance, node.position + 1
        guesses = self._guesses[node] = [
            (token_id, lookup_bin(probability))
            for token_id, probability in probabilities.items()
            if probability < CERTAIN
        ]
        is_certain = len(guesses) < len(probabilities)
        if recalled and not is_certain:
            guesses += [(token_id, recall_bin(probability)) for token_id, probability in recalled.items()]
        found: dict[int, Node] = {}
        for token_id, confidence_bin in guesses:
            learned_log = learned(confidence_bin)
            if learned_log >= floor and (token_id not in found or learned_log > found[token_id].log_prob):
                found[token_id] = Node(node, position, token_id, learned_log, learned_log)
        if is_certain:
            token_id = max(probabilities, key=probabilities.__getitem__)
            found[token_id] = Node(node, position, token_id, _CERTAIN_LOG_ACCEPTANCE, _CERTAIN_LOG_ACCEPTANCE)
        return found
