"""What speaks for a guess, sorted into cells: guesses of one cell should be right equally often.

A cell is an index. How often guesses of a cell are right is learned (`calibration.py`), starting from the chances that
stand here for each cell.

A draft model's word is measured by its *margin*. With noise that both models share, target and draft choose alike
unless their scores differ by more than the draft's first choice is ahead of its second: a probability leaves out
the noise, which has spoken already. On 1536 places of the bundled pair at temperature 0.8 the margin tells 0.143 nats
about whether the first guess is right, its log-probability 0.080; about the second guess 0.063 against 0.017, and at
temperature 0 0.115 against 0.101 and 0.060 against 0.020 (`python -m bench.micro.evidence`).
"""

from __future__ import annotations

import math
from bisect import bisect_left

_NUM_RANKS = 8
"""Ranks told apart: as many as a node may have children (TREE_WIDTH_MAX); what comes later shares the last."""

MARGIN_EDGES = (0.1, 0.25, 0.4, 0.6, 0.8, 1.05, 1.3, 1.6, 2.0, 2.5, 3.2, 4.5, 6.0)
"""Bounds between buckets of margin: about as many places of sampled text lie in each."""

_MARGIN_MIDDLES = (0.05, 0.17, 0.32, 0.5, 0.7, 0.92, 1.17, 1.45, 1.8, 2.25, 2.8, 3.8, 5.2, 7.0)

_PROBABILITY_EDGES = tuple(
    math.log(edge) for edge in (0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
)
"""Bounds between buckets of a chance's logarithm. Finer towards 1, where a path's length decides."""

_PROBABILITY_MIDDLES = (0.005, 0.02, 0.06, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.925, 0.965, 0.99)

_NUM_BUCKETS = len(_PROBABILITY_MIDDLES)


def _first_chance(margin: float) -> float:
    return 1.0 - 0.6 * math.exp(-0.9 * margin)


def _other_chance(rank: int, margin: float) -> float:
    return 0.5 * 0.7**rank * math.exp(-margin)


NGRAM_PROBABILITIES = (0.01, 0.02, 0.06, 0.12, 0.18, 0.25, 0.3, 0.4, 0.45, 0.55, 0.65, 0.8, 0.9, 0.95)
"""How often n-grams' guesses are right by the probability that their table promises."""

PREDICTION_PROBABILITIES = (0.01, 0.01, 0.02, 0.03, 0.04, 0.15, 0.3, 0.4, 0.4, 0.7, 0.92, 0.965, 0.98, 0.99)
"""How often a prediction is right by what it promises (`propose/prediction.py`): less than half where the line has left
it. On source files with edits of several kinds."""

RECALL_PROBABILITIES = (0.01, 0.02, 0.03, 0.03, 0.1, 0.3, 0.3, 0.4, 0.6, 0.65, 0.7, 0.85, 0.92, 0.97)
"""How often what recent answers go on with is right by what it promises (`propose/recall.py`): between what held for
edited source files and for strange ones (`python -m bench.micro.recall`)."""

DRAFT_PROBABILITIES = (
    *(_first_chance(margin) for margin in _MARGIN_MIDDLES),
    *(_other_chance(rank, margin) for rank in range(1, _NUM_RANKS) for margin in _MARGIN_MIDDLES),
)
"""How often a draft model's guesses are right, by rank and margin: curves through what was measured on the bundled pair
at temperature 0.8."""

CLAIM_PROBABILITIES = _PROBABILITY_MIDDLES
"""How often guesses are right by what their drafter claims: as often as it says, until that proves wrong."""

VERIFY_PROBABILITIES = (
    *CLAIM_PROBABILITIES,
    *NGRAM_PROBABILITIES,
    *PREDICTION_PROBABILITIES,
    *RECALL_PROBABILITIES,
)
"""How often guesses are right by a verifier's cells: those of what is claimed, those of what it looks up, those of what
its client predicts, then those of what it recalls."""


def margin_bin(rank: int, margin: float) -> int:
    """A drafter's cell of the draft model's guess of that rank, 0 the first; see `Sampler.propose` for the margin."""
    return (rank if rank < _NUM_RANKS else _NUM_RANKS - 1) * _NUM_BUCKETS + bisect_left(MARGIN_EDGES, margin)


def ngram_bin(_rank: int, probability: float) -> int:
    """The same of a drafter without a model: of a token that its n-grams guess with a probability above 0."""
    return bisect_left(_PROBABILITY_EDGES, math.log(probability))


def claim_bin(log_acceptance: float) -> int:
    """A verifier's cell of a guess whose drafter claims that chance, given as its natural logarithm."""
    return bisect_left(_PROBABILITY_EDGES, log_acceptance)


def lookup_bin(probability: float) -> int:
    """A verifier's cell of a token that its own n-grams guess with a probability above 0."""
    return _NUM_BUCKETS + bisect_left(_PROBABILITY_EDGES, math.log(probability))


def prediction_bin(probability: float) -> int:
    """A verifier's cell of a token that its client's prediction promises with a probability above 0."""
    return 2 * _NUM_BUCKETS + bisect_left(_PROBABILITY_EDGES, math.log(probability))


def recall_bin(probability: float) -> int:
    """A verifier's cell of a token that recent answers promise with a probability above 0."""
    return 3 * _NUM_BUCKETS + bisect_left(_PROBABILITY_EDGES, math.log(probability))
