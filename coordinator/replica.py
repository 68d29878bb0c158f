"""Replica: one worker's health, model, load, and this coordinator's sessions at it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from coordinator.fitting import version_refusal
from coordinator.seat import Seat
from coordinator.settled_log import SettledLog
from coordinator.vigil import RECOVERY_SECONDS_MAX, RECOVERY_SECONDS_MIN, Vigil, comes
from outrider.core.coordinate.circuit_breaker import CircuitBreaker
from outrider.core.coordinate.known_load import KnownLoad
from outrider.core.coordinate.liveness import SILENCE_SECONDS
from outrider.core.coordinate.placement import ReplicaState
from outrider.core.protocol.errors import OutriderError, WorkerUnavailableError
from outrider.core.protocol.messages import ModelInfo, WorkerLoad
from outrider.core.protocol.refusal import Refusal
from outrider.rpc.session_stream import SessionStream
from outrider.rpc.status import own_task_is_cancelled, told
from outrider.rpc.worker_client import DRAFT_SERVICE, VERIFY_SERVICE, WorkerClient

HANDOVER_SECONDS = 5.0
"""Time that sessions get to end at a verifier that drains before they go on at another one: a quarter of the time that
it has by default, and longer than most take. They are looked at again so long after, as long as there is nowhere to
go."""

DRAFTER_HANDOVER_SECONDS = 0.2
"""The same at a drafter: nobody waits for what another one has to read. By then those of one that has died, which looks
alike, have left it by themselves."""

_log = structlog.get_logger()


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
        has_peers: Callable[[Replica], bool] = lambda replica: False,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        """`client` is the replica's own: `stop` closes it. `service` is VERIFY_SERVICE or DRAFT_SERVICE.

        `admit` is awaited each time the worker begins to serve; what it refuses or fails at keeps sessions away.
        `on_change` is called when the worker begins or ceases to serve, `on_seats` with the change of its own sessions.
        `has_peers` says whether there are others that serve. A worker that is silent for `silence_seconds`, or does not
        get on, is left.
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
        self.breaker = CircuitBreaker()
        """Of the streams that it breaks."""
        self._admit = admit
        self._on_change = on_change
        self._on_seats = on_seats
        self._has_peers = has_peers
        self._vigil = Vigil(self, client.ask_load, silence_seconds)
        self._recovery: asyncio.Task[None] | None = None
        self._refusal_changed = asyncio.Event()
        self._handover: asyncio.TimerHandle | None = None
        self._known_load = KnownLoad()
        self._distrusted_id = ""
        """`instance_id` of the process that said what cannot be true; empty if none did."""
        self._seats: set[Seat] = set()
        self._watch: asyncio.Task[None] | None = None
        self._load_watch: asyncio.Task[None] | None = None

    def open_session(self) -> SessionStream[Any, Any]:
        """See `WorkerClient.open_session`."""
        return self.client.open_session()

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
        return self._known_load.state(self._seats, self.model.max_sessions)

    @property
    def load(self) -> WorkerLoad | None:
        """Its last report; None while it has sent none."""
        return self._known_load.report

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
        tasks = [task for task in (self._watch, self._load_watch, self._recovery) if task is not None]
        for task in tasks:
            task.cancel()
        self._cancel_handover()
        await asyncio.gather(*tasks, self._vigil.stop(), return_exceptions=True)
        self.log.close()
        await self.client.close()

    def take(self, num_tokens: int) -> Seat:
        """A seat for a session that begins with a line of `num_tokens`."""
        seat = Seat(self, num_tokens, time.monotonic())
        self._seats.add(seat)
        self._vigil.begin()
        self._on_seats(self, 1)
        return seat

    def leave(self, seat: Seat) -> None:
        """See `Seat.leave`."""
        if seat not in self._seats:
            return
        self._seats.remove(seat)
        if not self._seats:
            self._vigil.end()
        self._known_load.leave(seat, time.monotonic())
        self._on_seats(self, -1)

    def on_event(self) -> None:
        """The worker said something to a session."""
        self._vigil.liveness.on_event(time.monotonic())

    @property
    def step_seconds(self) -> float:
        """See `Guarded.step_seconds`."""
        return 0.0 if self.load is None else self.load.step_ms / 1000.0

    @property
    def waits_since(self) -> float | None:
        """See `Guarded.waits_since`."""
        return min((seat.waits_since for seat in self._seats if seat.waits_since is not None), default=None)

    @property
    def is_replaceable(self) -> bool:
        """See `Guarded.is_replaceable`. A session goes on without any drafter."""
        return self.service == DRAFT_SERVICE or self._has_peers(self)

    def abandon(self, reason: str) -> None:
        """See `Guarded.abandon`. It gets no sessions before it answers again."""
        self._cease(reason)
        if self.model is not None:
            self._recovery = asyncio.create_task(self._recover(self.model, self._refusal_changed))
        self._lose([*self._seats], reason)

    def abandon_idle(self, waits_since: float, reason: str) -> None:
        """See `Guarded.abandon_idle`. A drafter may have nothing to do: nothing is worth a guess."""
        if self.service == VERIFY_SERVICE:
            self._lose([seat for seat in self._seats if (seat.waits_since or math.inf) <= waits_since], reason)

    def _lose(self, seats: Sequence[Seat], reason: str, *, is_handed_over: bool = False) -> None:
        for seat in seats:
            loss = WorkerUnavailableError(f"the worker at {self.address} was left: {reason}; try again")
            seat.lose(loss, is_handed_over=is_handed_over)

    async def _recover(self, info: ModelInfo, changed: asyncio.Event) -> None:
        """Takes the worker into use again when it answers, unless its health has `changed` before."""
        if await self._vigil.recovery(changed):
            self._serve(info)

    def _hand_over(self) -> None:
        """Sessions that have not ended at a worker that drains go on at another one, as soon as one can take them."""
        self._handover = None
        movable = [seat for seat in self._seats if seat.can_move()] if self._has_peers(self) else []
        self._lose(movable, "it is about to stop", is_handed_over=True)
        if len(movable) < len(self._seats):
            self._handover = asyncio.get_running_loop().call_later(HANDOVER_SECONDS, self._hand_over)

    def _cancel_handover(self) -> None:
        if self._handover is not None:
            self._handover.cancel()
            self._handover = None

    async def _watch_model(self) -> None:
        pause = RECOVERY_SECONDS_MIN
        while True:
            may_pass = False
            try:
                async for info in self.client.watch_model():
                    if info is None:
                        self._cease("it is loading or draining" if self.client.is_connected else "it cannot be reached")
                        # Also if it is not connected: gRPC says goodbye before a worker says that it drains.
                        delay = HANDOVER_SECONDS if self.service == VERIFY_SERVICE else DRAFTER_HANDOVER_SECONDS
                        self._handover = asyncio.get_running_loop().call_later(delay, self._hand_over)
                    else:
                        self.model = info
                        refusal = version_refusal(info) or await self._admit(self, info)
                        if refusal is None:
                            self._serve(info)
                            pause = RECOVERY_SECONDS_MIN
                        else:
                            self._refuse(refusal)
            except OutriderError as error:
                may_pass = told(error).retry_seconds is not None
                self._refuse(Refusal(str(error)))
            except BaseException as error:  # a cancelled call and a panic in Rust are no Exception
                if isinstance(error, asyncio.CancelledError) and own_task_is_cancelled():
                    raise
                _log.exception("unexpected error at a worker's start", service=self.service, address=self.address)
                self._refuse(
                    Refusal(f"it could not be taken into use ({type(error).__name__}); see the coordinator's log")
                )
            if may_pass:  # the connection may be as good as before, and the same process answer by then
                await comes(self._refusal_changed, pause)
                pause = min(2.0 * pause, RECOVERY_SECONDS_MAX)
            else:
                await self.client.until_reconnected()

    def _serve(self, info: ModelInfo) -> None:
        own = {"draft_model": info.draft_model} if info.draft_model else {}
        self.log.info("worker found", model=info.name, device=info.device, **own)
        self.breaker = CircuitBreaker()
        self._known_load.begin()
        self._set_refusal(None)
        self._load_watch = asyncio.create_task(self._watch_load())
        self._on_change(self)

    def _refuse(self, refusal: Refusal) -> None:
        """The worker answers and cannot be used."""
        if refusal != self.refusal:
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
        self._refusal_changed.set()
        self._refusal_changed = asyncio.Event()
        self._cancel_handover()
        # A worker that drains waits for its calls to end, this watch too.
        if self._load_watch is not None:
            self._load_watch.cancel()
            self._load_watch = None
        self._known_load.cease()

    async def _watch_load(self) -> None:
        try:
            async for load in self.client.watch_load():
                self._known_load.observe(load, time.monotonic())
        except OutriderError as error:
            _log.warning("worker reports no load", service=self.service, address=self.address, reason=str(error))
        self._known_load.cease()
