"""What a coordinator of a fleet has of one worker."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Generic

from bench.simulate.clock import Clock
from bench.simulate.fleet.worker import Device, Told, Worker
from outrider.core.coordinate.circuit_breaker import CircuitBreaker
from outrider.core.coordinate.drafter_choice import DrafterStanding
from outrider.core.coordinate.known_load import KnownLoad
from outrider.core.coordinate.placement import ReplicaState
from outrider.core.protocol.messages import WorkerLoad

_DRAFT_MODEL = "draft"
"""All drafters of a fleet serve the same."""


@dataclass(frozen=True, slots=True)
class Seat(Generic[Device]):
    """One session's place at a worker."""

    standing: Standing[Device]
    index: int
    num_tokens: int
    taken_at: float


@dataclass(slots=True)
class Standing(Generic[Device]):
    """A worker, what is known of its load, and this coordinator's sessions there."""

    worker: Worker[Device]
    clock: Clock
    known_load: KnownLoad = field(default_factory=KnownLoad)
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    seats: dict[int, Seat[Device]] = field(default_factory=dict[int, Seat[Device]])
    is_serving: bool = True
    """As far as this coordinator knows."""

    @property
    def replica_state(self) -> ReplicaState:
        """Its load at present."""
        return self.known_load.state(self.seats.values(), self.worker.max_sessions)

    @property
    def as_drafter(self) -> DrafterStanding:
        """The same as the choice of a drafter looks at it. Its model's context has no end."""
        return DrafterStanding(self.worker.name, self.replica_state, self.breaker, _DRAFT_MODEL, sys.maxsize)

    def take(self, index: int, num_tokens: int, listen: Callable[[Told], None]) -> Seat[Device]:
        """A seat for a session, whose events `listen` hears."""
        seat = self.seats[index] = Seat(self, index, num_tokens, self.clock.now)
        self.worker.listeners[index] = listen
        return seat

    def leave(self, seat: Seat[Device]) -> None:
        """The session is not there any more."""
        del self.seats[seat.index]
        del self.worker.listeners[seat.index]
        self.known_load.leave(seat, self.clock.now)

    def report(self, after: Callable[[float, Callable[[], None]], None], seconds: float) -> None:
        """The worker tells its load; `after` has it read by the coordinator, at the cost of `seconds`."""
        after(seconds, partial(self._observe, self.worker.load()))

    def _observe(self, load: WorkerLoad) -> None:
        if self.is_serving:
            self.known_load.observe(load, self.clock.now)
