"""Whose turn it is where not all can be served: by deadline, then by arrival, and nobody is overtaken for ever."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

OVERTAKEN_MAX = 16
"""How often somebody with an earlier deadline may go before one who came first. After that nobody may: at sixteen turns
of a second each, about as long as an impatient caller waits."""


class Priority:
    """One session's place wherever sessions wait for something: for room, for a chunk of their prompt."""

    __slots__ = ("arrival", "deadline", "num_overtaken")

    def __init__(self, arrival: int, deadline: float = math.inf) -> None:
        self.arrival = arrival
        """Counts up with the sessions of a worker."""
        self.deadline = deadline
        """When the answer is wanted, on any clock that only rises; infinite if nobody said."""
        self.num_overtaken = 0
        """How often one who came later was served while this one waited."""

    @property
    def order(self) -> tuple[bool, float, int]:
        """Who has the least of these is the next."""
        if self.num_overtaken >= OVERTAKEN_MAX:
            return False, 0.0, self.arrival
        return True, self.deadline, self.arrival

    def put_first(self) -> None:
        """From now on nobody overtakes this one but those who came before it and wait likewise."""
        self.num_overtaken = OVERTAKEN_MAX


def overtake(served: Iterable[Priority], waiting: Iterable[Priority]) -> bool:
    """Notes that `served` were served and `waiting` were not. Whether that changes the order of those who wait."""
    latest = max((priority.arrival for priority in served), default=0)
    changed = False
    for priority in waiting:
        if priority.arrival < latest:
            priority.num_overtaken += 1
            changed |= priority.num_overtaken == OVERTAKEN_MAX
    return changed


class Waiting(Protocol):
    """One who waits."""

    @property
    def priority(self) -> Priority: ...


WaitingT = TypeVar("WaitingT", bound=Waiting)


class WaitingQueue(Generic[WaitingT]):
    """Those who wait, the next one first. Joining and being served take time in proportion to their number."""

    def __init__(self) -> None:
        self._waiting: list[WaitingT] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[WaitingT]:
        return iter(self._waiting)

    def __contains__(self, one: object) -> bool:
        return one in self._waiting

    @property
    def next(self) -> WaitingT | None:
        """Whose turn it is; None if nobody waits."""
        return self._waiting[0] if self._waiting else None

    def join(self, one: WaitingT) -> None:
        """Adds one who waits from now on."""
        insort(self._waiting, one, key=_order)

    def serve_next(self) -> WaitingT:
        """Takes out the one whose turn it is. Raises IndexError if nobody waits."""
        one = self._waiting.pop(0)
        if overtake((one.priority,), (other.priority for other in self._waiting)):
            self._waiting.sort(key=_order)
        return one

    def leave(self, one: WaitingT) -> None:
        """Takes out one who waits no longer. Raises ValueError if it does not wait."""
        self._waiting.remove(one)


def _order(one: Waiting) -> tuple[bool, float, int]:
    return one.priority.order
