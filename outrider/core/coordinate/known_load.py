"""What one coordinator knows of a worker's load: its last report, and its own sessions' changes since."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

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


class _Left(NamedTuple):
    """A session that was there."""

    taken_at: float
    ended_at: float


class KnownLoad:
    """Times are in seconds, by any clock that only rises. Deterministic."""

    def __init__(self) -> None:
        self.report: WorkerLoad | None = None
        """The last one; None while there is none, or while the worker does not serve."""
        self._reported_at = 0.0
        self._step_time = StepTime()
        self._left: list[_Left] = []
        """Sessions that have ended, and that the report may count, or the next one."""

    def begin(self) -> None:
        """A worker begins to serve: its steps may take another time than before."""
        self._step_time = StepTime()

    def cease(self) -> None:
        """It serves no more."""
        self.report = None
        self._left.clear()

    def observe(self, report: WorkerLoad, now: float) -> None:
        """A report arrives."""
        self.report = report
        self._reported_at = now
        self._step_time.observe(report)
        self._forget(now)

    def leave(self, place: Place, now: float) -> None:
        """A session that was there has ended."""
        if self.report is not None:
            self._forget(now)
            self._left.append(_Left(place.taken_at, now))

    def state(self, places: Collection[Place], max_sessions: int) -> ReplicaState:
        """The worker's load at present, with this coordinator's sessions at `places`.

        Its own sessions are counted as they are. The report may count any that was there at some time since
        REPORT_LAG_SECONDS before it arrived; what it counts beside those are others'.
        """
        num_recounted = num_unreported_tokens = 0
        if self.report is not None:
            num_recounted = sum(each.taken_at <= self._reported_at for each in (*places, *self._left))
        for place in places:
            if self.report is None or place.taken_at > self._known_until:
                num_unreported_tokens += place.num_tokens
        return ReplicaState(
            self._step_time,
            self.report,
            max_sessions,
            num_own=len(places),
            num_recounted=num_recounted,
            num_unreported_tokens=num_unreported_tokens,
        )

    def _forget(self, now: float) -> None:
        """Of those that have ended it remembers the ones that this report, or one that arrives later, may count."""
        next_known = now - REPORT_LAG_SECONDS
        self._left = [
            each
            for each in self._left
            if each.ended_at > (self._known_until if each.taken_at <= self._reported_at else next_known)
        ]

    @property
    def _known_until(self) -> float:
        return self._reported_at - REPORT_LAG_SECONDS
