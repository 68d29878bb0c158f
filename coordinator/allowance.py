"""Allowances: how many tokens each caller may still use, which grow back by the minute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from coordinator.caller import Caller
from outrider.core.protocol.errors import RateLimitError
from outrider.token_file import TOKENS_MAX


class Allowances:
    """A token bucket for each caller with a limit. A request may overdraw it, since it is not cut off; the next one
    then waits for longer."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """`now` is a clock in seconds."""
        self._now = now
        self._left: dict[str, tuple[float, float]] = {}
        """By caller: the tokens that were left, and when."""

    def require(self, caller: Caller) -> None:
        """Raises RateLimitError if the caller has nothing left."""
        per_minute = caller.tokens_per_minute
        if per_minute is None:
            return
        left = self._present(caller.name, per_minute)
        if left <= 0:
            seconds = max(math.ceil((1 - left) * 60 / per_minute), 1)
            raise RateLimitError(
                f"this token may use {per_minute} tokens a minute and has; try again in {seconds} s", seconds
            )

    def spend(self, caller: Caller, num_tokens: int) -> None:
        """The caller has used so many."""
        per_minute = caller.tokens_per_minute
        if per_minute is None:
            return
        if len(self._left) > 2 * TOKENS_MAX:  # of tokens that are gone from the file
            self._left.clear()
        self._left[caller.name] = self._present(caller.name, per_minute) - num_tokens, self._now()

    def _present(self, name: str, per_minute: int) -> float:
        left, when = self._left.get(name, (float(per_minute), self._now()))
        return min(left + (self._now() - when) * per_minute / 60, per_minute)
