"""One worker of a pool: whether it serves, what, how busy it is, and which of this coordinator's sessions it has."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

import grpc
import structlog

from coordinator.fitting import check_version
from outrider.core.coordinate.placement import ReplicaState, StepTime
from outrider.core.protocol.errors import OutriderError
from outrider.core.protocol.messages import ModelInfo, WorkerLoad
from outrider.rpc.channels import open_channel
from outrider.rpc.worker_client import until_reconnected, watch_load, watch_model

REPORT_LAG_SECONDS = 0.1
"""A report may not know yet what happened less than this long before it came: the way to the worker and back, and the
hold-ups of two event loops."""

_log = structlog.get_logger()


class Seat:
    """One session's place at a replica, from its choice to `leave`."""

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
    """Watches one worker. Its channel lives as long as it does, so sessions go on while it drains."""

    def __init__(
        self,
        address: str,
        service: str,
        *,
        admit: Callable[[Replica, ModelInfo], Awaitable[None]],
        on_change: Callable[[Replica], None],
        on_seats: Callable[[Replica, int], None],
    ) -> None:
        """`service` is VERIFY_SERVICE or DRAFT_SERVICE.

        `admit` is awaited each time the worker begins to serve, and raises OutriderError if it cannot be used;
        `on_change` is called when it begins or ceases to serve, `on_seats` with what was added to its own sessions.
        """
        self.address = address
        self.service = service
        self.channel = open_channel(address)
        self.model: ModelInfo | None = None
        """What it serves, or served last; None while it has never answered."""
        self.is_serving = False
        self.problem = "it has not answered yet"
        """Why it is not serving; empty if it is."""
        self.has_answered = False
        """Whether it has been asked once, be it without success."""
        self.is_retired = False
        """Whether its name stands for it no longer: it gets no new sessions, and goes when its last one has ended."""
        self.load: WorkerLoad | None = None
        self.num_failures = 0
        """Streams that it broke since it last ended one well."""
        self._admit = admit
        self._on_change = on_change
        self._on_seats = on_seats
        self._step_time = StepTime()
        self._reported_at = 0.0
        self._seats: set[Seat] = set()
        self._leavings: deque[float] = deque()
        """When seats were left that the present report counts."""
        self._watch: asyncio.Task[None] | None = None
        self._load_watch: asyncio.Task[None] | None = None

    @property
    def num_own_sessions(self) -> int:
        """Sessions of this coordinator that are there."""
        return len(self._seats)

    @property
    def replica_state(self) -> ReplicaState:
        """How it stands at present. Only while its model is known."""
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

    def start(self) -> None:
        """Begins to watch. Needs a running event loop."""
        self._watch = asyncio.create_task(self._watch_model())

    async def stop(self) -> None:
        """Ends the watches and closes the channel."""
        tasks = [task for task in (self._watch, self._load_watch) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.channel.close()

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
                async for info in watch_model(self.channel, self.service):
                    if info is None:
                        reached = self.channel.get_state() is grpc.ChannelConnectivity.READY
                        self._cease("it is loading or draining" if reached else "it cannot be reached")
                    else:
                        self.model = info
                        check_version(info)
                        await self._admit(self, info)
                        self._serve(info)
            except OutriderError as error:
                _log.error("worker cannot be used", service=self.service, address=self.address, reason=str(error))
                self._cease(str(error))
            await until_reconnected(self.channel)

    def _serve(self, info: ModelInfo) -> None:
        _log.info("worker found", service=self.service, address=self.address, model=info.name, device=info.device)
        self.is_serving = True
        self.has_answered = True
        self.problem = ""
        self.num_failures = 0
        self._step_time = StepTime()
        self._forget_load()
        self._load_watch = asyncio.create_task(self._watch_load())
        self._on_change(self)

    def _cease(self, problem: str) -> None:
        if self.is_serving:
            _log.warning("worker not serving", service=self.service, address=self.address, reason=problem)
        self.is_serving = False
        self.has_answered = True
        self.problem = problem
        # A worker that drains waits for its calls to end.
        self._forget_load()
        self._on_change(self)

    def _forget_load(self) -> None:
        if self._load_watch is not None:
            self._load_watch.cancel()
            self._load_watch = None
        self.load = None
        self._leavings.clear()

    async def _watch_load(self) -> None:
        try:
            async for load in watch_load(self.channel, self.service):
                self.load = load
                self._reported_at = time.monotonic()
                self._step_time.observe(load)
                while self._leavings and self._leavings[0] <= self._known_until:
                    self._leavings.popleft()
        except OutriderError as error:
            _log.warning("worker tells no load", service=self.service, address=self.address, reason=str(error))
        self.load = None
