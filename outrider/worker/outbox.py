"""The output queue of one session: its events on their way from the device thread to the stream."""

from __future__ import annotations

from collections import deque
from typing import Generic, NamedTuple, TypeVar

from outrider.core.protocol.errors import QueueFullError
from outrider.worker.outlet import Outlet

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
    """Filled on the device thread, drained on the event loop that made its outlet."""

    def __init__(self, outlet: Outlet | None = None, session: int = 0) -> None:
        """One of the `session` by that number. Without an `outlet`, which several may share, it has its own."""
        self.session = session
        self._outlet = Outlet() if outlet is None else outlet
        self.items: deque[Stamped[Event] | Exception | None] = deque()
        """What waits, the oldest first: events, then the error that the session failed with, or None at its end."""
        self.is_waiting = False
        """Whether the outlet knows that there is something."""
        self._full = False

    def put(self, event: Event, started_ns: int, ended_ns: int) -> None:
        """Adds an event. Any thread."""
        self.add(Stamped(event, started_ns, ended_ns))
        self.flush()

    def fail(self, error: Exception) -> None:
        """Ends the session with `error` after the events before it. Any thread."""
        self.add(error)
        self.flush()

    def end(self) -> None:
        """Ends the session after the events before it. Any thread."""
        self.add(None)
        self.flush()

    def add(self, item: Stamped[Event] | Exception | None) -> None:
        """Adds an event, the error that ends the session, or None for its end, of which nobody hears before `flush`.
        Any thread."""
        if isinstance(item, Stamped) and len(self.items) >= OUTBOX_MAX:
            if self._full:
                return
            self._full = True
            item = QueueFullError(f"{OUTBOX_MAX} events wait for the reader of this stream; read faster")
        self.items.append(item)
        if not self.is_waiting:
            self._outlet.add(self)

    def flush(self) -> None:
        """Has what was added written out. Any thread."""
        self._outlet.flush()

    async def take(self) -> Stamped[Event] | None:
        """The next event of a session that has the outlet for itself; None at the end.

        Raises the error that the session failed with.
        """
        while not self.items:
            await self._outlet.wait()
            self._outlet.next()
        item = self.items.popleft()
        if isinstance(item, Exception):
            raise item
        return item
