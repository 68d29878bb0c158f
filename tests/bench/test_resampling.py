"""Ratios over prompts: pairing, and intervals that cover what they should."""

from __future__ import annotations

import random

import pytest

from bench.compare.resampling import compare


def test_a_constant_ratio_has_no_width_however_prompts_differ() -> None:
    """Prompts that take ten times as long as others cancel out, because a resample draws pairs."""
    fast = [1.0, 10.0, 3.0, 0.5, 7.0]
    comparison = compare([1.5 * each for each in fast], fast)
    for interval in comparison:
        assert interval == pytest.approx((1.5, 1.5, 1.5))


def test_unpaired_noise_widens_the_interval() -> None:
    rng = random.Random(1)
    prompts = [rng.uniform(1.0, 10.0) for _ in range(24)]
    fast = [each * rng.uniform(0.9, 1.1) for each in prompts]
    slow = [2.0 * each * rng.uniform(0.9, 1.1) for each in prompts]
    paired = compare(slow, fast).ratio_of_sums
    shuffled = compare(rng.sample(slow, len(slow)), fast).ratio_of_sums
    assert paired.low < 2.0 < paired.high
    assert paired.high - paired.low < 0.3 * (shuffled.high - shuffled.low)


def test_the_median_forgives_an_outlier_that_the_sum_does_not() -> None:
    comparison = compare([2.0, 2.0, 2.0, 2.0, 100.0], [1.0] * 5)
    assert comparison.median_of_ratios.value == 2.0
    assert comparison.ratio_of_sums.value == pytest.approx(108 / 5)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = random.Random(2)
    num_covered = 0
    for _ in range(60):
        fast = [1.0] * 16
        slow = [rng.lognormvariate(0.0, 0.2) for _ in fast]
        interval = compare(slow, fast).median_of_ratios
        num_covered += interval.low <= 1.0 <= interval.high
    assert num_covered >= 51  # of 60; 57 are expected, fewer than 51 once in a hundred


def test_the_same_pairs_give_the_same_interval() -> None:
    assert compare([3.0, 4.0, 7.0], [2.0, 2.0, 2.0]) == compare([3.0, 4.0, 7.0], [2.0, 2.0, 2.0])


@pytest.mark.parametrize(("slow", "fast"), [([], []), ([1.0], [1.0, 2.0])])
def test_what_cannot_be_paired_is_refused(slow: list[float], fast: list[float]) -> None:
    with pytest.raises(ValueError, match=r"pair|shorter|longer"):
        compare(slow, fast)
