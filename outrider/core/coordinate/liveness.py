"""Liveness: whether a worker for which sessions wait gets on, by what it says and what it answers when asked."""

from __future__ import annotations

import math

SILENCE_SECONDS = 2.0
"""How long sessions wait for a worker that says nothing or does not get on, where another one can take them."""

ALONE_SECONDS = 30.0
"""The same where no other one can: as long as gRPC takes to give a connection up."""

SUSPICIOUS_STEPS = 10.0
"""A worker that says nothing for so many times its usual step is asked for a sign of life."""

_PATIENCE_SHARE_MIN, _PATIENCE_SHARE_MAX = 0.1, 0.25
"""Shares of the longest silence after which a worker is asked, however short or long its steps are: the first, so that
an even rhythm costs no questions, and the second, so that it has time for more answers than one."""


class Liveness:
    """What is known of one worker. Times are in seconds, by any clock that only rises. Deterministic."""

    def __init__(self, silence_max: float = SILENCE_SECONDS) -> None:
        self.silence_max = silence_max
        """Silence after which it is left."""
        self._spoke_at = self._moved_at = -math.inf
        self._progress: int | None = None
        """By its last answer; None if it has said something since, or never answered."""

    def patience(self, step_seconds: float) -> float:
        """Silence after which to ask a worker whose steps usually take so long."""
        shortest, longest = _PATIENCE_SHARE_MIN * self.silence_max, _PATIENCE_SHARE_MAX * self.silence_max
        return min(max(SUSPICIOUS_STEPS * step_seconds, shortest), longest)

    def on_event(self, now: float) -> None:
        """It said something to a session: it gets on."""
        self._spoke_at = self._moved_at = now
        self._progress = None

    def on_answer(self, progress: int, now: float) -> None:
        """It answered. It gets on if its `progress` is not that of the answer before."""
        self._spoke_at = now
        if self._progress is not None and progress != self._progress:
            self._moved_at = now
        self._progress = progress

    def silence(self, waiting_since: float, now: float) -> float:
        """For how long it has neither said nor answered anything while a session waits."""
        return now - max(self._spoke_at, waiting_since)

    def standstill(self, waiting_since: float, now: float) -> float:
        """For how long it has not got on while a session waits."""
        return now - max(self._moved_at, waiting_since)
