"""Replica: one worker's health, model, load, and this coordinator's sessions at it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

import grpc.aio
import structlog

from coordinator.fitting import version_refusal
from coordinator.settled_log import SettledLog
from outrider.core.coordinate.placement import ReplicaState, StepTime
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.messages import ModelInfo, WorkerLoad
from outrider.core.protocol.refusal import Refusal
from outrider.rpc.status import own_task_is_cancelled
from outrider.rpc.worker_client import WorkerClient

REPORT_LAG_SECONDS = 0.1
"""A load report may not count changes from less than this long before it arrived: the network both ways, and delays of
two event loops."""

_log = structlog.get_logger()


class Seat:
    """One session's place at a replica, from the routing decision to `leave`."""

    __slots__ = ("num_tokens", "replica", "taken_at")

    def __init__(self, replica: Replica, num_tokens: int, taken_at: float) -> None:
        self.replica = replica
        self.num_tokens = num_tokens
        """Length of the line that it began with."""
        self.taken_at = taken_at

    def leave(self) -> None:
        """The session is not there any more. Calling it twice is harmless."""
        self.replica.leave(self)


class Replica:
    """Watches one worker's health and load. Its channel stays open while it drains, so that sessions can finish."""

    def __init__(
        self,
        address: str,
        service: str,
        client: WorkerClient,
        *,
        admit: Callable[[Replica, ModelInfo], Awaitable[Refusal | None]],
        on_change: Callable[[Replica], None],
        on_seats: Callable[[Replica, int], None],
    ) -> None:
        """`client` is the replica's own: `stop` closes it. `service` is VERIFY_SERVICE or DRAFT_SERVICE.

        `admit` is awaited each time the worker begins to serve; what it refuses or fails at keeps sessions away.
        `on_change` is called when the worker begins or ceases to serve, `on_seats` with the change of its own sessions.
        """
        self.address = address
        self.service = service
        self.client = client
        self.log = SettledLog(service=service, address=address)
        """Log of its health."""
        self.model: ModelInfo | None = None
        """What it serves, or served last; None while it has never answered."""
        self.refusal: Refusal | None = Refusal("it has not answered yet")
        """Why it is not serving; None if it is."""
        self.has_answered = False
        """Whether it has been asked once, with or without success."""
        self.is_retired = False
        """Whether its name does not resolve to it any more: it gets no new sessions and goes after its last one."""
        self.load: WorkerLoad | None = None
        self.num_failures = 0
        """Streams that it has broken since it last ended one well."""
        self._admit = admit
        self._on_change = on_change
        self._on_seats = on_seats
        self._step_time = StepTime()
        self._reported_at = 0.0
        self._distrusted_id = ""
        """`instance_id` of the process that said what cannot be true; empty if none did."""
        self._seats: set[Seat] = set()
        self._leavings: deque[float] = deque()
        """When sessions ended that the present report counts."""
        self._watch: asyncio.Task[None] | None = None
        self._load_watch: asyncio.Task[None] | None = None

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel that sessions share."""
        return self.client.channel

    @property
    def is_serving(self) -> bool:
        """Whether health, version and admission are all right."""
        return self.refusal is None

    @property
    def num_own_sessions(self) -> int:
        """Sessions of this coordinator that are there."""
        return len(self._seats)

    @property
    def replica_state(self) -> ReplicaState:
        """Its load at present. Only while its model is known."""
        assert self.model is not None
        unreported = [seat for seat in self._seats if self.load is None or seat.taken_at > self._known_until]
        return ReplicaState(
            self._step_time,
            self.load,
            self.model.max_sessions,
            num_unreported=len(unreported),
            num_unreported_tokens=sum(seat.num_tokens for seat in unreported),
            num_left=len(self._leavings),
        )

    def distrust(self, reason: str) -> None:
        """The process that serves here said what cannot be true. It gets no session any more before it restarts."""
        if self.model is not None and self._distrusted_id != self.model.instance_id:
            self._distrusted_id = self.model.instance_id
            _log.error("worker not trusted", service=self.service, address=self.address, reason=reason)
            self._on_change(self)

    @property
    def distrust_refusal(self) -> Refusal | None:
        """Why what serves here is not to be trusted; None if there is no reason."""
        if self.model is None or self._distrusted_id != self.model.instance_id:
            return None
        return Refusal("it said what cannot be true; restart it, and see the coordinator's log")

    def start(self) -> None:
        """Begins to watch. Needs a running event loop."""
        self._watch = asyncio.create_task(self._watch_model())

    async def stop(self) -> None:
        """Ends the watches and closes the channel."""
        tasks = [task for task in (self._watch, self._load_watch) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.log.close()
        await self.client.close()

    def take(self, num_tokens: int) -> Seat:
        """A seat for a session that begins with a line of `num_tokens`."""
        seat = Seat(self, num_tokens, time.monotonic())
        self._seats.add(seat)
        self._on_seats(self, 1)
        return seat

    def leave(self, seat: Seat) -> None:
        """See `Seat.leave`."""
        if seat not in self._seats:
            return
        self._seats.remove(seat)
        if self.load is not None and seat.taken_at <= self._known_until:
            self._leavings.append(time.monotonic())
        self._on_seats(self, -1)

    @property
    def _known_until(self) -> float:
        return self._reported_at - REPORT_LAG_SECONDS

    async def _watch_model(self) -> None:
        while True:
            try:
                async for info in self.client.watch_model():
                    if info is None:
                        self._cease("it is loading or draining" if self.client.is_connected else "it cannot be reached")
                    else:
                        self.model = info
                        refusal = version_refusal(info) or await self._admit(self, info)
                        if refusal is None:
                            self._serve(info)
                        else:
                            self._refuse(refusal)
            except OutriderError as error:
                self._refuse(Refusal(str(error)))
            except BaseException as error:  # a cancelled call and a panic in Rust are no Exception
                if isinstance(error, asyncio.CancelledError) and own_task_is_cancelled():
                    raise
                _log.exception("unexpected error at a worker's start", service=self.service, address=self.address)
                self._refuse(
                    Refusal(f"it could not be taken into use ({type(error).__name__}); see the coordinator's log")
                )
            await self.client.until_reconnected()

    def _serve(self, info: ModelInfo) -> None:
        self.log.info("worker found", model=info.name, device=info.device)
        self.num_failures = 0
        self._step_time = StepTime()
        self._set_refusal(None)
        self._load_watch = asyncio.create_task(self._watch_load())
        self._on_change(self)

    def _refuse(self, refusal: Refusal) -> None:
        """The worker answers and cannot be used."""
        self.log.error("worker cannot be used", reason=refusal.text)
        self._set_refusal(refusal)
        self._on_change(self)

    def _cease(self, reason: str) -> None:
        """The worker's health says that it does not serve, or the worker does not answer."""
        if self.is_serving:
            self.log.warning("worker not serving", reason=reason)
        self._set_refusal(Refusal(reason))
        self._on_change(self)

    def _set_refusal(self, refusal: Refusal | None) -> None:
        self.has_answered = True
        self.refusal = refusal
        # A worker that drains waits for its calls to end, this watch too.
        if self._load_watch is not None:
            self._load_watch.cancel()
            self._load_watch = None
        self.load = None
        self._leavings.clear()

    async def _watch_load(self) -> None:
        try:
            async for load in self.client.watch_load():
                self.load = load
                self._reported_at = time.monotonic()
                self._step_time.observe(load)
                while self._leavings and self._leavings[0] <= self._known_until:
                    self._leavings.popleft()
        except OutriderError as error:
            _log.warning("worker reports no load", service=self.service, address=self.address, reason=str(error))
        self.load = None
