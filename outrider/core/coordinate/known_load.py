"""What one coordinator knows of a worker's load: its last report, and its own sessions' changes since."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Protocol

from outrider.core.coordinate.placement import ReplicaState, StepTime
from outrider.core.protocol.messages import WorkerLoad

REPORT_LAG_SECONDS = 0.1
"""A load report may not count changes from less than this long before it arrived: the network both ways, and delays of
two event loops."""


class Place(Protocol):
    """One of the coordinator's sessions at the worker."""

    @property
    def taken_at(self) -> float:
        """When it was sent there."""
        ...

    @property
    def num_tokens(self) -> int:
        """Length of the line that it began with."""
        ...


class KnownLoad:
    """Times are in seconds, by any clock that only rises. Deterministic."""

    def __init__(self) -> None:
        self.report: WorkerLoad | None = None
        """The last one; None while there is none, or while the worker does not serve."""
        self._reported_at = 0.0
        self._step_time = StepTime()
        self._leavings: deque[float] = deque()
        """When sessions ended that the report counts."""

    def begin(self) -> None:
        """A worker begins to serve: its steps may take another time than before."""
        self._step_time = StepTime()

    def cease(self) -> None:
        """It serves no more."""
        self.report = None
        self._leavings.clear()

    def observe(self, report: WorkerLoad, now: float) -> None:
        """A report arrives."""
        self.report = report
        self._reported_at = now
        self._step_time.observe(report)
        while self._leavings and self._leavings[0] <= self._known_until:
            self._leavings.popleft()

    def leave(self, place: Place, now: float) -> None:
        """A session that was there has ended."""
        if self.report is not None and place.taken_at <= self._known_until:
            self._leavings.append(now)

    def state(self, places: Collection[Place], max_sessions: int) -> ReplicaState:
        """The worker's load at present, with this coordinator's sessions at `places`."""
        unreported = [place for place in places if self.report is None or place.taken_at > self._known_until]
        return ReplicaState(
            self._step_time,
            self.report,
            max_sessions,
            num_unreported=len(unreported),
            num_unreported_tokens=sum(place.num_tokens for place in unreported),
            num_left=len(self._leavings),
            num_own=len(places),
        )

    @property
    def _known_until(self) -> float:
        return self._reported_at - REPORT_LAG_SECONDS
