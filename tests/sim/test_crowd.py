"""Many sessions on one pair of workers: together never slower than the target alone, and nobody is left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import pytest

from bench.rivals.ruled import policy_of
from outrider.core.schedule import batching_delay
from outrider.core.schedule.batching_delay import ReadyTime

from .toys import ToyTarget
from .virtual_crowd import CrowdOutcome, run_crowd
from .virtual_pair import PROMPT, VOCAB_SIZE, Circumstances, sloped

DEMONSTRATION = (0.55, 0.67, 0.75, 0.8)
"""About what the demonstration pair's draft is like."""

MEMORY_BOUND = sloped(2.3e-3, 0.03)
"""The demonstration target: 64 sessions take three times as long as one."""
WIDE = sloped(17e-3, 0.017)
"""A target of larger matrices: twice as long."""
GPU = sloped(20e-3, 0.002)
"""A device with room for many."""
COMPUTE_BOUND = sloped(2.3e-3, 0.6)
"""A device that one session fills by half."""

Step = Callable[[int], float]


@cache
def run(
    num_sessions: int, verify_step: Step, *, draft_step: Step | None = None, hop: float = 0.2e-3
) -> tuple[CrowdOutcome, float]:
    """What experienced workers make of so many sessions, and how many times as fast as the target alone that is."""

    policy = policy_of(None)

    def crowd(seed: int) -> CrowdOutcome:
        circumstances = Circumstances(
            draft_step=draft_step or sloped(0.6e-3, 0.03),
            verify_step=verify_step,
            coverage=DEMONSTRATION,
            hop=hop,
            window=20e-6,
            num_tokens=max(80, 400 // num_sessions),
            seed=seed,
        )
        return run_crowd(circumstances, num_sessions, policy)

    crowd(1000)
    outcome = crowd(5)
    return outcome, verify_step(num_sessions) / num_sessions / outcome.seconds_per_token


def test_a_crowd_commits_what_the_target_alone_would_write() -> None:
    outcome, _ = run(6, MEMORY_BOUND)
    for index, token_ids in enumerate(outcome.token_ids):
        alone, _ = ToyTarget(5 + index, VOCAB_SIZE).decode_alone(
            PROMPT, len(PROMPT) + len(token_ids), frozenset(), ignore_eos=True
        )
        assert token_ids == alone


@pytest.mark.parametrize(
    ("num_sessions", "verify_step"),
    [
        *itertools.product((4, 16), (MEMORY_BOUND, WIDE, GPU)),
        (64, MEMORY_BOUND),
        (4, COMPUTE_BOUND),
        (16, COMPUTE_BOUND),
    ],
)
def test_it_is_never_slower_than_the_target_alone_by_more_than_three_in_a_hundred(
    num_sessions: int, verify_step: Step
) -> None:
    outcome, speed_up = run(num_sessions, verify_step)
    assert speed_up > 0.97
    assert outcome.longest_gap <= 1


@pytest.mark.parametrize(
    ("num_sessions", "verify_step", "least"),
    [(4, MEMORY_BOUND, 1.15), (16, MEMORY_BOUND, 1.03), (4, WIDE, 1.35), (16, WIDE, 1.1), (16, GPU, 1.45)],
)
def test_what_many_sessions_gain(num_sessions: int, verify_step: Step, least: float) -> None:
    assert run(num_sessions, verify_step)[1] > least


def test_on_a_full_device_nothing_is_speculated_and_nobody_waits() -> None:
    outcome, speed_up = run(24, COMPUTE_BOUND)
    assert speed_up > 0.995
    assert outcome.rounds_per_step > 23.5


@pytest.mark.parametrize("num_sessions", [2, 4, 8])
def test_waiting_for_each_other_beats_going_as_soon_as_the_first_is_ready(
    num_sessions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered = run(num_sessions, GPU)[1]

    def start_at_once(ready_times: list[ReadyTime], now: float, step: float) -> float:
        return max(min(ready_time.ready_at for ready_time in ready_times), now)

    def goes_if_ready(ready_time: ReadyTime, start: float, step: float) -> bool:
        return ready_time.ready_at <= start

    def goes_if_ready_soon(ready_time: ReadyTime, start: float, step: float) -> bool:
        return ready_time.ready_at <= start + step

    monkeypatch.setattr(batching_delay, "start", start_at_once)
    monkeypatch.setattr(batching_delay, "goes", goes_if_ready)
    apart = run.__wrapped__(num_sessions, GPU)[1]
    monkeypatch.setattr(batching_delay, "goes", goes_if_ready_soon)
    hasty = run.__wrapped__(num_sessions, GPU)[1]
    assert gathered > 1.3 * apart
    assert gathered > 1.05 * hasty
