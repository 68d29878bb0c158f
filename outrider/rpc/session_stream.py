"""One session's part of the stream to a worker, in the core's values."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, Self, TypeVar

from outrider.core.protocol.errors import QueueFullError

CommandT = TypeVar("CommandT")
EventT = TypeVar("EventT")
OutcomeT = TypeVar("OutcomeT")

UNSENT_COMMANDS_MAX = 1024
"""Commands of one session that wait for a worker that does not read; beyond it whoever sends one waits, too."""

UNREAD_EVENTS_MAX = 4096
"""Events of one session, or what came of them, that wait for a reader; beyond it the session fails with QueueFullError.
As many as wait at the worker for a stream that is not read."""


class SessionStream(Generic[CommandT, EventT]):
    """The coordinator's end. One task sends, another iterates over the events. `cancel` must be called in the end."""

    def __init__(self, put: Callable[[CommandT], None], leave: Callable[[], None]) -> None:
        """`put` has a command sent, or raises; `leave` says that the session is over here."""
        self.num_unsent = 0
        """Commands that wait to be sent."""
        self._put = put
        self._leave = leave
        self._unread: deque[Any] = deque()
        """Events, and once somebody takes them what came of them."""
        self._take: Callable[[EventT], Any] | None = None
        self._news: asyncio.Future[None] | None = None
        """What the reader waits for: an asyncio.Event would cost half as much again."""
        self._has_room = asyncio.Event()
        self._is_over = False
        self._error: Exception | None = None

    @classmethod
    def over(cls, error: Exception) -> Self:
        """One that never began, because of `error`."""
        session = cls(lambda command: None, lambda: None)
        session.end(error)
        return session

    @property
    def has_room(self) -> bool:
        """Whether a command may be offered: fewer than UNSENT_COMMANDS_MAX of the session wait, or it is over."""
        return self.num_unsent < UNSENT_COMMANDS_MAX or self._is_over

    async def room(self) -> None:
        """Waits for it."""
        while not self.has_room:
            self._has_room.clear()
            await self._has_room.wait()

    def offer(self, command: CommandT) -> None:
        """Has a command sent, however many wait. If the session is over, `events` tells how; a command that no message
        can carry ends it."""
        if self._is_over:
            return
        self.num_unsent += 1
        try:
            self._put(command)
        except Exception as error:
            self._leave_by(error)

    async def send(self, command: CommandT) -> None:
        """The same, once there is room."""
        await self.room()
        self.offer(command)

    def cancel(self) -> None:
        """Ends the session at once: the worker frees what it holds, and no more events come."""
        self._leave_by(None)

    def events(self) -> AsyncGenerator[EventT]:
        """Every event that the worker sent, until it ended the session by itself or `cancel` was called.

        Raises an OutriderError for any other end, after the last event.
        """
        return self.outcomes(lambda event: event)

    async def outcomes(self, take: Callable[[EventT], OutcomeT | None]) -> AsyncGenerator[OutcomeT]:
        """The same, of each event what `take` makes of it, unless that is None.

        From here on `take` is called as soon as an event comes, for which no task has to run first. What it raises ends
        the session, and is raised here behind the outcomes before.
        """
        early, self._unread = self._unread, deque()
        while early and self._heed(take, early.popleft()):
            pass
        self._take = None if self._is_over else take
        while True:
            while self._unread:
                yield self._unread.popleft()
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
        if self._take is None:
            self._keep(event)
        else:
            self._heed(self._take, event)

    def end(self, error: Exception | None) -> None:
        """Nothing more comes of the session, because of `error` if there is one."""
        self._is_over, self._error = True, error
        self._take = None  # whoever takes events may have this session
        self._wake()
        self._has_room.set()

    def _heed(self, take: Callable[[EventT], Any], event: EventT) -> bool:
        """Whether `take` took it."""
        try:
            outcome = take(event)
        except Exception as error:  # a fault of one session, which the others do not notice
            self._leave_by(error)
            return False
        if outcome is not None:
            self._keep(outcome)
        return True

    def _keep(self, unread: Any) -> None:
        if len(self._unread) < UNREAD_EVENTS_MAX:
            self._unread.append(unread)
            self._wake()
        else:
            self._leave_by(
                QueueFullError(f"{UNREAD_EVENTS_MAX} events wait for the reader of this session; read faster")
            )

    def _leave_by(self, error: Exception | None) -> None:
        if not self._is_over:
            self._leave()
            self.end(error)
        elif error is not None:  # the worker had ended it before its last events were taken
            self._error = error

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
