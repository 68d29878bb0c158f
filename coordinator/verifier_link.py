"""One session's stream to its verifier."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from coordinator.replica import Seat
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.messages import DraftWindow, EndDrafts, Opened, Verdict, VerifyFinished, VerifyOpen
from outrider.rpc import wire
from outrider.rpc.streams import OutgoingStream
from outrider.v1 import verify_pb2_grpc


class VerifierLink:
    """Use it as a context manager: leaving it frees the slot and the seat."""

    def __init__(self, seat: Seat) -> None:
        self.replica = seat.replica
        self.has_decided = False
        """Whether a verdict has come."""
        self._seat = seat
        stub = verify_pb2_grpc.VerifyServiceStub(seat.replica.channel)
        self._stream: OutgoingStream[Any, Any] = OutgoingStream(stub.Verify())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exception_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.cancel()
        self._seat.leave()

    async def send(self, command: VerifyOpen | DraftWindow | EndDrafts) -> None:
        """Writes a command, waiting for flow control; one task at a time. Of a stream that is over the events tell."""
        await self._stream.send(wire.encode_verify_command(command))

    async def events(self) -> AsyncIterator[Opened | Verdict | VerifyFinished]:
        """What the verifier says. Raises OutriderError when it refuses, fails, or ends the stream by itself."""
        async for message in self._stream.responses():
            event = wire.decode_verify_event(message)
            if isinstance(event, Verdict):
                self.has_decided = True
            yield event
        raise WorkerUnavailableError("the verify service ended the stream early; try again")
