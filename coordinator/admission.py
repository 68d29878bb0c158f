"""How many completions run at a time, altogether and of one caller, and who is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from coordinator.caller import ANYONE, Caller
from outrider.core.protocol.errors import QueueFullError, RateLimitError


class Admission:
    """Counts the completions under way. Each counts until its request ends."""

    def __init__(self, num_max: int) -> None:
        self.num_running = 0
        self._num_max = num_max
        self._num_running_of: Counter[str] = Counter()

    def require_room(self, num_completions: int, caller: Caller = ANYONE) -> None:
        """Raises QueueFullError if so many more are too many at present, and RateLimitError if they are for the
        caller."""
        if self.num_running + num_completions > self._num_max:
            raise QueueFullError(
                f"{self.num_running} completions are running and {self._num_max} the most allowed; try again later"
            )
        num_own, num_own_max = self._num_running_of[caller.name], caller.max_completions
        if num_own_max is not None and num_own + num_completions > num_own_max:
            raise RateLimitError(
                f"{num_own} completions of this token are running and {num_own_max} the most allowed; try again later"
            )

    @contextmanager
    def admitted(self, num_completions: int, caller: Caller = ANYONE) -> Iterator[None]:
        """Around a request. Raises as `require_room` does if there is no room for all of its completions."""
        self.require_room(num_completions, caller)
        self.num_running += num_completions
        self._num_running_of[caller.name] += num_completions
        try:
            yield
        finally:
            self.num_running -= num_completions
            self._num_running_of[caller.name] -= num_completions
            self._num_running_of += Counter()  # forgets who has none


class ClientAdmission:
    """Counts the requests of each client's address."""

    def __init__(self, num_max: int) -> None:
        self._num_max = num_max
        self._num_running: Counter[str] = Counter()

    @contextmanager
    def admitted(self, client: str) -> Iterator[None]:
        """Around a request. Raises QueueFullError if the client has too many."""
        if self._num_running[client] >= self._num_max:
            raise QueueFullError(
                f"{self._num_max} requests of this client are running, the most allowed; try again later"
            )
        self._num_running[client] += 1
        try:
            yield
        finally:
            self._num_running[client] -= 1
            self._num_running += Counter()  # forgets those that have none
