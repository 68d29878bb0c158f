"""When a completion's tokens came, and how long it may take, by the coordinator's monotonic clock."""

from __future__ import annotations

import time

TIME_LEFT_MS_MAX = 2**32 - 1
"""Longest time until a deadline that a verifier is told: what the field holds, 49 days."""


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self, deadline: float | None) -> None:
        """`deadline` is the caller's, on the monotonic clock."""
        self.first_token_ms = 0.0
        """0 before the first token."""
        self.total_ms = 0.0
        """0 before the end."""
        self._started = time.monotonic()
        self._deadline = deadline

    def on_tokens(self) -> None:
        """Tokens were committed."""
        self.first_token_ms = self.first_token_ms or self.elapsed_ms()

    def stop(self) -> None:
        """The completion has ended."""
        self.total_ms = self.elapsed_ms()

    def time_left_ms(self) -> int | None:
        """Until the deadline, if there is one."""
        if self._deadline is None:
            return None
        return min(max(int((self._deadline - time.monotonic()) * 1000.0), 0), TIME_LEFT_MS_MAX)

    def elapsed_ms(self) -> float:
        """Since it was made."""
        return (time.monotonic() - self._started) * 1000.0
