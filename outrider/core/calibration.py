"""What a draft's confidence is worth: how often such guesses were the target's choice, learned while both work."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from outrider.core.tree import Node

_NUM_RANKS = 8
"""Ranks told apart: as many as a node may have children (TREE_WIDTH_MAX); what comes later shares the last."""

_EDGES = tuple(math.log(edge) for edge in (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98))
"""Bounds between buckets of draft log-probability. Finer towards 1, where a path's length decides."""

_MIDDLES = (0.005, 0.02, 0.06, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.925, 0.965, 0.99)
"""A probability from the middle of each bucket."""

_NUM_BUCKETS = len(_MIDDLES)

_FIRST_CELLS = tuple(range(0, _NUM_RANKS * _NUM_BUCKETS, _NUM_BUCKETS))
"""For each rank the cell of its lowest bucket."""

_RANK_CHANCES = (0.55, 0.12, 0.08, 0.05, 0.03, 0.02, 0.015, 0.01)
"""How often the target chooses the draft's guess of each rank: measured on the demonstration pair (first 0.55, one of
the first three 0.75), with a tail that falls on."""

_PRIOR_WEIGHT = 4.0
"""What is believed before the first observation counts as this many: enough to be sane, gone after a few rounds."""

_SESSION_PRIOR_WEIGHT = 16.0
"""What a session takes over from all sessions before it counts as at most this many observations of its own."""

_MEMORY = 128.0
"""Observations of a cell that count; older ones fade, since a text's predictability changes along the way."""

_CHANCE_MIN, _CHANCE_MAX = 1e-4, 0.999
"""Bounds of every chance, so that neither certainty nor impossibility is ever concluded from finitely many rounds."""


class Places(NamedTuple):
    """Places of the line that were decided while guesses for them were known."""

    num_decided: int
    num_covered: int
    """Those in which the target's choice was among the guesses."""


class Calibration:
    """The probability that a guess is the target's choice given that its parent is, by rank and draft log-probability.

    The rank is the order among its siblings in which the draft proposed it: with shared noise (temperature above 0) it
    says more than the probability. Keep one of these per worker and kind of sampling, and one per session made from it.
    """

    __slots__ = ("_chances", "_log_chances", "_weights")

    def __init__(self, prior: Calibration | None = None) -> None:
        """Starts from `prior`, or from what the demonstration pair is like."""
        if prior is not None:
            self._chances = list(prior._chances)
            self._log_chances = list(prior._log_chances)
            self._weights = [min(weight, _SESSION_PRIOR_WEIGHT) for weight in prior._weights]
            return
        self._chances = [
            math.sqrt(rank_chance * middle) if rank else (rank_chance + middle) / 2
            for rank, rank_chance in enumerate(_RANK_CHANCES)
            for middle in _MIDDLES
        ]
        self._log_chances = [math.log(chance) for chance in self._chances]
        self._weights = [_PRIOR_WEIGHT] * len(self._chances)

    def log_chance(self, rank: int, log_prob: float) -> float:
        """Natural logarithm of the chance of a guess of this rank and draft log-probability; always below 0."""
        return self._log_chances[_FIRST_CELLS[rank if rank < _NUM_RANKS else -1] + bisect_left(_EDGES, log_prob)]

    def log_chances(self, log_probs: Iterable[float]) -> list[float]:
        """The same for siblings, from rank 0 on; at most as many as a node may have children."""
        log_chances = self._log_chances
        return [
            log_chances[cell + bisect_left(_EDGES, log_prob)]
            for cell, log_prob in zip(_FIRST_CELLS, log_probs, strict=False)
        ]

    def observe(self, rank: int, log_prob: float, right: bool) -> None:
        """The place of such a guess was decided: the guess was right or wrong."""
        cell = _FIRST_CELLS[rank if rank < _NUM_RANKS else -1] + bisect_left(_EDGES, log_prob)
        weight = self._weights[cell] = min(self._weights[cell] + 1.0, _MEMORY)
        chance = self._chances[cell]
        chance = self._chances[cell] = min(max(chance + (right - chance) / weight, _CHANCE_MIN), _CHANCE_MAX)
        self._log_chances[cell] = math.log(chance)


def decided(root: Node, token_ids: Iterable[int], calibrations: Sequence[Calibration]) -> Places:
    """Tells `calibrations` what a commit of `token_ids` below `root` decides. Call it before the tree is moved.

    The committed token decides all siblings of its place, scored or not.
    """
    num_decided = num_covered = 0
    node: Node | None = root
    for token_id in token_ids:
        if node is None or not node.children:
            break
        for rank, child in enumerate(node.children.values()):
            right = child.token_id == token_id
            for calibration in calibrations:
                calibration.observe(rank, child.log_prob, right)
        num_decided += 1
        node = node.children.get(token_id)
        num_covered += node is not None
    return Places(num_decided, num_covered)
