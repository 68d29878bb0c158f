"""A session of a stream at a worker, from its number to its end: what it does not survive, the others do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from outrider.core.protocol.errors import QueueFullError
from outrider.rpc.stream_kind import StreamKind
from outrider.worker.outbox import Outbox
from outrider.worker.served_session import ServedSession

CommandT = TypeVar("CommandT")
EventT = TypeVar("EventT")

EARLY_COMMANDS_MAX = 1024
"""Commands of a session that wait while it is being opened, which may take the compilation of a grammar."""


class HostedSession(Generic[CommandT, EventT]):
    """Knows the session by what its service makes of it, once that is made."""

    def __init__(self, kind: StreamKind[CommandT, EventT], outbox: Outbox[EventT]) -> None:
        self.outbox = outbox
        self._kind = kind
        self._session: ServedSession[CommandT, EventT] | None = None
        self._opening: asyncio.Task[None] | None = None
        self._early: list[CommandT] = []
        self._is_finishing = self._has_failed = False

    def open(self, open_session: Callable[[], Awaitable[ServedSession[CommandT, EventT]]]) -> None:
        """Begins to open it by that function."""
        self._opening = asyncio.create_task(self._open(open_session))

    async def _open(self, open_session: Callable[[], Awaitable[ServedSession[CommandT, EventT]]]) -> None:
        try:
            self._session = session = await open_session()
            for command in self._early:
                session.take(command)
            if self._is_finishing:
                session.finish()
        except Exception as error:
            self.fail(error)

    def take(self, message: Any) -> None:
        """Obeys a command, if the session has not failed; what it raises ends the session, and no other."""
        if self._has_failed:
            return
        try:
            command = self._kind.decode_command(message)
            if self._session is not None:
                self._session.take(command)
            elif len(self._early) < EARLY_COMMANDS_MAX:
                self._early.append(command)
            else:
                raise QueueFullError(f"{EARLY_COMMANDS_MAX} commands wait for the session to open; send fewer before")
        except Exception as error:
            self.fail(error)

    def finish(self) -> None:
        """No more commands will come."""
        self._is_finishing = True
        if self._session is not None and not self._has_failed:
            try:
                self._session.finish()
            except Exception as error:
                self.fail(error)

    def fail(self, error: Exception) -> None:
        """Ends it after the events that it has."""
        self._has_failed = True
        self.outbox.fail(error)

    def record(self, stamped: Any) -> None:
        """See `ServedSession.record`."""
        if self._session is not None:
            self._session.record(stamped)

    def close(self, error: BaseException | None) -> None:
        """It is over, and gives back what it holds."""
        if self._session is not None:
            self._session.close(error)
        elif self._opening is not None:
            self._opening.cancel()
