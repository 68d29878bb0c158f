"""Foresight: how often the proposals of a pass hold the target's token, by mask tokens that stood before them.

A parallel draft model (PARD, arXiv 2504.18583) proposes for a place before the tokens ahead of it are known: mask
tokens stand for them. So it sees the worse the more there are; how much worse is learned here, for each number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate

from outrider.core.estimate.calibration import Calibration

POSITIONS_MAX = 16
"""Most places that one pass proposes for below one node: its own row's, and one for each mask token. A step of one
session expands no more than so many nodes (EXPANSIONS_MAX)."""

POSITIONS_AUTO = 12
"""The same where nobody says: what published checkpoints are used with. How many it is each time follows from what was
learned."""

MASK_DISCOUNT = 0.85
"""By how much less a guess is believed at first for each mask token before it. Published acceptances by depth fall by a
tenth to a third, and a few rounds tell."""

_COVERAGE = 0.8
"""How often a node's own proposals hold the target's token, until that is learned."""


class Foresight:
    """For each number of mask tokens, from 0 up, the chance that one of the proposals made beyond them is drafted and
    right, given that all before it is right."""

    __slots__ = ("_calibrations", "coverage", "log_reach")

    def __init__(self, num_positions: int) -> None:
        """For passes that propose for up to `num_positions` places, from 1 to POSITIONS_MAX."""
        self._calibrations: Sequence[Calibration] = (Calibration(discounted([_COVERAGE], num_positions)),)
        self._sum_up()

    def for_session(self) -> Foresight:
        """One that starts from what this one has learned, and teaches it."""
        session = Foresight.__new__(Foresight)
        [shared] = self._calibrations
        session._calibrations = (shared.for_session(), shared)
        session._sum_up()
        return session

    @property
    def num_positions(self) -> int:
        """For how many places a pass proposes at most."""
        return len(self.coverage)

    def observe(self, places: Iterable[tuple[int, bool]]) -> None:
        """Places were decided: before the proposals for each stood so many mask tokens, and one was right or none."""
        for mask_depth, right in places:
            for calibration in self._calibrations:
                calibration.observe(mask_depth, right)
        self._sum_up()

    def _sum_up(self) -> None:
        own = self._calibrations[0]
        log_coverage = [own.log_acceptance(mask_depth) for mask_depth in range(len(own))]
        self.coverage: Sequence[float] = [math.exp(each) for each in log_coverage]
        """Those chances."""
        self.log_reach: Sequence[float] = list(accumulate(log_coverage[:-1], initial=0.0))
        """For each number of mask tokens the logarithm of the chance that all tokens are right which they stand for."""


def discounted(probabilities: Sequence[float], num_positions: int) -> list[float]:
    """What is believed at first: `probabilities`, once for each of `num_positions` places of a pass."""
    return [
        probability * MASK_DISCOUNT**mask_depth for mask_depth in range(num_positions) for probability in probabilities
    ]
