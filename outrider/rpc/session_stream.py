"""A session's stream at a worker, in the core's values: checksums both ways, and no event that says nothing."""

# grpcio has no types for multicallables.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

import grpc.aio
from google.protobuf.message import Message

from outrider.core.protocol.errors import ProtocolViolationError, UntrustedWorkerError
from outrider.core.protocol.messages import (
    Commitment,
    DraftOpen,
    DraftWindow,
    Opened,
    Verdict,
    VerifyCommand,
    VerifyFinished,
)
from outrider.rpc import wire
from outrider.rpc.checksum import CHECKSUM_METADATA, parsed, sealed
from outrider.rpc.streams import OutgoingStream
from outrider.rpc.worker_client import DRAFT_SERVICE, VERIFY_SERVICE
from outrider.v1 import draft_pb2, verify_pb2

CommandT = TypeVar("CommandT")
EventT = TypeVar("EventT")


class SessionStream(Generic[CommandT, EventT]):
    """The coordinator's end: an `OutgoingStream` of commands and events. `cancel` must be called in the end."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        path: str,
        encode: Callable[[CommandT], Message],
        decode: Callable[[bytes], EventT],
    ) -> None:
        """Calls the method `path` (`/package.Service/Method`)."""
        call = channel.stream_stream(path)(metadata=(CHECKSUM_METADATA,))
        self._stream: OutgoingStream[bytes, bytes] = OutgoingStream(call)
        self._encode = encode
        self._decode = decode

    async def send(self, command: CommandT) -> bool:
        """See `OutgoingStream.send`."""
        return await self._stream.send(sealed(self._encode(command).SerializeToString()))

    def cancel(self) -> None:
        """See `OutgoingStream.cancel`."""
        self._stream.cancel()

    async def events(self) -> AsyncGenerator[EventT]:
        """See `OutgoingStream.responses`.

        Also raises DamagedMessageError, and UntrustedWorkerError for what is no event.
        """
        async with aclosing(self._stream.responses()) as responses:
            async for content in responses:
                try:
                    event = self._decode(content)
                except ProtocolViolationError as violation:
                    raise UntrustedWorkerError(f"the service broke the protocol: {violation}") from violation
                yield event


def verify_stream(channel: grpc.aio.Channel) -> SessionStream[VerifyCommand, Opened | Verdict | VerifyFinished]:
    """Begins a Verify stream."""

    def decode(content: bytes) -> Opened | Verdict | VerifyFinished:
        return wire.decode_verify_event(parsed(verify_pb2.VerifyEvent, content))

    return SessionStream(channel, f"/{VERIFY_SERVICE}/Verify", wire.encode_verify_command, decode)


def draft_stream(channel: grpc.aio.Channel) -> SessionStream[DraftOpen | Commitment, Opened | DraftWindow]:
    """Begins a Draft stream."""

    def decode(content: bytes) -> Opened | DraftWindow:
        return wire.decode_draft_event(parsed(draft_pb2.DraftEvent, content))

    return SessionStream(channel, f"/{DRAFT_SERVICE}/Draft", wire.encode_draft_command, decode)
