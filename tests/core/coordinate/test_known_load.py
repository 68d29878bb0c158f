"""What a coordinator knows of a worker's load: its own sessions as they are, and others' as they were reported."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider.core.coordinate.circuit_breaker import CircuitBreaker
from outrider.core.coordinate.drafter_bandit import DrafterBandit
from outrider.core.coordinate.drafter_choice import DrafterChoice, DrafterDemand, DrafterStanding, choose
from outrider.core.coordinate.known_load import REPORT_LAG_SECONDS, KnownLoad
from outrider.core.coordinate.placement import REPORTS_MIN
from outrider.core.protocol.messages import WorkerLoad

MAX_SESSIONS = 2
SECONDS = st.floats(0.0, 0.3)


class Place(NamedTuple):
    taken_at: float
    num_tokens: int = 10


def load(num_sessions: int, *, free: int = 10_000, step_ms: float = 10.0) -> WorkerLoad:
    return WorkerLoad("", num_sessions, 0, 0, 10_000, free, step_ms)


def known_load(report: WorkerLoad, now: float) -> KnownLoad:
    known = KnownLoad()
    known.observe(report, now)
    return known


@pytest.mark.parametrize("age", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("others", [0, 1])
def test_a_session_that_ended_is_not_there_whatever_a_report_still_says(age: float, others: int) -> None:
    """`age` is that of the session when the report arrives, in lags."""
    place = Place(taken_at=1.0 - age * REPORT_LAG_SECONDS)
    known = known_load(load(0), 0.0)
    known.observe(load(others + 1), 1.0)
    assert known.state([place], MAX_SESSIONS).num_sessions == others + 1, "it is counted once"
    known.leave(place, 1.0 + 0.5 * REPORT_LAG_SECONDS)
    assert known.state([], MAX_SESSIONS).num_sessions == others


def test_a_session_that_ended_just_before_a_report_came_is_not_there() -> None:
    known = known_load(load(0), 0.0)
    known.leave(Place(taken_at=1.0), 1.01)
    known.observe(load(1), 1.02)
    assert known.state([], MAX_SESSIONS).num_sessions == 0
    known.observe(load(1), 1.02 + REPORT_LAG_SECONDS)
    assert known.state([], MAX_SESSIONS).num_sessions == 1, "by now it is somebody else's"


def test_a_session_that_began_after_a_report_is_none_of_those_that_it_counts() -> None:
    known = known_load(load(1), 1.0)
    known.leave(Place(taken_at=1.01), 1.02)
    assert known.state([], MAX_SESSIONS).num_sessions == 1


class Life(NamedTuple):
    """A session from one moment to another, and how much later each of both reaches the worker."""

    taken_at: float
    seconds: float
    lags: tuple[float, float]


LIVES = st.builds(Life, SECONDS, SECONDS, st.tuples(*[st.floats(0.0, 0.4 * REPORT_LAG_SECONDS, exclude_max=True)] * 2))
REPORTS = st.lists(st.tuples(SECONDS, st.floats(0.0, 0.4 * REPORT_LAG_SECONDS, exclude_max=True)), max_size=4)


@given(st.lists(LIVES, max_size=6), REPORTS, SECONDS)
def test_who_is_alone_at_a_worker_knows_its_sessions_exactly(
    lives: list[Life], reports: list[tuple[float, float]], now: float
) -> None:
    """Whatever messages are under way: what a worker has read is reported late, and later reports come later."""
    known = known_load(load(0), -1.0)
    places = [Place(life.taken_at) for life in lives]
    events = [(life.taken_at + life.seconds, index, None) for index, life in enumerate(lives)]
    events += [(arrives + late, -1, arrives) for arrives, late in reports]
    for moment, index, made_at in sorted(events, key=lambda each: each[0]):
        if moment > now:
            break
        if made_at is None:
            known.leave(places[index], moment)
            continue
        num = sum(
            life.taken_at + life.lags[0] <= made_at < life.taken_at + life.seconds + life.lags[1] for life in lives
        )
        known.observe(load(num), moment)
    present = [
        place for place, life in zip(places, lives, strict=True) if place.taken_at <= now < life.taken_at + life.seconds
    ]
    assert known.state(present, MAX_SESSIONS).num_sessions == len(present)


@pytest.mark.parametrize("lag", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("report", [load(1, step_ms=30.0), load(2), load(1, free=0)], ids=["slow", "full", "no memory"])
def test_one_client_that_asks_again_and_again_always_has_its_drafter(report: WorkerLoad, lag: float) -> None:
    """However slow the drafter is: at the moment of each choice nobody is there, and reports are late."""
    known, now = KnownLoad(), 0.0
    demand = DrafterDemand(num_tokens=10, max_length=100, greedy=True, verify_step_ms=10.0)
    bandit = DrafterBandit()
    for _ in range(REPORTS_MIN + 5):
        standing = DrafterStanding("one", known.state([], MAX_SESSIONS), CircuitBreaker(), "draft", 100)
        choice = choose([standing], bandit, demand, now)
        assert isinstance(choice, DrafterChoice), choice
        choice.trial.cancel()
        places = [Place(now)] * report.num_sessions
        now += REPORT_LAG_SECONDS
        known.observe(report, now)
        now += lag * REPORT_LAG_SECONDS
        for place in places:
            known.leave(place, now)
        now += 0.1 * REPORT_LAG_SECONDS
