"""Rhythm: when a session's rounds begin, by the clock of its drafter, so that a window is sent when it is needed.

Each commit tells the cutoff of its round, the last moment at which a window could be sent to be in it: so delays on the
way are in that, whatever they are. When the next cutoffs are expected follows from the last.
"""

from __future__ import annotations

import math

_GAIN, _DEVIATION_GAIN = 1 / 8, 1 / 4
"""Weights of the newest round in means, and in the mean deviation: TCP's of its round trips (RFC 6298)."""

_PERIOD_EXCESS_MAX = 3.0
"""A period counts as at most this many times the mean: one pause must not make windows late for twenty rounds."""

_DEVIATION_MIN = 1 / 8
"""Least deviation, as a share of the period: steps scatter, and are as long as what is in them. With a quarter of it a
cheap draft's windows were late oftener on the virtual clock, with twice as much they were more for nothing."""

_OVERDUE = 2.0
"""After so many deviations more than a period without a commit nothing is expected of the rhythm any more: the verifier
may be waiting."""

_WAITING = 0.25
"""Share of a period for which the verifier may wait after a round for more than it has: it gives up, and learns that
waiting is in vain, when that is held back."""

_TOKEN_SECONDS = 3e-3
"""What a token takes as long as nothing is known: with a small target."""


class Rhythm:
    """Of one session. All times are in seconds, by its drafter's clock, which only rises."""

    __slots__ = (
        "_cutoff",
        "_deviation",
        "_ended",
        "_heard",
        "_num_tokens",
        "_period",
        "_rest",
        "_waits_until",
        "token_seconds",
    )

    def __init__(self) -> None:
        self.token_seconds = _TOKEN_SECONDS
        """How long a token takes on the average."""
        self._num_tokens = 1.0
        """Of a round."""
        self._period = self._deviation = self._rest = 0.0
        """From one cutoff to the next, how much that scatters, and how much of it the verifier was not at the round."""
        self._cutoff = self._ended = self._heard = self._waits_until = 0.0

    def observe(self, cutoff: float, seconds: float, num_tokens: int, now: float) -> None:
        """A commit of so many tokens came at `now`: windows sent by `cutoff` were in its round, which took `seconds`.
        What cannot be teaches nothing."""
        if not self._cutoff < cutoff <= now:
            return
        elapsed = cutoff - self._cutoff
        if self._period:
            error = min(elapsed, _PERIOD_EXCESS_MAX * self._period) - self._period
            self._deviation += _DEVIATION_GAIN * (abs(error) - self._deviation)
            self._period += _GAIN * error
            self._rest += _GAIN * (min(max(cutoff - self._ended, 0.0), self._period) - self._rest)
        elif self._cutoff:
            self._period, self._deviation = elapsed, elapsed / 2.0
        self._num_tokens += _GAIN * (num_tokens - self._num_tokens)
        self.token_seconds = self._period / self._num_tokens or _TOKEN_SECONDS
        self._cutoff, self._ended, self._heard = cutoff, cutoff + seconds, now
        self._waits_until = now + _WAITING * self._period

    def chance(self, now: float, seconds: float) -> float:
        """The chance that a round begins for which it matters whether a window is sent at `now` or `seconds` later.

        1 as long as nothing is known, while the verifier may be waiting, and when a commit is overdue.
        """
        period, deviation = self._period, max(self._deviation, _DEVIATION_MIN * self._period)
        if not period or now < self._waits_until or now > self._heard + period + _OVERDUE * deviation:
            return 1.0
        first = self._ended + self._rest
        last = max(int((now - first) / period), 0)
        total = 0.0
        for number in (last, last + 1):
            scatter = deviation * math.sqrt(number or 0.25)
            since = (now - first - number * period) / scatter
            total += _passed(since + seconds / scatter) - _passed(since)
        return min(total, 1.0)


def _passed(distance: float) -> float:
    """The chance that what is expected so many mean deviations ago has happened: by a Laplace distribution, which takes
    least for granted of all with that deviation."""
    return 0.5 * math.exp(distance) if distance < 0.0 else 1.0 - 0.5 * math.exp(-distance)
