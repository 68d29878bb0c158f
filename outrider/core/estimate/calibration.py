"""Calibration: how often the target accepts draft tokens of each confidence bin, learned online."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

_PRIOR_WEIGHT = 4.0
"""What is believed before the first observation counts as this many: enough to be sane, gone after a few rounds."""

_SESSION_PRIOR_WEIGHT = 16.0
"""What a session takes over from all sessions before it counts as at most this many observations of its own."""

_MEMORY = 128.0
"""Observations of a cell that count; older ones fade, since a text's predictability changes along the way."""

_PROBABILITY_MIN, _PROBABILITY_MAX = 1e-4, 0.999
"""Bounds of every chance, so that neither certainty nor impossibility is ever concluded from finitely many rounds."""


class Calibration:
    """The probability that a guess is the target's choice given that its parent is, by bin; see `confidence.py`.

    Keep one of these per worker and kind of sampling, and one per session made from it.
    """

    __slots__ = ("_log_acceptances", "_probabilities", "_weights", "log_acceptance")

    def __init__(self, probabilities: Sequence[float]) -> None:
        """Starts from `probabilities`, one for each cell."""
        self._probabilities = list(probabilities)
        self._log_acceptances = [math.log(probability) for probability in self._probabilities]
        self._weights = [_PRIOR_WEIGHT] * len(self._probabilities)
        self.log_acceptance: Callable[[int], float] = self._log_acceptances.__getitem__
        """Natural logarithm of the chance of a guess of this cell; always below 0."""

    def __len__(self) -> int:
        """How many cells there are."""
        return len(self._probabilities)

    @property
    def log_acceptances(self) -> Sequence[float]:
        """What `log_acceptance` says of each cell."""
        return self._log_acceptances

    def for_session(self) -> Calibration:
        """One that starts from what this one has learned, and departs from it by its own observations."""
        session = Calibration(self._probabilities)
        session._weights = [min(weight, _SESSION_PRIOR_WEIGHT) for weight in self._weights]
        return session

    def observe(self, confidence_bin: int, right: bool) -> None:
        """The place of such a guess was decided: the guess was right or wrong."""
        weights, probabilities = self._weights, self._probabilities
        if weights[confidence_bin] < _MEMORY:
            weights[confidence_bin] += 1.0
        probability = probabilities[confidence_bin] + (right - probabilities[confidence_bin]) / weights[confidence_bin]
        if not _PROBABILITY_MIN <= probability <= _PROBABILITY_MAX:
            probability = min(max(probability, _PROBABILITY_MIN), _PROBABILITY_MAX)
        probabilities[confidence_bin] = probability
        self._log_acceptances[confidence_bin] = math.log(probability)


def decided(places: Iterable[tuple[int, Iterable[tuple[int, int]]]], calibrations: Sequence[Calibration]) -> None:
    """Tells `calibrations` of each place that was decided: the committed token, and what was guessed for it, token ids
    with their bins.

    The committed token decides all guesses for its place, whether they became nodes and were scored or not: a kind that
    is not worth drafting today is still learned about.
    """
    for token_id, guesses in places:
        for guess, confidence_bin in guesses:
            for calibration in calibrations:
                calibration.observe(confidence_bin, guess == token_id)
