"""One session's gRPC stream to its verifier."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from coordinator.replica import Replica, Seat
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.messages import Opened, Verdict, VerifyCommand, VerifyFinished
from outrider.rpc import wire
from outrider.rpc.streams import OutgoingStream
from outrider.v1 import verify_pb2_grpc


class GrpcVerifierLink:
    """See `VerifierLink`. `close` must be called in the end."""

    def __init__(self, seat: Seat) -> None:
        self.worker: Replica = seat.replica
        self.has_decided = False
        self._seat = seat
        stub = verify_pb2_grpc.VerifyServiceStub(seat.replica.channel)
        self._stream: OutgoingStream[Any, Any] = OutgoingStream(stub.Verify())

    async def send(self, command: VerifyCommand) -> None:
        """See `VerifierLink.send`."""
        await self._stream.send(wire.encode_verify_command(command))

    async def events(self) -> AsyncIterator[Opened | Verdict | VerifyFinished]:
        """See `VerifierLink.events`."""
        async for message in self._stream.responses():
            event = wire.decode_verify_event(message)
            if isinstance(event, Verdict):
                self.has_decided = True
            yield event
        raise WorkerUnavailableError("the verify service ended the stream early; try again")

    def distrust(self, reason: str) -> None:
        """See `VerifierLink.distrust`."""
        self.worker.distrust(reason)

    def close(self) -> None:
        """See `VerifierLink.close`."""
        self._stream.cancel()
        self._seat.leave()
