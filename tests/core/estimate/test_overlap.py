"""Two groups of sessions, or all in one step: by what steps take, and by what the host does between them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from outrider.core.estimate.overlap import Overlap
from outrider.core.estimate.step_curve import StepCurve

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def curve_of(seconds: Callable[[int], float]) -> StepCurve:
    curve = StepCurve()
    for size in SIZES:
        curve.observe(size, seconds(size))
    return curve


def sloped(fixed: float, per_token: float) -> StepCurve:
    return curve_of(lambda num_tokens: fixed + per_token * num_tokens)


def told(num_sessions: int, *, rest: float, launch: float = 0.0, rows_each: int = 1) -> Overlap:
    overlap = Overlap()
    overlap.observe(num_sessions, num_sessions * rows_each, launch, rest)
    return overlap


COMPUTE_BOUND = sloped(1.0, 1.0)
MEMORY_BOUND = sloped(10.0, 0.05)


def test_one_session_goes_alone() -> None:
    assert told(1, rest=100.0).group_size(1, COMPUTE_BOUND, COMPUTE_BOUND) == 1


def test_before_anything_is_known_all_go_together() -> None:
    assert Overlap().group_size(8, COMPUTE_BOUND, COMPUTE_BOUND) == 8
    assert told(8, rest=4.0).group_size(8, StepCurve(), StepCurve()) == 8
    assert told(8, rest=0.0).group_size(8, COMPUTE_BOUND, COMPUTE_BOUND) == 8, "nothing to hide"


@pytest.mark.parametrize(("num_sessions", "half"), [(2, 1), (7, 4), (8, 4)])
def test_two_groups_where_the_host_takes_longer_than_what_a_step_does_for_all(num_sessions: int, half: int) -> None:
    # Together n + 1 and the host's work, in two groups n + 2.
    assert told(num_sessions, rest=2.0).group_size(num_sessions, COMPUTE_BOUND, COMPUTE_BOUND) == half
    assert told(num_sessions, rest=0.9).group_size(num_sessions, COMPUTE_BOUND, COMPUTE_BOUND) == num_sessions


def test_together_where_reading_the_weights_twice_costs_more_than_is_hidden() -> None:
    """Memory-bound: half a step takes nearly as long as the whole."""
    for rest in (0.5, 2.0, 8.0, 12.0):
        assert told(8, rest=rest).group_size(8, MEMORY_BOUND, MEMORY_BOUND) == 8
    overlap = told(8, rest=12.0)
    overlap.observe(4, 4, 0.0, 6.0)
    # Now it is known that the host has less to do for fewer: 2 x 10.2 against 10.4 + 12.
    assert overlap.group_size(8, MEMORY_BOUND, MEMORY_BOUND) == 4


def test_together_where_the_host_is_the_slower_of_both() -> None:
    """Nothing is hidden behind a device that waits for its host: two groups would cost the host's work twice."""
    assert told(8, rest=100.0).group_size(8, COMPUTE_BOUND, COMPUTE_BOUND) == 8
    assert told(8, rest=2.5, launch=100.0).group_size(8, COMPUTE_BOUND, COMPUTE_BOUND) == 8


def test_rows_count_and_not_sessions() -> None:
    """With many rows each, what a step does for all is a small part of it."""
    flat_to_16 = curve_of(lambda num_tokens: 10.0 if num_tokens <= 16 else 10.0 + 1.0 * (num_tokens - 16))
    assert told(4, rest=5.0).group_size(4, flat_to_16, flat_to_16) == 4
    # 160 rows take 154, and 80 rows 74.
    assert told(4, rest=5.0, rows_each=40).group_size(4, flat_to_16, flat_to_16) == 2


def test_half_of_the_sessions_hold_half_of_the_cells() -> None:
    overlap = told(8, rest=1.5)
    flat = curve_of(lambda num_tokens: 10.0)
    assert overlap.group_size(8, flat, flat) == 8
    long_contexts, half_of_them = curve_of(lambda num_tokens: 10.0), curve_of(lambda num_tokens: 5.2)
    assert overlap.group_size(8, long_contexts, half_of_them) == 4


def test_whatever_it_decides_is_at_most_a_little_slower_than_the_other_way() -> None:
    """Played out: a device that computes one step at a time, and a host that does one thing at a time."""
    for fixed in (0.1, 1.0, 5.0, 20.0):
        for per_token in (0.01, 0.3, 1.0):
            for rest in (0.1, 1.0, 3.0, 10.0, 40.0):
                for num_sessions in (2, 3, 8, 20):
                    curve = sloped(fixed, per_token)
                    size = told(num_sessions, rest=rest).group_size(num_sessions, curve, curve)
                    together = round_seconds([num_sessions], curve, rest)
                    half = (num_sessions + 1) // 2
                    apart = round_seconds([half, num_sessions - half], curve, rest)
                    chosen, other = (apart, together) if size == half else (together, apart)
                    assert chosen <= 1.06 * other, (fixed, per_token, rest, num_sessions)


def round_seconds(groups: list[int], curve: StepCurve, rest: float) -> float:
    """How long a round of all groups takes: each is launched when its host work is done, and computed in turn."""
    host = device = 0.0
    ends = [0.0] * len(groups)
    num_rounds = 50
    for turn in range(num_rounds * len(groups)):
        group = turn % len(groups)
        host = max(host, ends[group]) + rest
        device = max(device, host) + curve.seconds(groups[group])
        ends[group] = device
    return device / num_rounds
