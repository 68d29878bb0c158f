"""Overlap of host and device: whether sessions go in one step, or in two groups whose steps are in flight in turn."""

from __future__ import annotations

from outrider.core.estimate.step_curve import StepCurve

_GAIN_MIN = 0.05
"""Share by which two groups must promise to shorten the rounds. A promise of less is not kept: steps and the host's
work scatter by a tenth, and each change between one group and two costs a round in which nothing is hidden."""

_ROWS_SMOOTHING = 1 / 16
"""Weight of the newest step in the mean number of rows: the last sixteen or so decide, as in the step curve."""


class Overlap:
    """What a host does for a step beside its device, learned online, and whether to hide it.

    With one group a round takes the step and what the host does until it has launched the next one. With two the device
    computes one group's step while the host decides the other's, so a round takes both steps, or the host's work for
    both, or one step and the host's work for it, whichever is longest. Two halves of a step take longer than the whole:
    what all tokens of a step share, reading the weights above all, is done twice.
    """

    def __init__(self) -> None:
        self._launch = StepCurve()
        self._rest = StepCurve()
        self._num_rows = 0.0
        """Rows of a session in a step, on the average."""

    def observe(self, num_sessions: int, num_rows: int, launch: float, rest: float) -> None:
        """For a step that decided so many sessions, by so many rows, the host took `launch` seconds to plan and launch
        it, and `rest` before that, to settle the last one and to read what had arrived."""
        for curve, seconds in ((self._launch, launch), (self._rest, rest)):
            if seconds > 0.0:
                curve.observe(num_sessions, seconds)
        rows = num_rows / num_sessions
        self._num_rows += (_ROWS_SMOOTHING if self._num_rows else 1.0) * (rows - self._num_rows)

    def group_size(self, num_sessions: int, together: StepCurve, apart: StepCurve) -> int:
        """Most sessions of one step where so many take part in rounds: all of them, or half.

        `together` tells the time of steps over what all of them hold in the KV cache, and `apart` over half of that.
        """
        if num_sessions < 2 or not self._num_rows:
            return num_sessions
        groups = (num_sessions + 1) // 2, num_sessions // 2
        steps = [apart.seconds(round(num * self._num_rows)) for num in groups]
        host = [self._launch.seconds(num) + self._rest.seconds(num) for num in groups]
        one = together.seconds(round(num_sessions * self._num_rows)) + self._rest.seconds(num_sessions)
        two = max(sum(steps), sum(host), steps[0] + host[0])
        return groups[0] if two < (1.0 - _GAIN_MIN) * one else num_sessions
