"""One session at its verifier, by gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from coordinator.replica import Replica, Seat
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.messages import Opened, Verdict, VerifyCommand, VerifyFinished
from outrider.rpc.session_stream import SessionStream


class GrpcVerifierLink:
    """See `VerifierLink`. `close` must be called in the end."""

    def __init__(self, seat: Seat) -> None:
        self.worker: Replica = seat.replica
        self.has_decided = False
        self._seat = seat
        self._stream: SessionStream[VerifyCommand, Opened | Verdict | VerifyFinished] = seat.replica.open_session()
        seat.on_loss = self._stream.cancel

    @property
    def is_handed_over(self) -> bool:
        """See `VerifierLink.is_handed_over`."""
        return self._seat.is_handed_over

    async def send(self, command: VerifyCommand) -> None:
        """See `VerifierLink.send`."""
        await self._stream.send(command)

    async def events(self) -> AsyncIterator[Opened | Verdict | VerifyFinished]:
        """See `VerifierLink.events`."""
        async with aclosing(self._stream.events()) as events:
            async for event in events:
                self._seat.hears()
                if isinstance(event, Verdict):
                    self.has_decided = True
                yield event
                self._seat.waits()
        raise self._seat.loss or WorkerUnavailableError("the verify service ended the stream early; try again")

    def distrust(self, reason: str) -> None:
        """See `VerifierLink.distrust`."""
        self.worker.distrust(reason)

    def close(self) -> None:
        """See `VerifierLink.close`."""
        self._stream.cancel()
        self._seat.leave()
