"""The step-time curve: learned from noisy steps, never falling, as steep as before where nobody has been."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.estimate.step_curve import SIZES, StepCurve

STEPS = st.lists(st.tuples(st.integers(1, 2000), st.floats(1e-6, 10.0)), max_size=60)


def learned(seconds: dict[int, float], rounds: int = 40) -> StepCurve:
    """What is learned from `rounds` steps of each size."""
    curve = StepCurve()
    for _ in range(rounds):
        for num_tokens, each in seconds.items():
            curve.observe(num_tokens, each)
    return curve


def test_before_the_first_step_nothing_takes_time() -> None:
    assert StepCurve().seconds(1) == StepCurve().seconds(100) == 0.0


@given(STEPS)
def test_it_is_positive_and_never_falls(steps: list[tuple[int, float]]) -> None:
    curve = StepCurve()
    for num_tokens, seconds in steps:
        curve.observe(num_tokens, seconds)
    values = [curve.seconds(num_tokens) for num_tokens in range(1, 300)]
    assert all(later >= earlier * (1 - 1e-12) for earlier, later in pairwise(values))
    assert all(value > 0.0 for value in values) or not steps


def test_between_observed_sizes_it_is_a_line() -> None:
    curve = learned({2: 0.010, 8: 0.016})
    assert curve.seconds(5) == pytest.approx(0.013, rel=0.02)
    assert curve.seconds(1) == pytest.approx(0.010, rel=0.02)


def test_beyond_observed_sizes_it_goes_on_with_the_slope_of_the_last_octave() -> None:
    curve = learned({1: 0.001, 8: 0.010, 16: 0.012})
    assert curve.seconds(64) == pytest.approx(0.012 + 48 * 0.002 / 8, rel=0.05)
    assert learned({8: 0.010}).seconds(64) == pytest.approx(0.010)
    assert learned({4: 0.010, 8: 0.010, 16: 0.010}).seconds(500) == pytest.approx(0.010)


@given(STEPS, st.integers(1, 1500), st.integers(1, 1500))
def test_between_its_bends_it_is_a_line(steps: list[tuple[int, float]], first: int, count: int) -> None:
    curve = StepCurve()
    for step in steps:
        curve.observe(*step)
    ends = [first, *curve.bends(first, first + count), first + count]
    assert ends == sorted(set(ends))
    for left, right in pairwise(ends):
        middle = (left + right) // 2
        share = (middle - left) / (right - left)
        assert curve.seconds(middle) == pytest.approx(
            (1.0 - share) * curve.seconds(left) + share * curve.seconds(right), rel=1e-6
        )


@given(STEPS, st.floats(0.0, 20.0))
def test_the_largest_step_within_a_time_is_the_last_that_fits(steps: list[tuple[int, float]], seconds: float) -> None:
    curve = StepCurve()
    for step in steps:
        curve.observe(*step)
    largest = curve.largest(seconds)
    if not steps:
        assert largest is None
        return
    assert largest is not None
    assert largest == 1 or curve.seconds(largest) <= seconds
    assert curve.seconds(largest + 1) > seconds or largest >= 2 * min(max(num_tokens for num_tokens, _ in steps), 1024)


def test_a_step_that_nobody_has_tried_is_at_most_twice_the_largest_one() -> None:
    assert learned({8: 0.010}).largest(1.0) == 16
    assert learned({8: 0.010, 512: 0.011}).largest(1.0) == 1024


def test_stairs_are_learned_as_stairs() -> None:
    curve = learned({n: 0.002 if n <= 4 else 0.003 for n in range(1, 9)})
    assert curve.seconds(5) == pytest.approx(1.5 * curve.seconds(4), rel=0.05)
    assert curve.seconds(8) == pytest.approx(curve.seconds(5), rel=0.05)


def test_a_step_counts_for_the_next_larger_size() -> None:
    assert all(size in SIZES for size in (1, 16, 18, 32, 36, 512, 1024))
    curve = learned({33: 0.5})
    assert curve.seconds(36) == 0.5


def test_a_hiccup_hardly_moves_it() -> None:
    curve = learned({4: 0.010})
    curve.observe(4, 0.100)
    assert curve.seconds(4) < 0.0105


def test_one_hiccup_in_ten_moves_it_by_less_than_a_tenth() -> None:
    curve, rng = StepCurve(), Random(3)
    for index in range(400):
        curve.observe(4, 0.1 if index % 10 == 9 else 0.01 * rng.uniform(0.9, 1.1))
    assert curve.seconds(4) == pytest.approx(0.01, rel=0.1)


def test_a_first_step_that_was_a_hiccup_is_forgotten() -> None:
    curve = StepCurve()
    curve.observe(4, 0.100)
    for _ in range(20):
        curve.observe(4, 0.010)
    assert curve.seconds(4) < 0.012


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_it_follows_a_machine_that_changes(factor: float) -> None:
    curve = learned({1: 0.010})
    for _ in range(60):
        curve.observe(1, 0.010 * factor)
    assert curve.seconds(1) == pytest.approx(0.010 * factor, rel=0.1)


def test_a_spoilt_estimate_that_nobody_tries_again_comes_down() -> None:
    curve = learned({1: 0.010})
    curve.observe(8, 0.100)
    assert curve.seconds(8) == 0.100
    for _ in range(600):
        curve.observe(1, 0.010)
    assert curve.seconds(8) < 0.012


def test_a_size_that_comes_back_is_known_again_after_a_few_steps() -> None:
    """Else every burst of large steps would begin with some thirty that are thought to cost half of what they do."""
    curve = StepCurve()
    for _ in range(100):
        curve.observe(16, 1.0)
        curve.observe(256, 10.0)
    for _ in range(400):
        curve.observe(16, 1.0)
    assert curve.seconds(256) < 5.0
    for _ in range(6):
        curve.observe(256, 10.0)
    assert curve.seconds(256) > 8.0


def test_a_hiccup_at_a_size_that_is_new_spoils_no_larger_one() -> None:
    curve = learned({4: 0.010, 8: 0.011, 16: 0.012})
    curve.observe(6, 0.100)
    assert curve.seconds(6) == curve.seconds(8)
    assert curve.seconds(8) == pytest.approx(0.011, rel=0.01)
    assert curve.seconds(16) == pytest.approx(0.012, rel=0.01)


def came_back() -> StepCurve:
    """A large size is known, and was not tried for a while."""
    curve = learned({16: 1.0, 64: 3.0})
    for _ in range(100):
        curve.observe(16, 1.0)
    return curve


def test_one_hiccup_at_a_size_that_comes_back_changes_nothing() -> None:
    """Else the size would seem to cost several times what it does, and not be tried again for a hundred steps."""
    curve = came_back()
    before = curve.seconds(64), curve.seconds(40)
    curve.observe(64, 30.0)
    assert (curve.seconds(64), curve.seconds(40)) == before
    curve.observe(64, 3.0)
    assert curve.seconds(64) <= 3.0
    curve.observe(64, 30.0)
    assert curve.seconds(64) < 1.25 * 3.0, "tried of late: a hiccup counts as half as much again, and for a third"


def test_a_size_that_has_become_slower_is_known_after_three_steps() -> None:
    curve = came_back()
    for seconds in (9.0, 8.0, 10.0):
        curve.observe(64, seconds)
    assert curve.seconds(64) == pytest.approx(8.5, rel=0.1)


def test_a_size_that_is_always_tried_after_a_while_is_known_after_two_steps() -> None:
    curve = came_back()
    for _ in range(2):
        curve.observe(64, 9.0)
        for _ in range(70):
            curve.observe(16, 1.0)
    assert curve.seconds(64) > 7.5


def test_a_large_size_that_is_not_tried_does_not_become_as_cheap_as_the_small_ones() -> None:
    """Else, of many sessions, steps of hundreds of tokens are tried again and again."""
    curve = learned({16: 1.0, 32: 2.0, 64: 4.0, 512: 32.0})
    for _ in range(2000):
        curve.observe(32, 2.0)
    assert curve.seconds(512) == pytest.approx(32.0, rel=0.05)


def test_a_small_size_that_is_not_tried_does_not_stay_cheaper_than_its_part_of_a_larger_one() -> None:
    """Sizes are timed on an idle machine, and at work all steps are larger: what fits into twice the time of a small
    one would never be tried."""
    curve = learned({8: 0.001, 16: 0.002, 24: 0.003, 32: 0.004}, rounds=1)
    for _ in range(300):
        curve.observe(36, 0.014)
    assert curve.seconds(24) == pytest.approx(0.014 * 24 / 36, rel=0.05)
    largest = curve.largest(2.0 * curve.seconds(24))
    assert largest is not None
    assert largest > 36


def test_what_comes_back_slower_is_believed_after_two_steps_of_any_sizes() -> None:
    curve = learned({size: size / 10.0 for size in (1, 16, 40, 52, 64, 80)})
    for _ in range(100):
        curve.observe(1, 0.1)
    curve.observe(80, 32.0)
    assert curve.seconds(80) <= 8.0
    curve.observe(64, 25.6)
    assert curve.seconds(64) == pytest.approx(25.6, rel=0.2)
    curve.observe(52, 20.8)
    assert curve.seconds(52) == pytest.approx(20.8, rel=0.2)


def test_it_never_falls_however_long_it_learns() -> None:
    curve, rng = StepCurve(), Random(7)
    for index in range(3000):
        size = rng.choice((1, 2, 8, 24, 33, 64, 200, 500)) if index % 200 < 20 else rng.choice((24, 33))
        curve.observe(size, (0.001 + 0.0002 * size) * rng.lognormvariate(0.0, 0.4))
        values = [curve.seconds(num_tokens) for num_tokens in (1, 2, 8, 16, 24, 32, 36, 64, 128, 208, 512, 1024)]
        assert values == sorted(values)
