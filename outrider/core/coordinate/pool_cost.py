"""What a token costs those who wait: seconds of all completions together by the tokens that they got meanwhile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

GAP_SECONDS_MAX: Final = 1.0
"""Nothing for longer than this counts as this long: clients that do not read are more likely than a step that long."""


@dataclass(slots=True)
class PoolCost:
    """Seconds per token, with a memory that fades. By so many completions it is one over their tokens per second."""

    tokens: float = 0.0
    seconds: float = 0.0
    _squares: float = 0.0
    """Of the times to a first token."""

    def observe(
        self, num_tokens: int, seconds: float, *, first_wait: float | None = None, memory: float = math.inf
    ) -> None:
        """`num_tokens` took `seconds`; if they were the first of a completion, that waited `first_wait` for them.

        What is `memory` tokens ago counts a factor e less.
        """
        keep = math.exp(-num_tokens / memory)
        self.tokens = self.tokens * keep + num_tokens
        self.seconds = self.seconds * keep + seconds
        self._squares = self._squares * keep + (first_wait or 0.0) ** 2

    @property
    def per_token(self) -> float:
        """There must have been a token."""
        return self.seconds / self.tokens

    @property
    def variance(self) -> float:
        """Of `per_token`, by its square and for each token, as far as prompts come by chance (shot noise)."""
        return self._squares / self.tokens / self.per_token**2


class Waiting:
    """Adds up how long completions wait, each from its place at the verifier to its end. Times are in seconds."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._last = 0.0

    def advance(self, num_running: int, now: float) -> None:
        """`num_running` have waited since it was called last."""
        self._seconds += num_running * min(max(now - self._last, 0.0), GAP_SECONDS_MAX)
        self._last = now

    def take(self) -> float:
        """The seconds since it was taken last."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds
