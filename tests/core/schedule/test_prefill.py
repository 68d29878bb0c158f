"""How much of the prompts a step reads, and whose."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.estimate.step_curve import StepCurve
from outrider.core.schedule.prefill import (
    PASSED_MAX,
    PREFILL_TOKENS_MIN,
    STEP_STRETCH_MAX,
    STEP_STRETCH_MIN,
    PrefillScheduler,
    prefill_budget,
)
from outrider.core.schedule.queue import Priority

MOST = 512


def affine(fixed: float, per_token: float) -> StepCurve:
    curve = StepCurve()
    for num_tokens in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        curve.observe(num_tokens, fixed + per_token * num_tokens)
    return curve


def test_with_nobody_decoding_a_step_reads_as_much_as_it_may() -> None:
    assert prefill_budget(affine(0.0, 1.0), 0, MOST) == MOST


def test_before_the_first_step_nothing_is_known_and_nothing_held_back() -> None:
    assert prefill_budget(StepCurve(), 3, MOST) == MOST


@given(
    fixed=st.floats(0.0, 1.0),
    per_token=st.floats(1e-4, 1.0),
    num_rows=st.integers(1, 400),
    waiting=st.floats(0.0, 64.0),
)
def test_a_step_with_a_chunk_takes_at_most_so_many_times_the_step_without(
    fixed: float, per_token: float, num_rows: int, waiting: float
) -> None:
    curve = affine(fixed, per_token)
    budget = prefill_budget(curve, num_rows, MOST, waiting)
    assert PREFILL_TOKENS_MIN <= budget <= MOST
    without = fixed + per_token * num_rows
    with_chunk = without + per_token * budget
    stretch = min(max(1.0 + waiting, STEP_STRETCH_MIN), STEP_STRETCH_MAX)
    assert with_chunk <= stretch * without * 1.000001 or budget == PREFILL_TOKENS_MIN


def test_as_many_as_wait_get_their_share_of_the_device() -> None:
    """Three of four wait: so do three quarters of the time go into their prompts."""
    curve = affine(0.0, 1.0)
    assert prefill_budget(curve, 16, MOST, waiting=3.0) == 48
    assert prefill_budget(curve, 16, MOST, waiting=0.1) == 16
    assert prefill_budget(curve, 16, MOST, waiting=63.0) == 7 * 16


def test_half_of_the_device_goes_into_prompts() -> None:
    assert prefill_budget(affine(1.0, 0.01), 4, MOST) == pytest.approx(104, abs=1)
    assert prefill_budget(affine(0.0, 1.0), 16, MOST) == 16


def test_sizes_that_nobody_has_tried_are_tried_in_steps() -> None:
    """A device that takes the same time up to 32 tokens, as far as it was measured, and in truth grows steeply."""
    curve = StepCurve()
    for num_tokens in (1, 2, 4, 8, 16, 32):
        curve.observe(num_tokens, 1.0)

    def truth(num_tokens: int) -> float:
        return max(1.0, num_tokens / 32)

    longest = 0.0
    for _ in range(20):
        num_tokens = 1 + prefill_budget(curve, 1, MOST)
        curve.observe(num_tokens, truth(num_tokens))
        longest = max(longest, truth(num_tokens))
    assert longest <= 2.5
    assert prefill_budget(curve, 1, MOST) == pytest.approx(63, abs=4)


def synchronous(*deadlines: float) -> list[Priority]:
    return [Priority(arrival, deadline) for arrival, deadline in enumerate(deadlines)]


def test_the_least_unread_is_read_first_and_what_it_leaves_the_next_gets() -> None:
    priorities = synchronous(*[math.inf] * 3)
    assert PrefillScheduler().assign(priorities, [10, 30, 5], 25) == [(2, 5), (0, 10), (1, 10)]
    assert PrefillScheduler().assign(priorities, [10, 30, 5], 15) == [(2, 5), (0, 10)]
    assert PrefillScheduler().assign(priorities, [10, 10, 10], 15) == [(0, 10), (1, 5)]
    assert PrefillScheduler().assign(priorities[:1], [10], 25) == [(0, 10)]
    assert PrefillScheduler().assign([], [], 25) == []


def test_who_has_a_deadline_reads_before_who_has_none() -> None:
    assert PrefillScheduler().assign(synchronous(1.0, 2.0, math.inf), [30, 20, 10], 25) == [(1, 20), (0, 5)]


def test_the_first_in_turn_is_passed_over_a_few_times_and_no_more() -> None:
    readers = PrefillScheduler()
    priorities = synchronous(math.inf, math.inf, math.inf)
    assigned = [readers.assign(priorities, [100, 40, 8], 8) for _ in range(2 * PASSED_MAX + 2)]
    assert assigned == ([[(2, 8)]] * PASSED_MAX + [[(0, 8)]]) * 2
    # What others leave makes no difference: it may be next to nothing.
    assigned = [readers.assign(priorities[:2], [100, 7], 8) for _ in range(PASSED_MAX + 1)]
    assert assigned == [[(1, 7), (0, 1)]] * PASSED_MAX + [[(0, 8)]]


@given(
    unread=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    budget=st.integers(1, 20),
    newcomers=st.lists(st.integers(1, 60), max_size=60),
)
def test_nobody_waits_longer_than_the_bound_however_many_come(
    unread: list[int], budget: int, newcomers: list[int]
) -> None:
    readers = PrefillScheduler()
    waiting = dict(enumerate(unread))
    num_steps_alone = [-(-num_tokens // budget) for num_tokens in unread]
    steps_left = {arrival: (PASSED_MAX + 1) * sum(num_steps_alone[: arrival + 1]) for arrival in range(len(unread))}
    coming = iter(newcomers)
    while waiting:
        arrivals = sorted(waiting)
        assigned = readers.assign(
            [Priority(arrival) for arrival in arrivals], [waiting[each] for each in arrivals], budget
        )
        assert sum(num_tokens for _, num_tokens in assigned) == min(budget, sum(waiting.values()))
        for index, num_tokens in assigned:
            waiting[arrivals[index]] -= num_tokens
        waiting = {arrival: left for arrival, left in waiting.items() if left}
        if (num_tokens := next(coming, None)) is not None:
            waiting[arrivals[-1] + 1] = num_tokens
        steps_left = {arrival: left - 1 for arrival, left in steps_left.items() if arrival in waiting}
        assert all(left > 0 for left in steps_left.values())
