"""A clock that jumps from one event to the next."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Clock:
    """Events of one time happen in the order in which they were told."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, time: float, happen: Callable[[], None]) -> None:
        """Has `happen` called at that time."""
        heapq.heappush(self._events, (time, next(self._order), happen))

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        """Has `happen` called so much later."""
        self.at(self.now + seconds, happen)

    def run(self, until: Callable[[], bool]) -> None:
        """Lets events happen until one has made `until` true. Raises IndexError when there are no more."""
        while not until():
            self.now, _, happen = heapq.heappop(self._events)
            happen()
