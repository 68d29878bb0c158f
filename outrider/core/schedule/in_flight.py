"""Steps in flight: launched, and not settled, while the verifier's scheduler plans another one over other sessions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic

from outrider.core.estimate.overlap import Overlap
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.schedule.admission import Seated
from outrider.core.schedule.step import KeyT
from outrider.core.schedule.verify_step import HeldEvents, Verification, VerifyStep

STEPS_IN_FLIGHT_MAX = 2
"""One that the device computes and one behind it. With more, sessions would wait for one another, and nothing would be
sooner."""


class InFlight(Generic[KeyT]):
    """Which steps are, when another one may be, and over how many sessions."""

    def __init__(self, overlap: Overlap | None) -> None:
        """None where a host does nothing while its device computes: then all sessions share a step."""
        self._overlap = overlap
        self._steps: deque[VerifyStep[KeyT]] = deque()
        self.num_steps = 0
        """How many there are."""
        self._settled: float | None = None
        """When the latest step was settled, if nothing was planned since."""
        self._rest = 0.0
        """How long after the settling of a step the next one was planned, of late."""

    def launch(self, step: VerifyStep[KeyT]) -> None:
        """It is in flight."""
        self._steps.append(step)
        self.num_steps += 1
        for part in step.parts:
            part.session.in_flight = True

    def hold(self, session: Verification[KeyT], event: HeldEvents[KeyT]) -> bool:
        """Whether the session is in flight: then `event` is for `land`."""
        if session.in_flight:
            session.held.append(event)
        return session.in_flight

    def land(self, step: VerifyStep[KeyT]) -> Iterable[tuple[Verification[KeyT], Sequence[HeldEvents[KeyT]]]]:
        """The step is settled: its sessions, and what was held for each; none if it was not in flight.

        Raises RuntimeError if another one was launched before it.
        """
        if not self.num_steps or not any(step is each for each in self._steps):
            return
        if step is not self._steps.popleft():
            raise RuntimeError("steps in flight are settled in the order of their launches")
        self.num_steps -= 1
        for part in step.parts:
            session = part.session
            held, session.held, session.in_flight = session.held, [], False
            yield session, held

    def others(self, seated: list[Seated[Verification[KeyT]]]) -> list[Seated[Verification[KeyT]]]:
        """Those that are not in flight."""
        return [each for each in seated if not each.session.in_flight] if self.num_steps else seated

    def group_size(self, seated: Sequence[Seated[Verification[KeyT]]], curve: Callable[[], StepCurve]) -> int:
        """Most of `seated` that one step decides."""
        if self._overlap is None:
            return len(seated)
        lengths = [len(each.session.token_ids) for each in seated if not each.is_prefilling]
        steps, num_cells = curve(), sum(lengths)
        size = self._overlap.group_size(len(lengths), steps.at(num_cells), steps.at(num_cells // 2))
        return size if size < len(lengths) else len(seated)

    def planned(self, now: float) -> None:
        """The host plans: if for the first time since a step was settled, that took it so long."""
        if self._settled is not None:
            self._rest, self._settled = now - self._settled, None

    def settled(self, now: float) -> None:
        """The host begins to settle a step."""
        self._settled = now

    def observe(self, num_sessions: int, num_rows: int, launch_seconds: float) -> None:
        """A step that decided so many sessions, by so many rows, took the host so long to launch."""
        if self._overlap is not None and num_sessions:
            self._overlap.observe(num_sessions, num_rows, launch_seconds, self._rest)
