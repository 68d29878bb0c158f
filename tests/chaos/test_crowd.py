"""What a crowd may cost."""

from __future__ import annotations

from dataclasses import replace

from .crowd import GROWN_BYTES_MAX, Crowd

GOOD = Crowd(
    kind="idle connections",
    num_clients=10,
    seconds=1.0,
    good_request_seconds=0.5,
    problem="",
    resident_before={"coordinator-1": 100, "verify-1": 50},
    resident_with={"coordinator-1": 100 + GROWN_BYTES_MAX, "verify-1": 50},
    resident_after={"coordinator-1": 90, "verify-1": 50},
)


def test_memory_is_bounded_with_the_crowd_and_after_it() -> None:
    assert GOOD.problems == []
    for grown in (
        replace(GOOD, resident_with={"coordinator-1": 101 + GROWN_BYTES_MAX, "verify-1": 50}),
        replace(GOOD, resident_after={"coordinator-1": 100, "verify-1": 51 + GROWN_BYTES_MAX}),
    ):
        (problem,) = grown.problems
        assert "grew by 64 MB" in problem


def test_a_good_request_must_be_answered() -> None:
    (problem,) = replace(GOOD, good_request_seconds=None, problem="no room").problems
    assert problem.endswith("no good request was answered beside them: no room")
