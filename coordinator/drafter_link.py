"""One session at its drafter, by gRPC. Whatever happens to it there, the session goes on."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

from coordinator.replica import Replica, Seat
from outrider.core.coordinate.drafter_bandit import Trial
from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, Opened
from outrider.rpc.session_stream import SessionStream

OutcomeT = TypeVar("OutcomeT")

UNREAD_COMMITMENTS_MAX = 1024
"""Most commitments that wait for a drafter that does not read; beyond it the drafter counts as lost."""


class GrpcDrafterLink:
    """See `DrafterLink`. `close` must be called in the end."""

    def __init__(self, seat: Seat, trial: Trial, opening: DraftOpen, statistics: SpeculationStatistics) -> None:
        """`statistics` are the session's, of which the `trial` hears in the end what has changed."""
        self.worker: Replica = seat.replica
        self.model_name = seat.replica.model.name if seat.replica.model is not None else ""
        self.is_open = False
        self._seat = seat
        self._trial: Trial | None = trial
        self._statistics = statistics
        self._num_tokens_before, self._num_rounds_before = statistics.num_committed_tokens, statistics.num_rounds
        self._stream: SessionStream[DraftOpen | Commitment, Opened | DraftWindow] = seat.replica.open_session()
        seat.on_loss = self._stream.cancel
        self._overflowed = False
        self._stream.offer(opening)

    @property
    def is_handed_over(self) -> bool:
        """See `DrafterLink.is_handed_over`."""
        return self._seat.is_handed_over

    def send(self, commitment: Commitment) -> None:
        """See `DrafterLink.send`."""
        if self._stream.num_unsent < UNREAD_COMMITMENTS_MAX:
            self._stream.offer(commitment)
        else:
            self._overflowed = True
            self._stream.cancel()

    def close(self, *, failed: bool) -> None:
        """See `DrafterLink.close`."""
        self._stream.cancel()
        self._seat.leave()
        trial, self._trial = self._trial, None
        if trial is None:
            return
        if failed and not self.is_open:
            self.worker.breaker.refuse(time.monotonic())
            trial.cancel()
        elif failed:
            self.worker.breaker.fail(time.monotonic())
            trial.fail()
        else:
            self.worker.breaker.succeed()
            statistics = self._statistics
            trial.end(
                statistics.num_committed_tokens - self._num_tokens_before,
                statistics.num_rounds - self._num_rounds_before,
            )

    async def outcomes(self, take: Callable[[DraftWindow], OutcomeT | None]) -> AsyncGenerator[OutcomeT]:
        """See `DrafterLink.outcomes`."""
        has_drafted = False

        def hear(event: Opened | DraftWindow) -> OutcomeT | None:
            nonlocal has_drafted
            self._seat.hears()
            outcome = None
            if isinstance(event, Opened):
                self.is_open = True
            else:
                if not has_drafted:
                    has_drafted = True
                    self.worker.breaker.work()
                outcome = take(event)
            self._seat.waits()
            return outcome

        async with aclosing(self._stream.outcomes(hear)) as outcomes:
            async for outcome in outcomes:
                yield outcome
        raise self._seat.loss or WorkerUnavailableError(
            "the draft service does not read what is committed"
            if self._overflowed
            else "the draft service ended the stream"
        )
