"""Circuit breaker: a worker that keeps failing gets no sessions for a while, then one at a time until one goes well.

The pattern is M. Nygard's ("Release It!", 2007), with its usual names: closed, open, half-open.
"""

from __future__ import annotations

import math

from outrider.core.protocol.refusal import Refusal

FAILURES_MAX = 3
"""Failures in a row after which the breaker opens: two may be chance."""

PAUSE_SECONDS = 1.0
PAUSE_SECONDS_MAX = 60.0
"""How long it is open at first, and at most; the time doubles each time that it opens before a session went well."""


class CircuitBreaker:
    """That of one worker. Times are in seconds, by any clock that only rises. Deterministic."""

    def __init__(self) -> None:
        self.num_failures = 0
        """Since a session last went well."""
        self._num_openings = 0
        self._open_until = -math.inf
        self._is_probing = False

    def refusal(self, now: float) -> Refusal | None:
        """Why the worker gets no session at present; None if it may have one."""
        if now < self._open_until:
            return Refusal(f"it failed {self.num_failures} times in a row, and is tried again in a while")
        return Refusal("it failed before, and is being tried with one session") if self._is_probing else None

    def begin(self) -> None:
        """The worker gets a session: the half-open breaker's probe, if it failed before."""
        self._is_probing = self.num_failures >= FAILURES_MAX

    def work(self) -> None:
        """The session is served. A probe lets others in, but the next failure opens the breaker again."""
        self._is_probing = False
        self.num_failures = min(self.num_failures, FAILURES_MAX - 1)

    def refuse(self, now: float) -> None:
        """The worker did not take a session. That is no failure; but a probe has told nothing."""
        if self._is_probing:
            self._open(now)

    def fail(self, now: float) -> None:
        """The worker failed a session that it had."""
        self.num_failures += 1
        if self.num_failures >= FAILURES_MAX and now >= self._open_until:
            self._open(now)

    def succeed(self) -> None:
        """A session went well to its end."""
        self.__init__()

    def _open(self, now: float) -> None:
        self._is_probing = False
        self._open_until = now + min(PAUSE_SECONDS * 2.0 ** min(self._num_openings, 16), PAUSE_SECONDS_MAX)
        self._num_openings += 1
