"""The speculation gate in a pool of clients whose answers are short: none lives long enough to learn from it alone."""

from __future__ import annotations

import pytest

from outrider.core.coordinate.speculation_gate import SpeculationGate
from tests.core.coordinate.short_answers import PAUSE_SECONDS, Pace, Pool

LEARNING_SECONDS = 6.0
"""In which the gate must have found out, on a clock on which 64 clients are served some twenty answers a second: half
of it goes by before all prompts are read that came at once."""


def pool(gain: float, *, adaptive: bool = True, is_open: bool = True, greedy: bool = False) -> Pool:
    gate = SpeculationGate(adaptive=adaptive)
    gate.is_open = is_open
    return Pool(gate, lambda num_clients: Pace(1.5, gain), greedy=greedy)


def alone(num_clients: int, num_blocks: int) -> list[float]:
    """Tokens per second of the target alone, block by block."""
    never = pool(1.0, adaptive=False, is_open=False)
    return [never.block(num_clients, num_clients) for _ in range(num_blocks)]


@pytest.mark.parametrize("gain", [0.6, 0.77])
@pytest.mark.parametrize("num_clients", [16, 64])
def test_a_load_of_short_answers_that_loses_is_soon_no_slower_than_the_target_alone(
    num_clients: int, gain: float
) -> None:
    always = pool(gain, adaptive=False)
    losing = [always.block(num_clients, num_clients) for _ in range(8)]
    expected = alone(num_clients, 8)
    assert sum(losing) < 0.9 * sum(expected)
    gated = pool(gain)
    rates = [gated.block(num_clients, num_clients) for _ in range(8)]
    num_learning = 1 if num_clients == 64 else 4
    assert sum(rates[num_learning:]) > 0.98 * sum(expected[num_learning:])


def test_it_lets_go_within_seconds_and_stays_away() -> None:
    gated = pool(0.6)
    gated.block(64, 64)
    assert gated.now < LEARNING_SECONDS + PAUSE_SECONDS
    assert not gated.gate.is_open
    rates = [gated.block(64, 64) for _ in range(5)]
    assert sum(rates) > 0.98 * sum(alone(64, 6)[1:])


def test_it_comes_back_when_speculation_gains() -> None:
    gated = pool(0.6)
    gated.block(16, 64)
    assert not gated.gate.is_open
    gated.pace = lambda num_clients: Pace(2.5, 1.6)
    rates = [gated.block(16, 160) for _ in range(8)]
    assert gated.gate.is_open
    assert rates[-1] > 1.1 * alone(16, 1)[0]


def test_greedy_answers_that_gain_at_64_clients_stay_on() -> None:
    gated = pool(1.5, greedy=True)
    rates = [gated.block(64, 64) for _ in range(8)]
    assert gated.gate.is_open
    assert sum(rates) > 1.1 * sum(alone(64, 8))


def test_what_lighter_loads_tell_of_a_heavier_one_is_where_it_begins() -> None:
    gains = {1: 1.3, 4: 1.06, 16: 0.8, 64: 0.6}
    gated = pool(1.0)
    gated.pace = lambda num_clients: Pace(1.5, gains[num_clients])
    for num_clients in (4, 16):
        for _ in range(24):
            gated.block(num_clients, num_clients)
    first = gated.block(64, 32)
    assert not gated.gate.is_open
    never = pool(1.0, adaptive=False, is_open=False)
    assert first > 0.95 * never.block(64, 32)


def test_what_a_crowd_has_lost_does_not_hold_for_one() -> None:
    gated = pool(0.6)
    for _ in range(3):
        gated.block(64, 64)
    assert not gated.gate.is_open
    gated.pace = lambda num_clients: Pace(1.5, 1.3)
    gated.block(1, 1)
    assert gated.gate.is_open


def test_nothing_is_tried_where_no_drafter_could_be_had() -> None:
    gate = SpeculationGate()
    gate.begin(0.0, greedy=True)
    for step in range(20_000):
        gate.observe(1, 0.01 * step, first_wait=None if step else 0.0, could_speculate=False)
        assert gate.is_open
