"""A circuit breaker: closed, open, half-open."""

from __future__ import annotations

from outrider.core.coordinate.circuit_breaker import (
    FAILURES_MAX,
    PAUSE_SECONDS,
    PAUSE_SECONDS_MAX,
    CircuitBreaker,
)


def opened(now: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker()
    for _ in range(FAILURES_MAX):
        assert breaker.refusal(now) is None
        breaker.begin()
        breaker.fail(now)
    return breaker


def test_it_opens_after_failures_in_a_row() -> None:
    assert "3 times in a row" in str(opened().refusal(0.0))
    breaker = CircuitBreaker()
    for _ in range(5):
        breaker.fail(0.0)
        breaker.succeed()
    assert breaker.refusal(0.0) is None


def test_after_the_pause_one_session_probes() -> None:
    breaker = opened()
    assert breaker.refusal(PAUSE_SECONDS - 0.01) is not None
    assert breaker.refusal(PAUSE_SECONDS) is None
    breaker.begin()
    assert "tried with one session" in str(breaker.refusal(PAUSE_SECONDS))


def test_a_probe_that_is_served_lets_others_in_and_the_next_failure_shuts_them_out() -> None:
    breaker = opened()
    breaker.begin()
    breaker.work()
    assert breaker.refusal(PAUSE_SECONDS) is None
    breaker.fail(PAUSE_SECONDS)
    assert breaker.refusal(PAUSE_SECONDS + 1.9 * PAUSE_SECONDS) is not None, "twice as long as before"
    assert breaker.refusal(PAUSE_SECONDS + 2.0 * PAUSE_SECONDS) is None


def test_a_probe_that_is_not_taken_tells_nothing_and_is_made_again_later() -> None:
    breaker = opened()
    breaker.begin()
    breaker.refuse(PAUSE_SECONDS)
    assert breaker.refusal(PAUSE_SECONDS) is not None
    assert breaker.num_failures == FAILURES_MAX


def test_sessions_that_fail_together_are_one_opening_and_pauses_have_a_bound() -> None:
    breaker = opened()
    for _ in range(30):
        breaker.fail(0.0)
    assert breaker.refusal(PAUSE_SECONDS) is None
    now = PAUSE_SECONDS
    for _ in range(30):
        breaker.begin()
        breaker.fail(now)
        now += PAUSE_SECONDS_MAX
        assert breaker.refusal(now) is None


def test_a_session_that_goes_well_makes_it_as_new() -> None:
    breaker = opened()
    breaker.begin()
    breaker.succeed()
    assert breaker.num_failures == 0
    breaker.fail(9.0)
    assert breaker.refusal(9.0) is None
