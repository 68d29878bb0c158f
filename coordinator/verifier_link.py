"""One session at its verifier, by gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

from coordinator.replica import Replica, Seat
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.messages import Opened, Verdict, VerifyCommand, VerifyFinished
from outrider.rpc.session_stream import SessionStream

OutcomeT = TypeVar("OutcomeT")


class GrpcVerifierLink:
    """See `VerifierLink`. `close` must be called in the end."""

    def __init__(self, seat: Seat) -> None:
        self.worker: Replica = seat.replica
        self.draft_model = seat.replica.model.draft_model if seat.replica.model is not None else ""
        self.has_decided = False
        self._has_left = False
        self._seat = seat
        self._stream: SessionStream[VerifyCommand, Opened | Verdict | VerifyFinished] = seat.replica.open_session()
        seat.on_loss = self._stream.cancel

    @property
    def is_handed_over(self) -> bool:
        """See `VerifierLink.is_handed_over`."""
        return self._seat.is_handed_over

    @property
    def has_room(self) -> bool:
        """See `VerifierLink.has_room`."""
        return self._stream.has_room

    async def room(self) -> None:
        """See `VerifierLink.room`."""
        await self._stream.room()

    def offer(self, command: VerifyCommand) -> None:
        """See `VerifierLink.offer`."""
        self._stream.offer(command)

    async def outcomes(
        self, take: Callable[[Opened | Verdict | VerifyFinished], OutcomeT | None]
    ) -> AsyncGenerator[OutcomeT]:
        """See `VerifierLink.outcomes`."""

        def hear(event: Opened | Verdict | VerifyFinished) -> OutcomeT | None:
            self._seat.hears()
            if isinstance(event, Verdict):
                self.has_decided = True
            outcome = take(event)
            self._seat.waits()
            return outcome

        async with aclosing(self._stream.outcomes(hear)) as outcomes:
            async for outcome in outcomes:
                yield outcome
        if not self._has_left:
            raise self._seat.loss or WorkerUnavailableError("the verify service ended the stream early; try again")

    def leave(self) -> None:
        """See `VerifierLink.leave`."""
        self._has_left = True
        self._stream.cancel()

    def distrust(self, reason: str) -> None:
        """See `VerifierLink.distrust`."""
        self.worker.distrust(reason)

    def close(self) -> None:
        """See `VerifierLink.close`."""
        self._stream.cancel()
        self._seat.leave()
