"""The multiplexer: all sessions of this process at one worker, on one bidirectional stream."""

# grpcio has no types for multicallables, and a stream's messages are known by their kind alone.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from contextlib import aclosing
from functools import partial
from typing import Any, Generic, TypeVar

import grpc.aio

from outrider.core.protocol.errors import OutriderError, ProtocolViolationError, UntrustedWorkerError
from outrider.rpc.checksum import CHECKSUM_METADATA, parsed, sealed
from outrider.rpc.entry import entry
from outrider.rpc.protocol_version import VERSION_METADATA
from outrider.rpc.session_failure import decode_failure, encode_failure
from outrider.rpc.session_stream import SessionStream
from outrider.rpc.stream_kind import BATCH_BYTES_MAX, StreamKind
from outrider.rpc.streams import OutgoingStream

CommandT = TypeVar("CommandT")
EventT = TypeVar("EventT")


class Multiplexer(Generic[CommandT, EventT]):
    """Lasts as long as the stream; what ends that ends every session. Make it inside a running event loop.

    It has two tasks. One reads, and hands each session its events. The other writes what the sessions have put since it
    wrote last, so that what they answer to one message goes out in one message. No session's task touches the stream:
    cancelling a read or write would cancel it for all.
    """

    def __init__(self, channel: grpc.aio.Channel, kind: StreamKind[CommandT, EventT]) -> None:
        """Begins the stream."""
        self.is_over = False
        """Whether it takes no session any more."""
        self._kind = kind
        call = channel.stream_stream(kind.path)(metadata=(CHECKSUM_METADATA, VERSION_METADATA))
        self._stream: OutgoingStream[bytes, bytes] = OutgoingStream(call)
        self._numbers = itertools.count(1)
        self._sessions: dict[int, SessionStream[CommandT, EventT]] = {}
        self._unsent: deque[tuple[int, bytes]] = deque()
        """Messages of one `entry` each, and of whose session."""
        self._news: asyncio.Future[None] | None = None
        """What the writer waits for."""
        self._reader = asyncio.create_task(self._read())
        self._writer = asyncio.create_task(self._write())

    def open(self) -> SessionStream[CommandT, EventT]:
        """A session, of which the worker hears by its first command."""
        number = next(self._numbers)
        session = self._sessions[number] = SessionStream(partial(self._put, number), partial(self._close, number))
        return session

    async def close(self) -> None:
        """Ends the stream, and with it every session."""
        self._stream.cancel()
        await asyncio.gather(self._reader, self._writer, return_exceptions=True)

    def _put(self, number: int, command: CommandT) -> None:
        message = self._kind.encode_command(command)
        message.session = number
        self._append(number, entry(message.SerializeToString()))

    def _close(self, number: int) -> None:
        del self._sessions[number]
        message: Any = self._kind.commands_type(closed=[number])
        self._append(number, message.SerializeToString())

    def _append(self, number: int, content: bytes) -> None:
        self._unsent.append((number, content))
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def _write(self) -> None:
        while True:
            while self._unsent:
                if not await self._stream.send(self._batch()):
                    return
            self._news = asyncio.get_running_loop().create_future()
            await self._news

    def _batch(self) -> bytes:
        """The next message: what waits, as far as BATCH_BYTES_MAX, or one command that is larger."""
        contents: list[bytes] = []
        num_bytes = 0
        while self._unsent and (not contents or num_bytes + len(self._unsent[0][1]) <= BATCH_BYTES_MAX):
            number, content = self._unsent.popleft()
            contents.append(content)
            num_bytes += len(content)
            if (session := self._sessions.get(number)) is not None:
                session.on_sent()
        return sealed(b"".join(contents))

    async def _read(self) -> None:
        failure = None
        try:
            async with aclosing(self._stream.responses()) as responses:
                async for content in responses:
                    self._hand_out(parsed(self._kind.events_type, content))
        except OutriderError as error:
            failure = encode_failure(error)
        finally:
            self.is_over = True
            self._stream.cancel()
            self._unsent.clear()
            self._writer.cancel()  # a write to a call that was cancelled before it began would wait for ever
            sessions, self._sessions = self._sessions, {}
            for session in sessions.values():  # to each an error of its own, which will hold the session's frames
                session.end(None if failure is None else decode_failure(failure))

    def _hand_out(self, message: Any) -> None:
        """Gives each session its own. What was under way to one that is closed is of no use any more."""
        for event in message.events:
            session = self._sessions.get(event.session)
            if session is None:
                continue
            try:
                session.hear(self._kind.decode_event(event))
            except ProtocolViolationError as violation:
                self._close(event.session)
                session.end(UntrustedWorkerError(f"the service broke the protocol: {violation}"))
        for failed in message.failed:
            self._end(failed.session, decode_failure(failed))
        for number in message.ended:
            self._end(number, None)

    def _end(self, number: int, error: OutriderError | None) -> None:
        session = self._sessions.pop(number, None)
        if session is not None:
            session.end(error)
