"""The host of a stream's sessions at a worker: each gets its own commands, and what comes of all goes out together."""

# A stream's messages are known by their kind alone.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

from outrider.core.protocol.errors import (
    ProtocolViolationError,
    QueueFullError,
    SlotsExhaustedError,
    WorkerUnavailableError,
)
from outrider.rpc.protocol_version import check_version
from outrider.rpc.session_failure import encode_failure
from outrider.rpc.status import ServicerContext
from outrider.rpc.stream_kind import BATCH_BYTES_MAX, StreamKind
from outrider.rpc.streams import reading
from outrider.worker.hosted_session import HostedSession
from outrider.worker.outbox import Outbox
from outrider.worker.outlet import Outlet
from outrider.worker.served_session import ServedSession

SESSIONS_PER_STREAM_MAX = 1024
"""Most sessions of one stream, those included that wait for room; more are refused. As many as a worker may be set to.
A peer with twice as many that does not read why they are refused loses the stream."""

CommandT = TypeVar("CommandT")
EventT = TypeVar("EventT")


class SessionHost(Generic[CommandT, EventT]):
    """Serves one stream. Make it in the RPC's handler, and run it once."""

    def __init__(
        self,
        context: ServicerContext,
        kind: StreamKind[CommandT, EventT],
        open_session: Callable[[Any, Outbox[EventT]], Awaitable[ServedSession[CommandT, EventT]]],
    ) -> None:
        """`open_session` checks an opening and opens a session by it, with a way to the peer. It may raise."""
        self._context = context
        self._kind = kind
        self._open_session = open_session
        self._outlet = Outlet()
        self._sessions: dict[int, HostedSession[CommandT, EventT]] = {}
        self._last_number = -1
        self._opens_more = True
        self._failure: Exception | None = None

    async def run(self) -> None:
        """Returns when no command will come and the last session is over. Raises what makes an end of the stream."""
        check_version(self._context.invocation_metadata() or ())
        try:
            async with reading(self._context, self._on_commands, self._on_end, self._on_failure):
                while self._opens_more or self._sessions:
                    await self._outlet.wait()
                    if self._failure is not None:
                        raise self._failure
                    while self._outlet:
                        if (message := self._batch()) is not None:
                            await self._context.write(message)
        finally:
            for hosted in self._sessions.values():
                hosted.close(self._failure)
            self._sessions.clear()
            self._failure = None  # it keeps its frames, and they this host

    def drain(self) -> None:
        """The worker is about to stop: no session begins any more, and the stream ends with the last one."""
        self._opens_more = False
        self._outlet.wake()

    def _on_commands(self, message: Any) -> None:
        closed = message.closed
        if closed:
            self._close(closed)
        for command in message.commands:
            number = command.session
            hosted = self._sessions.get(number)
            if hosted is None and number <= self._last_number and command.WhichOneof("command") != "open":
                continue  # the session came to its end while the command was under way
            if hosted is None:
                self._begin(number, command)
            else:
                hosted.take(command)
        if closed:
            self._close(closed)  # those that this message has opened
        if not self._opens_more:
            self._outlet.wake()

    def _close(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if (hosted := self._sessions.pop(number, None)) is not None:
                hosted.close(None)

    def _begin(self, number: int, command: Any) -> None:
        if len(self._sessions) >= 2 * SESSIONS_PER_STREAM_MAX:
            raise QueueFullError("the refusals of this stream are not read; read faster, or open fewer sessions")
        num_before = len(self._sessions)
        hosted = self._sessions[number] = HostedSession(self._kind, Outbox(self._outlet, number))
        try:
            if number <= self._last_number:
                raise ProtocolViolationError("the number of a session was used before; count on")
            self._last_number = number
            if not self._opens_more:
                raise WorkerUnavailableError("the service is about to stop; go on elsewhere")
            if num_before >= SESSIONS_PER_STREAM_MAX:
                raise SlotsExhaustedError(f"{SESSIONS_PER_STREAM_MAX} sessions are on this stream; try again later")
            opening = self._kind.decode_command(command)
            if not isinstance(opening, self._kind.opening_type):
                raise ProtocolViolationError("a session begins with `open`; send it first")
            hosted.open(partial(self._open_session, opening, hosted.outbox))
        except Exception as error:
            hosted.fail(error)

    def _on_end(self) -> None:
        self._opens_more = False
        for hosted in self._sessions.values():
            hosted.finish()
        self._outlet.wake()

    def _on_failure(self, failure: Exception) -> None:
        self._failure = failure
        self._outlet.wake()

    def _batch(self) -> Any | None:
        """The next message: what the sessions have, as far as BATCH_BYTES_MAX. None if that is of closed ones alone."""
        message: Any = self._kind.events_type()
        num_bytes = 0
        while num_bytes < BATCH_BYTES_MAX and (outbox := self._outlet.next()) is not None:
            hosted, items = self._sessions.get(outbox.session), outbox.items
            while hosted is not None and items and num_bytes < BATCH_BYTES_MAX:
                match items.popleft():
                    case None:
                        message.ended.append(outbox.session)
                        self._sessions.pop(outbox.session).close(None)
                        hosted = None
                    case Exception() as error:
                        failure = encode_failure(error, outbox.session)
                        message.failed.append(failure)
                        num_bytes += failure.ByteSize()
                        self._sessions.pop(outbox.session).close(error)
                        hosted = None
                    case stamped:
                        hosted.record(stamped)
                        event = self._kind.encode_event(stamped.event, message.events.add())
                        event.session = outbox.session
                        num_bytes += event.ByteSize()
            if hosted is not None and items:
                self._outlet.add(outbox)
        return message if num_bytes or message.ended else None
