"""How many levels are drafted before a step, where one device drafts and verifies in turn.

Then a level costs what it takes, and nothing else goes on meanwhile: so many levels are right as let a turn, which is
those levels and one step, commit the most tokens per second.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from operator import mul
from typing import NamedTuple

from outrider.core.estimate.step_curve import StepCurve
from outrider.core.schedule.draft_run import LEVELS_MAX

_COVERAGE_PRIOR = 0.7
"""Share of places where the target's choice is among the guesses, before any was decided; as in `draft_wait.py`."""

_PRIOR_WEIGHT = 4.0
"""Decided places that it counts as: the first answers are to tell."""

_MEMORY = 64.0
"""Decided places of a depth that count; older ones fade, since a text's predictability changes along the way."""

_SMOOTHING = 0.1
"""Weight of the newest round in running means: the last ten or so decide."""

_GAIN_MIN = 0.1
"""Share by which drafting must promise to raise the rate, or nothing is drafted: a promise of less is mostly chance, or
lost where a burst ends (see `policy.OWN_GAIN_MIN`)."""

_FORESEEN_SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Tokens of a step whose time is foreseen."""

IDLE_ROUNDS = 1024
"""Turns without drafts after which some are tried again: texts change."""

TRIAL_ROUNDS = 16
"""Turns of such a trial. Where drafting costs as much as it brings in vain, as much again as a step, that is 1.5 % of
all time."""


class Round(NamedTuple):
    """A session's round."""

    greedy: bool
    num_levels: int
    """That were drafted for it."""
    num_scored: int
    """Nodes."""
    num_accepted: int


class DraftDepth:
    """Chooses the number of levels by what turns have taken and what their rounds have accepted.

    Sessions that decide greedily and those that sample are told apart. Times are in seconds.
    """

    def __init__(self) -> None:
        self._drafting: dict[int, StepCurve] = {}
        """The time of drafting by the number of levels, for each power of two of sessions, with all that Python does
        before and after."""
        self._level_seconds: Callable[[int], float] = lambda num_sessions: 0.0
        self.step_curve = StepCurve()
        """The time of a verify step by the number of its tokens, likewise."""
        self._kinds = {greedy: _Acceptance() for greedy in (True, False)}
        self._num_scored = [float(num_levels) for num_levels in range(LEVELS_MAX + 1)]
        """Nodes of a session that a step scores, by the number of levels: never falling, and in each level no more than
        in those above it."""
        self._num_idle = 0
        """Turns since the last one that drafted, or of a trial."""

    def foresee(self, drafting: StepCurve, verifying: StepCurve) -> None:
        """What was learned of times is void; until there were turns, the passes alone are what they take."""
        self._drafting.clear()
        self._level_seconds = drafting.seconds
        self.step_curve.restart((size, verifying.seconds(size)) for size in _FORESEEN_SIZES)

    def observe_drafting(self, num_sessions: int, num_levels: int, seconds: float) -> None:
        """So many levels of so many sessions took so long."""
        self._drafting_curve(num_sessions).observe(num_levels, seconds)

    def observe(self, decided: Round) -> None:
        """A round was decided."""
        self._kinds[decided.greedy].observe(decided.num_levels, decided.num_accepted)
        if decided.num_levels:
            self._observe_scored(decided.num_levels, decided.num_scored)

    def choose(self, num_greedy: int, num_sampled: int) -> int:
        """How many levels to draft before the next step, which decides so many sessions; at most LEVELS_MAX."""
        num_sessions = num_greedy + num_sampled
        drafting = self._drafting_curve(num_sessions)
        greedy, sampled = (self._kinds[kind].expected(LEVELS_MAX) for kind in (True, False))
        rates: list[float] = []
        for num_levels in range(LEVELS_MAX + 1):
            num_tokens = num_sessions * (1.0 + self._num_scored[num_levels])
            seconds = self.step_curve.seconds(round(num_tokens))
            seconds += drafting.seconds(num_levels) if num_levels else 0.0
            expected = num_sessions + num_greedy * greedy[num_levels] + num_sampled * sampled[num_levels]
            rates.append(expected / seconds if seconds > 0.0 else 0.0)
        best = max(range(1, LEVELS_MAX + 1), key=rates.__getitem__)
        if rates[best] > (1.0 + _GAIN_MIN) * rates[0]:
            self._num_idle = 0
            return best
        self._num_idle += 1
        if self._num_idle <= IDLE_ROUNDS:
            return 0
        if self._num_idle == IDLE_ROUNDS + TRIAL_ROUNDS:
            self._num_idle = 0
        return best

    def _observe_scored(self, num_levels: int, num_scored: int) -> None:
        scored = self._num_scored
        mean = scored[num_levels] + _SMOOTHING * (num_scored - scored[num_levels])
        for other in range(1, LEVELS_MAX + 1):
            bounds = mean, mean * other / num_levels
            scored[other] = min(max(scored[other], min(bounds)), max(bounds))

    def _drafting_curve(self, num_sessions: int) -> StepCurve:
        most = 1 << (num_sessions - 1).bit_length()
        if most not in self._drafting:
            curve = self._drafting[most] = StepCurve()
            seconds = self._level_seconds(most)
            if seconds > 0.0:
                curve.restart((num_levels, num_levels * seconds) for num_levels in range(1, LEVELS_MAX + 1))
        return self._drafting[most]


class _Acceptance:
    """How far rounds of one kind of session get."""

    def __init__(self) -> None:
        self._coverages = [_COVERAGE_PRIOR] * LEVELS_MAX
        """For each depth the share of rounds that accept it of those that accept the one before and were drafted so
        deep."""
        self._weights = [_PRIOR_WEIGHT] * LEVELS_MAX
        self._beyond = 0.0
        """Tokens that a round accepts below all that was drafted, by what the verifier looks up."""

    def observe(self, num_levels: int, num_accepted: int) -> None:
        """A round with so many levels accepted so many tokens."""
        for depth in range(min(num_levels, num_accepted + 1)):
            weight = self._weights[depth] = min(self._weights[depth] + 1.0, _MEMORY)
            self._coverages[depth] += ((num_accepted > depth) - self._coverages[depth]) / weight
        for depth in range(max(num_levels, 1), LEVELS_MAX):  # what was not drafted is as good as the level above it
            if self._weights[depth] == _PRIOR_WEIGHT:
                self._coverages[depth] = self._coverages[depth - 1]
        if num_accepted >= num_levels:
            self._beyond += _SMOOTHING * (num_accepted - num_levels - self._beyond)

    def expected(self, most: int) -> list[float]:
        """How many tokens a round is expected to accept with 0, 1, ... `most` levels."""
        reached = list(accumulate(self._coverages[:most], mul, initial=1.0))
        sums = accumulate(reached[1:], initial=0.0)
        return [accepted + chance * self._beyond for accepted, chance in zip(sums, reached, strict=True)]
