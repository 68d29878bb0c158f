"""How high the load is: how many completions run, by a level for each factor 2, and whether most are greedy."""

from __future__ import annotations

import math
from typing import NamedTuple

_MEMORY_ROUNDS = 8
"""Rounds of all completions after which a load that has fallen is forgotten by a factor e. One that has risen counts at
once: who comes with it begins in the way that is right for it."""

_MARGIN = 0.75
"""A level is left when the load is beyond it by half of a level."""


class Level(NamedTuple):
    """A load, as far as it is told apart from others."""

    log2: int
    """Of the number of running completions."""
    greedy: bool
    """Whether most of them are."""


class LoadLevel:
    """Follows the running completions. Deterministic given what it is told."""

    def __init__(self) -> None:
        self.num_running = 0
        self._num_greedy = 0
        self._num_recent = 0.0
        """How many ran of late."""
        self._log2 = 0

    def begin(self, *, greedy: bool) -> None:
        """A completion has a place at the verifier."""
        self.num_running += 1
        self._num_greedy += greedy
        self._follow()

    def end(self, *, greedy: bool) -> None:
        """One that began is over."""
        self.num_running -= 1
        self._num_greedy -= greedy

    def observe(self, num_tokens: int) -> None:
        """One of them has so many tokens more."""
        keep = math.exp(-num_tokens / (_MEMORY_ROUNDS * max(self.num_running, 1)))
        self._num_recent = self.num_running + keep * (self._num_recent - self.num_running)
        self._follow()

    @property
    def present(self) -> Level:
        """The load at present."""
        return Level(self._log2, 2 * self._num_greedy >= self.num_running)

    @property
    def has_drained(self) -> bool:
        """Whether fewer than half run of those that ran of late."""
        return 2 * self.num_running < self._num_recent

    def _follow(self) -> None:
        self._num_recent = max(self._num_recent, self.num_running, 1.0)
        exact = math.log2(self._num_recent)
        if abs(exact - self._log2) > _MARGIN:
            self._log2 = round(exact)
