"""How much of the prompts a step reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.prefill import READ_TOKENS_MIN, STEP_STRETCH_MAX, grants, read_budget
from outrider.core.step_curve import StepCurve

MOST = 512


def affine(fixed: float, per_token: float) -> StepCurve:
    curve = StepCurve()
    for num_tokens in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
        curve.observe(num_tokens, fixed + per_token * num_tokens)
    return curve


def test_with_nobody_decoding_a_step_reads_as_much_as_it_may() -> None:
    assert read_budget(affine(0.0, 1.0), 0, MOST) == MOST


def test_before_the_first_step_nothing_is_known_and_nothing_held_back() -> None:
    assert read_budget(StepCurve(), 3, MOST) == MOST


@given(
    fixed=st.floats(0.0, 1.0),
    per_token=st.floats(1e-4, 1.0),
    num_rows=st.integers(1, 400),
)
def test_a_step_with_a_chunk_takes_at_most_twice_the_step_without(
    fixed: float, per_token: float, num_rows: int
) -> None:
    curve = affine(fixed, per_token)
    budget = read_budget(curve, num_rows, MOST)
    assert READ_TOKENS_MIN <= budget <= MOST
    without = fixed + per_token * num_rows
    with_chunk = without + per_token * budget
    assert with_chunk <= STEP_STRETCH_MAX * without * 1.000001 or budget == READ_TOKENS_MIN


def test_half_of_the_device_goes_into_prompts() -> None:
    assert read_budget(affine(1.0, 0.01), 4, MOST) == pytest.approx(104, abs=1)
    assert read_budget(affine(0.0, 1.0), 16, MOST) == 16


def test_sizes_that_nobody_has_tried_are_tried_in_steps() -> None:
    """A device that takes the same time up to 32 tokens, as far as it was measured, and in truth grows steeply."""
    curve = StepCurve()
    for num_tokens in (1, 2, 4, 8, 16, 32):
        curve.observe(num_tokens, 1.0)

    def truth(num_tokens: int) -> float:
        return max(1.0, num_tokens / 32)

    longest = 0.0
    for _ in range(20):
        num_tokens = 1 + read_budget(curve, 1, MOST)
        curve.observe(num_tokens, truth(num_tokens))
        longest = max(longest, truth(num_tokens))
    assert longest <= 2.5
    assert read_budget(curve, 1, MOST) == pytest.approx(63, abs=4)


def test_what_one_leaves_the_next_gets() -> None:
    assert grants([10, 30, 5], 25) == [10, 15, 0]
    assert grants([10], 25) == [10]
    assert grants([], 25) == []
