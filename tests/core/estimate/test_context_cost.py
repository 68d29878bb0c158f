"""Steps over long contexts: what cells add is learned, and where they add nothing the curve is what it was."""

from __future__ import annotations

import math
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.estimate.context_cost import ContextCost, ContextTime
from outrider.core.estimate.step_curve import StepCurve
from outrider.core.protocol.tree import SpeculationTree
from outrider.core.schedule.prefill import prefill_budget
from outrider.core.verify.selection import Candidates, most_probable

SIZES = (1, 4, 9, 16, 32)
SHORT, LONG = 512, 16384


class TwoRegimes:
    """A device whose steps of up to 16 tokens are captured, and whose others wait for the host; each reads the cells,
    several times where queries fill more than one tile. Seconds are like those of a GPU with a small model."""

    def __init__(self, seed: int, scatter: float = 0.02) -> None:
        self._rng, self._scatter = Random(seed), scatter

    def expected(self, num_tokens: int, num_cells: int) -> float:
        host = 0.0 if num_tokens <= 16 else 1e-3
        return 3e-3 + host + 3e-5 * num_tokens + 4e-7 * num_cells * math.ceil(num_tokens / 32)

    def seconds(self, num_tokens: int, num_cells: int) -> float:
        hiccup = 5.0 if self._rng.random() < 0.01 else 1.0
        return self.expected(num_tokens, num_cells) * self._rng.uniform(1.0, 1.0 + 2 * self._scatter) * hiccup

    def started(self) -> StepCurve:
        """As a worker starts: sizes at no context, and some of them at two."""
        curve = StepCurve()
        in_context = [
            ContextTime(size, cells, min(self.seconds(size, cells) for _ in range(3)))
            for cells in (256, LONG)
            for size in SIZES
        ]
        curve.restart(((size, self.expected(size, size)) for size in (1, 2, 4, 8, 16, 32)), in_context)
        return curve


def tree_of(probability: float, depth: int = 40) -> Candidates:
    """A chain of guesses, each right with that chance if the one before it is."""
    tree = SpeculationTree(0, 1)
    node = tree.root
    for token_id in range(depth):
        added = tree.attach(node, token_id, math.log(probability))
        assert added is not None
        node = added
    return Candidates(tree, depth, 10**6)


def rate(device: TwoRegimes, num_nodes: int, cells: int, probability: float) -> float:
    """Tokens per second of rounds that score so many of the chain's nodes."""
    expected = sum(probability**depth for depth in range(num_nodes + 1))
    return expected / device.expected(1 + num_nodes, cells)


@pytest.mark.parametrize("probability", [0.7, 0.85, 0.95])
def test_guesses_and_chunks_are_right_at_16k_as_at_half_a_k(probability: float) -> None:
    device = TwoRegimes(seed=1)
    curve, rng = device.started(), Random(2)
    for _ in range(3000):
        num_tokens, cells = rng.choice((1, 3, 5, 9, 14, 16, 20, 28, 100, 500)), rng.choice((SHORT, 4000, LONG))
        curve.at(cells).observe(num_tokens, device.seconds(num_tokens, cells))
    for cells in (SHORT, LONG):
        for num_tokens in (1, 5, 16, 20, 28, 100, 500):
            expected = device.expected(num_tokens, cells)
            assert curve.at(cells).seconds(num_tokens) == pytest.approx(expected, rel=0.08), (num_tokens, cells)
        chosen = len(most_probable([tree_of(probability)], curve.at(cells)).nodes[0])
        best = max(rate(device, num_nodes, cells, probability) for num_nodes in range(41))
        assert rate(device, chosen, cells, probability) >= 0.97 * best
        budget = prefill_budget(curve.at(cells), 1, 4096)
        assert device.expected(1 + budget, cells) <= 2.2 * device.expected(1, cells)
        assert device.expected(1 + budget * 3 // 2, cells) >= 1.8 * device.expected(1, cells)


def test_a_curve_of_tokens_alone_is_wrong_at_one_of_them() -> None:
    """Why cells are counted: what was learned from both fits neither."""
    device, curve, rng = TwoRegimes(seed=1), StepCurve(), Random(2)
    for _ in range(1500):
        num_tokens = rng.choice((1, 5, 16))
        curve.observe(num_tokens, device.seconds(num_tokens, rng.choice((SHORT, LONG))))
    errors = [abs(curve.seconds(1) / device.expected(1, cells) - 1.0) for cells in (SHORT, LONG)]
    assert max(errors) > 0.4


STEPS = st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 100_000), st.floats(1e-6, 10.0)), max_size=60)


