"""The world in which the speculation gate is simulated: what it is told to gain, it gains."""

from __future__ import annotations

import random

import pytest

from bench.simulate.gate.__main__ import PAIRS, lasting, measure
from bench.simulate.gate.world import Pair, World
from outrider.core.estimate.speculation_gate import SpeculationGate

PAIR = Pair(1.6, {1: 1.5, 4: 1.2, 16: 0.6})


@pytest.mark.parametrize(("num_clients", "gain"), [(1, 1.5), (2, (1.5 * 1.2) ** 0.5), (4, 1.2), (16, 0.6), (64, 0.6)])
def test_the_gain_lies_on_a_line_between_those_told(num_clients: int, gain: float) -> None:
    assert PAIR.gain(num_clients) == pytest.approx(gain)


@pytest.mark.parametrize("num_clients", [1, 16])
def test_a_way_takes_as_long_as_it_is_told_to(num_clients: int) -> None:
    def seconds(*, is_open: bool) -> float:
        world = World(PAIR, random.Random(0), SpeculationGate(), is_open)
        return sum(world.last(num_clients, (20_000,)))

    told = PAIR.gain(num_clients)
    gain = seconds(is_open=False) / seconds(is_open=True)
    assert abs(gain - 1.0) < abs(told - 1.0)  # prompts, and drafters that read them, take time whichever way
    assert gain == pytest.approx(told, rel=0.25)


def test_all_who_asked_leave() -> None:
    world = World(PAIR, random.Random(0), SpeculationGate())
    world.block(4)
    world.last(4, (100,))
    assert not world.num_running


def test_what_is_reported_is_the_time_by_that_of_the_better_way() -> None:
    found = measure(PAIR, lasting(16), 3, greedy=False)
    assert all(1.0 <= ratio <= 1.0 / 0.6 for ratio in found["ratios"])
    assert found["share_open"] < 1.0


@pytest.mark.parametrize(
    ("pair", "num_clients", "before", "most"),
    [
        ("bundled, sampled", 8, (), 1.08),
        ("bundled, sampled", 8, (1,), 1.03),
        ("bundled, sampled", 1, (), 1.03),
        ("bundled, greedy", 1, (), 1.03),
        ("wide, sampled", 4, (1,), 1.03),
    ],
)
def test_the_gate_costs_little_over_the_first_tokens(
    pair: str, num_clients: int, before: tuple[int, ...], most: float
) -> None:
    found = measure(PAIRS[pair], lasting(num_clients, *before), 20, greedy="greedy" in pair)
    assert found["ratios"][1] < most  # over 1024 tokens, in the mean
