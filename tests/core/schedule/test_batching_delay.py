"""Who waits for whom before a step that several sessions share."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from outrider.core.schedule.batching_delay import ReadyTime, goes, start

STEP = 1.0
READY = ReadyTime(0.0, 0.0)


def expecting(ready_at: float, gain: float = math.inf) -> ReadyTime:
    return ReadyTime(ready_at, gain)


def test_who_is_alone_and_ready_goes() -> None:
    assert start([READY], 0.0, STEP) == 0.0


def test_if_nobody_is_ready_the_step_starts_with_the_first_who_is() -> None:
    assert start([expecting(0.5), expecting(0.3)], 0.0, STEP) == 0.3


def test_one_waits_a_moment_for_many() -> None:
    assert start([READY, *[expecting(0.05)] * 15], 0.0, STEP) == 0.05


def test_many_do_not_wait_long_for_one() -> None:
    ready_times = [*[READY] * 15, expecting(0.4)]
    assert start(ready_times, 0.0, STEP) == 0.0
    assert not goes(ready_times[-1], 0.0, STEP)


def test_who_hopes_for_little_goes_along_without() -> None:
    ready_times = [*[READY] * 15, expecting(0.4, gain=0.1)]
    assert start(ready_times, 0.0, STEP) == 0.0
    assert goes(ready_times[-1], 0.0, STEP)


def test_who_will_be_ready_after_the_step_is_left_alone() -> None:
    assert start([READY, expecting(1.2)], 0.0, STEP) == 0.0
    assert not goes(expecting(1.2, gain=0.0), 0.0, STEP)


def test_two_wait_for_each_other_up_to_half_a_step() -> None:
    """The one waits d, or the other waits 1 - d."""
    assert start([READY, expecting(0.45)], 0.0, STEP) == 0.45
    assert start([READY, expecting(0.55)], 0.0, STEP) == 0.0


def test_time_waited_already_bounds_the_wait() -> None:
    """However often drafts are announced anew: who was ready 0.8 ago waits 0.2 at most."""
    ready_times = [ReadyTime(0.0, 0.0), *[expecting(1.1)] * 15]
    assert start(ready_times, 0.8, STEP) == 0.8
    assert start([ReadyTime(0.0, 0.0), *[expecting(0.95)] * 15], 0.8, STEP) == 0.95


def test_before_the_first_step_nobody_waits() -> None:
    assert start([READY, expecting(0.1)], 0.0, 0.0) == 0.0
    assert goes(READY, 0.0, 0.0)


PROSPECTS = st.lists(
    st.one_of(
        st.builds(ReadyTime, st.floats(-1.0, 0.0), st.just(0.0)),
        st.builds(ReadyTime, st.floats(0.0, 3.0), st.floats(0.0, 3.0)),
    ),
    min_size=1,
    max_size=6,
)


def cost(ready_times: list[ReadyTime], begin: float, step: float) -> float:
    """What a start costs all together, by who then goes and who does not."""
    total = 0.0
    for ready_time in ready_times:
        if ready_time.ready_at <= begin:
            total += begin - ready_time.ready_at
        elif goes(ready_time, begin, step):
            total += ready_time.gain
        else:
            total += max(begin + step - ready_time.ready_at, 0.0)
    return total


@given(PROSPECTS, st.floats(0.1, 2.0))
def test_no_other_start_costs_less(ready_times: list[ReadyTime], step: float) -> None:
    first = min(ready_time.ready_at for ready_time in ready_times)
    begin = start(ready_times, 0.0, step)
    assert any(goes(ready_time, begin, step) for ready_time in ready_times)
    if first > 0.0:
        assert begin == first
        return
    assert 0.0 <= begin <= max(first + step, 0.0)
    others = [0.0, *(each.ready_at for each in ready_times if 0.0 < each.ready_at <= first + step)]
    assert cost(ready_times, begin, step) <= min(cost(ready_times, other, step) for other in others) + 1e-9