@given(STEPS)
def test_where_cells_cost_nothing_the_curve_is_what_it_was(steps: list[tuple[int, int, float]]) -> None:
    """To the bit, whatever is observed: nothing was seen at start, or nothing beyond a step's scatter."""
    start = [(1, 0.010), (8, 0.012)]
    alike = [
        ContextTime(size, cells, 0.010 * (1.02 if cells > 256 else 1.0)) for size in SIZES for cells in (256, LONG)
    ]
    plain, without, with_cells = StepCurve(), StepCurve(), StepCurve()
    plain.restart(start)
    without.restart(start, [])
    with_cells.restart(start, alike)
    for num_tokens, num_cells, seconds in steps:
        plain.observe(num_tokens, seconds)
        without.at(num_cells).observe(num_tokens, seconds)
        with_cells.at(num_cells).observe(num_tokens, seconds)
    for curve in (without, with_cells):
        assert curve.at(5000) is curve
        assert [curve.seconds(n) for n in range(1, 200)] == [plain.seconds(n) for n in range(1, 200)]


def in_context() -> StepCurve:
    """A curve with cells, of a device of two regimes."""
    return TwoRegimes(seed=3).started()


@given(STEPS, st.integers(0, 50_000), st.integers(1, 1500), st.integers(1, 1500))
def test_in_a_context_it_is_positive_never_falls_and_is_a_line_between_bends(
    steps: list[tuple[int, int, float]], cells: int, first: int, count: int
) -> None:
    learned = in_context()
    for num_tokens, num_cells, seconds in steps:
        learned.at(num_cells).observe(num_tokens, seconds)
    curve = learned.at(cells)
    values = [curve.seconds(num_tokens) for num_tokens in range(1, 300)]
    assert all(value > 0.0 for value in values)
    assert all(later >= earlier * (1 - 1e-12) for earlier, later in pairwise(values))
    ends = [first, *curve.bends(first, first + count), first + count]
    assert ends == sorted(set(ends))
    for left, right in pairwise(ends):
        middle = (left + right) // 2
        share = (middle - left) / (right - left)
        between = (1.0 - share) * curve.seconds(left) + share * curve.seconds(right)
        assert curve.seconds(middle) == pytest.approx(between, rel=1e-6)


def test_more_cells_take_longer_and_the_largest_step_within_a_time_is_smaller() -> None:
    curve = in_context()
    assert curve.at(SHORT).seconds(8) < curve.at(LONG).seconds(8)
    short, long = (curve.at(cells).largest(0.012) for cells in (SHORT, LONG))
    assert short is not None
    assert long is not None
    assert long < short


def test_a_device_whose_cells_have_become_dearer_is_followed() -> None:
    cost = ContextCost([ContextTime(8, 256, 0.010), ContextTime(8, LONG, 0.010 + LONG * 1e-6)])
    before = cost.seconds(8)
    for _ in range(400):
        cost.observe(ContextTime(8, LONG, 0.010 + LONG * 2e-6), 0.010)
    assert before == pytest.approx(1e-6, rel=0.05)
    assert cost.seconds(8) == pytest.approx(2e-6, rel=0.05)


def test_a_hiccup_hardly_moves_it_and_few_cells_move_it_less() -> None:
    steps = [ContextTime(8, 256, 0.010), ContextTime(8, LONG, 0.010 + LONG * 1e-6)]
    for cells, most in ((LONG, 0.1), (64, 0.002)):
        cost = ContextCost(steps)
        before = cost.seconds(8)
        cost.observe(ContextTime(8, cells, 1.0), 0.010)
        assert cost.seconds(8) == pytest.approx(before, rel=most)


def test_after_a_restart_nothing_is_left_of_it() -> None:
    curve = in_context()
    curve.restart([(1, 0.010)])
    assert curve.at(LONG) is curve
