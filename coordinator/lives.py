"""Lives: how long requests may last, each for so many seconds, and all of them until the coordinator stops."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from coordinator.interleave import Interruption
from outrider.core.protocol.errors import RequestTooLongError, WorkerUnavailableError

STOPPING = (
    "this coordinator is stopping; go on at another one, or at this one when it is back, with the token ids that have "
    "come and the seed of `started`"
)
"""What clients of requests are told that a drain does not wait for."""


class Lives:
    """Those of all requests under way."""

    def __init__(self, seconds_max: float) -> None:
        self._seconds_max = seconds_max
        self._running: set[Interruption] = set()

    @contextmanager
    def life(self) -> Iterator[Interruption]:
        """Around a request, which is to end with the error that the interruption is set to."""
        interruption = Interruption()
        end = asyncio.get_running_loop().call_later(
            self._seconds_max,
            interruption.set,
            RequestTooLongError(
                f"the request has lasted for {self._seconds_max:g} s, as long as any may; ask for fewer tokens"
            ),
        )
        self._running.add(interruption)
        try:
            yield interruption
        finally:
            self._running.discard(interruption)
            end.cancel()

    def end_all(self) -> None:
        """The coordinator stops: every request ends, in words."""
        for interruption in self._running:
            interruption.set(WorkerUnavailableError(STOPPING))
