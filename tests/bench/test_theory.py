"""Formulas against figures that are plain to see."""

from __future__ import annotations

import pytest

from bench.simulate import theory


def test_limits() -> None:
    assert theory.pearl(1.0, 0.25, 4) == pytest.approx(0.25)
    assert theory.pearl(0.0, 0.25, 4) == pytest.approx(1.0)
    assert theory.chain_bound(0.9, 0.35) == 0.35
    assert theory.chain_bound(0.5, 0.35) == 0.5
    assert theory.tree_bound(0.75) == 0.25
