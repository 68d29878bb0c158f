"""One session's part of the stream to a worker, in the core's values."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Generic, TypeVar

from outrider.core.protocol.errors import OutriderError, QueueFullError

CommandT = TypeVar("CommandT")
EventT = TypeVar("EventT")

UNSENT_COMMANDS_MAX = 1024
"""Commands of one session that wait for a worker that does not read; beyond it whoever sends one waits, too."""

UNREAD_EVENTS_MAX = 4096
"""Events of one session that wait for a reader; beyond it the session fails with QueueFullError. As many as wait at the
worker for a stream that is not read."""


class SessionStream(Generic[CommandT, EventT]):
    """The coordinator's end. One task sends, another iterates over the events. `cancel` must be called in the end."""

    def __init__(self, put: Callable[[CommandT], None], leave: Callable[[], None]) -> None:
        """`put` has a command sent; `leave` says that the session is over here."""
        self.num_unsent = 0
        """Commands that wait to be sent."""
        self._put = put
        self._leave = leave
        self._events: deque[EventT] = deque()
        self._news: asyncio.Future[None] | None = None
        """What the reader waits for: an asyncio.Event would cost half as much again."""
        self._has_room = asyncio.Event()
        self._is_over = False
        self._error: OutriderError | None = None

    def offer(self, command: CommandT) -> None:
        """Has a command sent, without waiting. If the session is over, `events` tells how."""
        if not self._is_over:
            self.num_unsent += 1
            self._put(command)

    async def send(self, command: CommandT) -> None:
        """The same, once fewer than UNSENT_COMMANDS_MAX commands of the session wait."""
        while self.num_unsent >= UNSENT_COMMANDS_MAX and not self._is_over:
            self._has_room.clear()
            await self._has_room.wait()
        self.offer(command)

    def cancel(self) -> None:
        """Ends the session at once: the worker frees what it holds, and no more events come."""
        if not self._is_over:
            self._leave()
            self._events.clear()
            self.end(None)

    async def events(self) -> AsyncGenerator[EventT]:
        """Every event that the worker sent, until it ended the session by itself or `cancel` was called.

        Raises an OutriderError for any other end, after the last event.
        """
        while True:
            while self._events:
                yield self._events.popleft()
            if self._is_over:
                break
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # or the error would hold this frame and the frame the error

    def on_sent(self) -> None:
        """A command of the session was sent."""
        self.num_unsent -= 1
        self._has_room.set()

    def hear(self, event: EventT) -> None:
        """The worker sent an event."""
        if len(self._events) < UNREAD_EVENTS_MAX:
            self._events.append(event)
            self._wake()
        else:
            self._leave()
            self.end(QueueFullError(f"{UNREAD_EVENTS_MAX} events wait for the reader of this session; read faster"))

    def end(self, error: OutriderError | None) -> None:
        """Nothing more comes of the session, because of `error` if there is one."""
        self._is_over, self._error = True, error
        self._wake()
        self._has_room.set()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
