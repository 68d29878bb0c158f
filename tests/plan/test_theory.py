"""Formulas against figures that are published, plain to see, or made by the real policies on a virtual clock."""

from __future__ import annotations

import pytest

from bench.simulate.synthetic import OURS, Point, speculation_of
from outrider.plan.theory import asynchronous, best_in_turn, expected_tokens, roofline, synchronous


@pytest.mark.parametrize(
    ("alpha", "draft_step", "delay", "speed_up"),
    [(0.8, 0.05, 0.0, 3.09), (0.8, 0.10, 0.1, 2.20), (0.6, 0.25, 0.0, 1.31), (0.9, 0.25, 0.0, 2.09)],
)
def test_best_in_turn(alpha: float, draft_step: float, delay: float, speed_up: float) -> None:
    assert 1.0 / best_in_turn(alpha, draft_step, delay)[1] == pytest.approx(speed_up, abs=0.01)


def test_limits() -> None:
    assert expected_tokens(1.0, 4) == 5.0
    assert expected_tokens(0.0, 4) == 1.0
    assert synchronous(0.0, 0.5, 2) == 2.0
    assert asynchronous(1.0, 0.25, 0.5) == 0.25
    assert asynchronous(0.0, 0.25, 0.5) == 1.0
    assert asynchronous(0.5, 0.2, 0.0) == pytest.approx(0.6)
    assert roofline(0.75) == 0.25


@pytest.mark.parametrize(
    ("alpha", "draft_step", "delay"),
    [(0.5, 0.2, 0.0), (0.5, 0.5, 0.1), (0.7, 0.2, 0.1), (0.7, 0.5, 0.5), (0.8, 0.2, 0.0), (0.9, 0.5, 0.0)],
)
def test_the_real_policies_take_what_is_expected_of_them(alpha: float, draft_step: float, delay: float) -> None:
    point = Point(alpha=alpha, draft_step=draft_step, delay=delay)
    policy, speculation = speculation_of(OURS, 1, 8)
    measured = point.run(speculation, policy, num_tokens=600).time_per_token
    assert measured == pytest.approx(asynchronous(alpha, draft_step, delay), rel=0.2)
