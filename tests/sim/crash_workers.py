"""Sessions at workers that may crash: what a verifier and a drafter do with one stream."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from outrider.core.protocol.messages import DraftWindow, VerifyOpen

from .drafters import Babbler, HonestDrafter, break_window
from .processes import Process, Stream
from .scenario import Scenario
from .verifier import CheckedVerifier

if TYPE_CHECKING:
    from .crashes import CrashingWorld

STEP_SECONDS_MAX = 0.01
"""Longest step of a worker."""


class VerifierSide:
    """A session at a verifier: opened by the first command, stepped until it ends or is closed."""

    def __init__(self, world: CrashingWorld, process: Process) -> None:
        self.process = process
        self._world = world
        self._worker: CheckedVerifier | None = None
        self._arrived: list[Any] = []
        self._is_over = False

    def on_message(self, stream: Stream, message: Any) -> None:
        """See `End`."""
        if isinstance(message, VerifyOpen):
            if self._worker is None:  # else it was said again
                self._worker = CheckedVerifier(self._world.scenario, message)
                self._begin(stream)
        elif self._worker is not None and not self._is_over:
            if self._worker.step is None:
                self._tell(message)
            else:
                self._arrived.append(message)

    def on_closed(self, stream: Stream) -> None:
        """See `End`."""
        self._is_over = True

    def _begin(self, stream: Stream) -> None:
        if self._worker is None or self._is_over:
            return
        self._worker.begin(self._world.tick())
        self.process.after(self._world.rng.uniform(0.1, 1.0) * STEP_SECONDS_MAX, partial(self._end, stream))

    def _end(self, stream: Stream) -> None:
        if self._worker is None or self._is_over:
            return
        verdict, finished = self._worker.end(self._world.tick())
        self._world.check_verdict(verdict)
        stream.send(self, verdict)
        if finished is not None:
            self._is_over = True
            stream.send(self, finished)
            self._world.strike_at_the_end("verifier")
            stream.close(self)
            return
        for message in self._arrived:
            self._tell(message)
        self._arrived.clear()
        self._begin(stream)

    def _tell(self, message: Any) -> None:
        if isinstance(message, DraftWindow) and self._worker is not None:
            self._worker.graft(message, self._world.tick())


class DrafterSide:
    """A session at a drafter."""

    def __init__(self, world: CrashingWorld, process: Process) -> None:
        self.process = process
        self._world = world
        self._drafter: HonestDrafter | Babbler | None = None
        self._is_over = False
        self._is_stepping = False

    def on_message(self, stream: Stream, message: Any) -> None:
        """See `End`."""
        if isinstance(message, Scenario):
            if self._drafter is None:
                is_honest = self._world.rng.random() > 0.1
                self._drafter = (HonestDrafter if is_honest else Babbler)(message, self._world.rng)
        elif self._drafter is not None:
            self._drafter.on_commitment(message)
            self._world.check_drafter(self._drafter)
        self._go_on(stream)

    def on_closed(self, stream: Stream) -> None:
        """See `End`."""
        self._is_over = True

    def _go_on(self, stream: Stream) -> None:
        if self._drafter is not None and not self._is_over and not self._is_stepping and self._drafter.can_step():
            self._is_stepping = True
            self.process.after(self._world.rng.uniform(0.1, 1.0) * STEP_SECONDS_MAX / 4, partial(self._step, stream))

    def _step(self, stream: Stream) -> None:
        self._is_stepping = False
        if self._drafter is None or self._is_over:
            return
        window = self._drafter.step()
        if window is not None:
            if len(window) and self._world.rng.random() < 0.01:
                self._world.seen["breach"] += 1
                window = break_window(window, self._world.rng)
            stream.send(self, window)
        self._go_on(stream)
