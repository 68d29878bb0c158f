"""Times of a completion, and the deadline as a verifier hears of it."""

from __future__ import annotations

import pytest

from coordinator import stopwatch
from coordinator.stopwatch import TIME_LEFT_MS_MAX, Stopwatch


class Clock:
    """Stands in for the monotonic clock."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(stopwatch, "time", found)
    return found


def test_the_first_tokens_and_the_end_are_timed(clock: Clock) -> None:
    watch = Stopwatch(None)
    assert (watch.first_token_ms, watch.total_ms) == (0.0, 0.0)
    clock.now += 0.25
    watch.on_tokens()
    clock.now += 0.5
    watch.on_tokens()
    watch.stop()
    assert (watch.first_token_ms, watch.total_ms) == (250.0, 750.0)


def test_the_time_left_shrinks_to_nothing(clock: Clock) -> None:
    watch = Stopwatch(deadline=102.0)
    assert watch.time_left_ms() == 2000
    clock.now += 1.5
    assert watch.time_left_ms() == 500
    clock.now += 9.0
    assert watch.time_left_ms() == 0


def test_no_deadline_is_told_as_none_and_a_far_one_as_the_most_that_can_be_said(clock: Clock) -> None:
    assert Stopwatch(None).time_left_ms() is None
    assert Stopwatch(deadline=1e12).time_left_ms() == TIME_LEFT_MS_MAX
