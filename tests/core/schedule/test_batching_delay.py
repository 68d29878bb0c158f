"""Who waits for whom before a step that several sessions share."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from outrider.core.schedule.batching_delay import Prospect, goes, start

STEP = 1.0
READY = Prospect(0.0, 0.0)


def expecting(ready_at: float, gain: float = math.inf) -> Prospect:
    return Prospect(ready_at, gain)


def test_who_is_alone_and_ready_goes() -> None:
    assert start([READY], 0.0, STEP) == 0.0


def test_if_nobody_is_ready_the_step_starts_with_the_first_who_is() -> None:
    assert start([expecting(0.5), expecting(0.3)], 0.0, STEP) == 0.3


def test_one_waits_a_moment_for_many() -> None:
    assert start([READY, *[expecting(0.05)] * 15], 0.0, STEP) == 0.05


def test_many_do_not_wait_long_for_one() -> None:
    prospects = [*[READY] * 15, expecting(0.4)]
    assert start(prospects, 0.0, STEP) == 0.0
    assert not goes(prospects[-1], 0.0, STEP)


def test_who_hopes_for_little_goes_along_without() -> None:
    prospects = [*[READY] * 15, expecting(0.4, gain=0.1)]
    assert start(prospects, 0.0, STEP) == 0.0
    assert goes(prospects[-1], 0.0, STEP)


def test_who_will_be_ready_after_the_step_is_left_alone() -> None:
    assert start([READY, expecting(1.2)], 0.0, STEP) == 0.0
    assert not goes(expecting(1.2, gain=0.0), 0.0, STEP)


def test_two_wait_for_each_other_up_to_half_a_step() -> None:
    """The one waits d, or the other waits 1 - d."""
    assert start([READY, expecting(0.45)], 0.0, STEP) == 0.45
    assert start([READY, expecting(0.55)], 0.0, STEP) == 0.0


def test_time_waited_already_bounds_the_wait() -> None:
    """However often drafts are announced anew: who was ready 0.8 ago waits 0.2 at most."""
    prospects = [Prospect(0.0, 0.0), *[expecting(1.1)] * 15]
    assert start(prospects, 0.8, STEP) == 0.8
    assert start([Prospect(0.0, 0.0), *[expecting(0.95)] * 15], 0.8, STEP) == 0.95


def test_before_the_first_step_nobody_waits() -> None:
    assert start([READY, expecting(0.1)], 0.0, 0.0) == 0.0
    assert goes(READY, 0.0, 0.0)


PROSPECTS = st.lists(
    st.one_of(
        st.builds(Prospect, st.floats(-1.0, 0.0), st.just(0.0)),
        st.builds(Prospect, st.floats(0.0, 3.0), st.floats(0.0, 3.0)),
    ),
    min_size=1,
    max_size=6,
)


def cost(prospects: list[Prospect], begin: float, step: float) -> float:
    """What a start costs all together, by who then goes and who does not."""
    total = 0.0
    for prospect in prospects:
        if prospect.ready_at <= begin:
            total += begin - prospect.ready_at
        elif goes(prospect, begin, step):
            total += prospect.gain
        else:
            total += max(begin + step - prospect.ready_at, 0.0)
    return total


@given(PROSPECTS, st.floats(0.1, 2.0))
def test_no_other_start_costs_less(prospects: list[Prospect], step: float) -> None:
    first = min(prospect.ready_at for prospect in prospects)
    begin = start(prospects, 0.0, step)
    assert any(goes(prospect, begin, step) for prospect in prospects)
    if first > 0.0:
        assert begin == first
        return
    assert 0.0 <= begin <= max(first + step, 0.0)
    others = [0.0, *(each.ready_at for each in prospects if 0.0 < each.ready_at <= first + step)]
    assert cost(prospects, begin, step) <= min(cost(prospects, other, step) for other in others) + 1e-9
