"""The number of levels before a step: the one that commits the most tokens per second, and none where none pays."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from outrider.core.estimate.step_curve import StepCurve
from outrider.core.schedule.draft_depth import IDLE_ROUNDS, TRIAL_ROUNDS, DraftDepth, Round
from outrider.core.schedule.draft_run import LEVELS_MAX


class Device:
    """A device on a virtual clock: a step takes 1, and each token after the first a little more."""

    def __init__(
        self, coverage: float, level: float, *, num_sessions: int = 1, token: float = 0.02, beyond: float = 0.0
    ) -> None:
        """A session's guesses for a place hold the target's choice with chance `coverage`; a level takes `level`, and
        a tenth of that more for each further session. Below all of that, look-ups add `beyond` tokens."""
        self.coverage = coverage
        self.num_sessions = num_sessions
        self._level, self._token, self._beyond = level, token, beyond
        self._chance = random.Random(1)

    def level_seconds(self, num_sessions: int) -> float:
        return self._level * (1.0 + 0.1 * (num_sessions - 1))

    def step_seconds(self, num_tokens: int) -> float:
        return 1.0 + self._token * (num_tokens - 1)

    def accepted(self, num_levels: int) -> int:
        num = 0
        while num < num_levels and self._chance.random() < self.coverage:
            num += 1
        beyond = self._beyond if num == num_levels else 0.0
        return num + int(beyond + self._chance.random())

    def rate(self, depth: Callable[[], int], num_turns: int, learn: DraftDepth | None = None) -> float:
        """Tokens per second over so many turns, of which each drafts two nodes a level."""
        seconds, num_tokens = 0.0, 0
        for _ in range(num_turns):
            num_levels = depth()
            num_scored = self.num_sessions * (1 + 2 * num_levels)
            level, step = self.level_seconds(self.num_sessions), self.step_seconds(num_scored)
            seconds += num_levels * level + step
            accepted = [self.accepted(num_levels) for _ in range(self.num_sessions)]
            num_tokens += self.num_sessions + sum(accepted)
            if learn is not None:
                if num_levels:
                    learn.observe_drafting(self.num_sessions, num_levels, num_levels * level)
                learn.step_curve.observe(num_scored, step)
                for each in accepted:
                    learn.observe(Round(False, num_levels, 2 * num_levels, each))
        return num_tokens / seconds


def begun(device: Device) -> DraftDepth:
    """What knows the times of `device` as a worker does at its start, and nothing of its text."""
    drafting, verifying = StepCurve(), StepCurve()
    for size in (1, 2, 4, 8, 16, 32, 64):
        drafting.observe(size, device.level_seconds(size))
        verifying.observe(size, device.step_seconds(size))
    depth = DraftDepth()
    depth.foresee(drafting, verifying)
    return depth


WORLDS: Sequence[Callable[[], Device]] = [
    lambda: Device(0.8, 0.2),
    lambda: Device(0.6, 0.3),
    lambda: Device(0.9, 0.05),
    lambda: Device(0.3, 0.1),
    lambda: Device(0.3, 0.6),
    lambda: Device(0.02, 0.3),
    lambda: Device(0.6, 0.3, num_sessions=8, token=0.1),
    lambda: Device(0.6, 0.3, num_sessions=8, token=0.4),
    lambda: Device(0.7, 0.2, beyond=3.0),
]


@pytest.mark.parametrize("world", WORLDS)
def test_the_rate_is_near_that_of_the_best_number_of_levels(world: Callable[[], Device]) -> None:
    best = max(world().rate(lambda levels=levels: levels, 4000) for levels in range(LEVELS_MAX + 1))
    device = world()
    depth = begun(device)
    device.rate(lambda: depth.choose(0, device.num_sessions), 200, depth)
    assert device.rate(lambda: depth.choose(0, device.num_sessions), 4000, depth) > 0.87 * best


@pytest.mark.parametrize("world", WORLDS)
def test_it_is_not_slower_than_without_drafts(world: Callable[[], Device]) -> None:
    alone = world().rate(lambda: 0, 4000)
    device = world()
    depth = begun(device)
    assert device.rate(lambda: depth.choose(0, device.num_sessions), 4000, depth) > 0.98 * alone


def test_it_finds_back_when_the_text_changes() -> None:
    device = Device(0.0, 0.3)
    depth = begun(device)
    device.rate(lambda: depth.choose(0, 1), 500, depth)
    assert depth.choose(0, 1) == 0
    device.coverage = 0.9
    device.rate(lambda: depth.choose(0, 1), 4 * (IDLE_ROUNDS + TRIAL_ROUNDS), depth)
    assert depth.choose(0, 1) >= 2


def test_greedy_and_sampled_sessions_are_told_apart() -> None:
    device = Device(0.5, 0.3)
    depth = begun(device)
    for _ in range(200):
        depth.observe(Round(True, 4, 4, 4))
        depth.observe(Round(False, 4, 4, 0))
    assert depth.choose(1, 0) > 4
    assert depth.choose(0, 1) == 0
    assert 0 < depth.choose(4, 1) <= depth.choose(1, 0)


def test_nothing_is_drafted_before_times_are_known() -> None:
    assert DraftDepth().choose(1, 1) == 0
