"""One session's gRPC stream to its drafter. Whatever happens to it, the session goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from coordinator.replica import Replica, Seat
from outrider.core.coordinate.drafter_bandit import Trial
from outrider.core.coordinate.statistics import SpeculationStatistics
from outrider.core.protocol.errors import WorkerUnavailableError
from outrider.core.protocol.messages import Commitment, DraftOpen, DraftWindow, Opened
from outrider.rpc.session_stream import draft_stream

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
        self._stream = draft_stream(seat.replica.channel)
        seat.on_loss = self._stream.cancel
        self._opening = opening
        self._commitments: asyncio.Queue[Commitment] = asyncio.Queue(UNREAD_COMMITMENTS_MAX)
        self._overflowed = False

    def send(self, commitment: Commitment) -> None:
        """See `DrafterLink.send`."""
        try:
            self._commitments.put_nowait(commitment)
        except asyncio.QueueFull:
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

    async def windows(self) -> AsyncGenerator[DraftWindow]:
        """See `DrafterLink.windows`."""
        writer, has_drafted = asyncio.create_task(self._write()), False
        try:
            async with aclosing(self._stream.events()) as events:
                async for event in events:
                    self._seat.hears()
                    if isinstance(event, Opened):
                        self.is_open = True
                    else:
                        if not has_drafted:
                            has_drafted = True
                            self.worker.breaker.work()
                        yield event
                    self._seat.waits()
        finally:
            writer.cancel()
        raise self._seat.loss or WorkerUnavailableError(
            "the draft service does not read what is committed"
            if self._overflowed
            else "the draft service ended the stream"
        )

    async def _write(self) -> None:
        is_open = await self._stream.send(self._opening)
        while is_open:
            is_open = await self._stream.send(await self._commitments.get())
