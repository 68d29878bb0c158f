"""Formulas against figures that are published, or plain to see."""

from __future__ import annotations

import pytest

from bench.simulate import theory


@pytest.mark.parametrize(
    ("alpha", "draft_step", "delay", "speed_up"),
    [(0.8, 0.05, 0.0, 3.09), (0.8, 0.10, 0.1, 2.20), (0.6, 0.25, 0.0, 1.31), (0.9, 0.25, 0.0, 2.09)],
)
def test_best_in_turn(alpha: float, draft_step: float, delay: float, speed_up: float) -> None:
    assert 1.0 / theory.best_in_turn(alpha, draft_step, delay)[1] == pytest.approx(speed_up, abs=0.01)


def test_limits() -> None:
    assert theory.expected_tokens(1.0, 4) == 5.0
    assert theory.expected_tokens(0.0, 4) == 1.0
    assert theory.synchronous(0.0, 0.5, 2) == 2.0
    assert theory.pearl(1.0, 0.25, 4) == pytest.approx(0.25)
    assert theory.pearl(0.0, 0.25, 4) == pytest.approx(1.0)
    assert theory.chain_bound(0.9, 0.35) == 0.35
    assert theory.chain_bound(0.5, 0.35) == 0.5
    assert theory.tree_bound(0.75) == 0.25
