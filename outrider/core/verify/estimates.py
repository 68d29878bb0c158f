"""What one verifier has learned about its device and its drafts: the prior of each session."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from outrider.core.estimate.calibration import Calibration
from outrider.core.estimate.confidence import VERIFY_PROBABILITIES
from outrider.core.estimate.context_cost import ContextTime
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.verify.draft_wait import DraftWait


class VerifyEstimates:
    """The time of steps, how often guesses are right, and how long drafts take."""

    def __init__(self) -> None:
        self.curve = StepCurve()
        """The time of steps while a drafter works beside the target."""
        self._alone: StepCurve | None = None
        self.probability_min = 0.0
        """Of the latest step; see `Selection`."""
        self._greedy = Calibration(VERIFY_PROBABILITIES), DraftWait()
        self._sampled = Calibration(VERIFY_PROBABILITIES), DraftWait()

    def of(self, *, greedy: bool) -> tuple[Calibration, DraftWait]:
        """What holds for greedy sessions, or for the others."""
        return self._greedy if greedy else self._sampled

    @property
    def alone(self) -> StepCurve:
        """The time of steps while no drafts are expected.

        A target that runs alone may have the machine to itself: its steps tell nothing of those beside a drafter.
        """
        if self._alone is None:
            self._alone = copy.deepcopy(self.curve)
        return self._alone

    def restart(self, observations: Iterable[tuple[int, float]], in_context: Iterable[ContextTime] = ()) -> None:
        """Forgets the time of steps but for these; see `StepCurve.restart`."""
        self.curve.restart(observations, in_context)
        self._alone = None
