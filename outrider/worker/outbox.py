"""The output queue of one session: its events on their way from the device thread to the stream."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, NamedTuple, TypeVar

from outrider.core.protocol.errors import QueueFullError

OUTBOX_MAX = 4096
"""Most events of one session that wait for a slow reader; beyond it the session fails with QueueFullError."""

Event = TypeVar("Event")


class Stamped(NamedTuple, Generic[Event]):
    """An event with the wall-clock time of the work behind it, for traces."""

    event: Event
    started_ns: int
    """Unix time in nanoseconds."""
    ended_ns: int


class Outbox(Generic[Event]):
    """Filled on the device thread, drained on the event loop that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[Stamped[Event] | Exception | None] = deque()
        self._filled = asyncio.Event()
        self._full = False

    def put(self, event: Event, started_ns: int, ended_ns: int) -> None:
        """Adds an event. Any thread."""
        if len(self._events) < OUTBOX_MAX:
            self._append(Stamped(event, started_ns, ended_ns))
        elif not self._full:
            self._full = True
            self._append(QueueFullError(f"{OUTBOX_MAX} events wait for the reader of this stream; read faster"))

    def fail(self, error: Exception) -> None:
        """Ends the stream with `error` after the events before it. Any thread."""
        self._append(error)

    def end(self) -> None:
        """Ends the stream after the events before it. Any thread."""
        self._append(None)

    async def take(self) -> Stamped[Event] | None:
        """The next event; None at the end. Raises the error that the session failed with."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        item = self._events.popleft()
        if isinstance(item, Exception):
            raise item
        return item

    def _append(self, item: Stamped[Event] | Exception | None) -> None:
        self._events.append(item)
        try:
            self._loop.call_soon_threadsafe(self._filled.set)
        except RuntimeError:  # the loop is closed: nobody reads any more
            self._events.clear()
