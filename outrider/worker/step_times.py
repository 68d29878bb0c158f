"""The time of a worker's steps, by the way that they went through the model."""

from __future__ import annotations

from collections.abc import Sequence

from outrider.telemetry.metrics import StepTime


class StepTimes:
    """Sums since the process began: rates are made by whoever reads them."""

    def __init__(self) -> None:
        self._of: dict[str, StepTime] = {}

    def add(self, path: str, seconds: float, num_steps: int = 1) -> None:
        """A step went that way, or several that took so long together. Device thread only."""
        _, num_before, so_far = self._of.get(path) or StepTime(path, 0, 0.0)
        self._of[path] = StepTime(path, num_before + num_steps, so_far + seconds)

    def read(self) -> Sequence[StepTime]:
        """The sums. Any thread."""
        return [*self._of.copy().values()]
