"""One session's part of a stream: its events are taken as they come, before any task has run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from outrider.core.protocol.errors import QueueFullError, WorkerUnavailableError
from outrider.rpc import session_stream as session_stream_module
from outrider.rpc.session_stream import SessionStream


class Ends:
    """What a session has sent, and how often it has left."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.num_left = 0
        self.session: SessionStream[int, int] = SessionStream(self.sent.append, self._leave)

    def _leave(self) -> None:
        self.num_left += 1


async def reading(outcomes: Any) -> list[Any]:
    return [outcome async for outcome in outcomes]


async def begun(outcomes: Any) -> asyncio.Task[list[Any]]:
    """A task that reads, and waits."""
    task = asyncio.ensure_future(reading(outcomes))
    await asyncio.sleep(0)
    return task


async def test_an_event_is_answered_before_any_task_runs() -> None:
    ends = Ends()

    def take(event: int) -> str | None:
        ends.session.offer(event + 1)
        return str(event) if event % 2 else None

    ends.session.hear(1)
    reader = await begun(ends.session.outcomes(take))
    assert ends.sent == [2], "what had come before is taken first"
    for event in (2, 3):
        ends.session.hear(event)
    assert ends.sent == [2, 3, 4]
    ends.session.end(None)
    assert await reader == ["1", "3"]


async def test_a_command_that_cannot_be_sent_ends_the_session_and_comes_out_behind_the_events_before() -> None:
    left: list[str] = []

    def put(command: int) -> None:
        raise ValueError("out of range")

    session: SessionStream[int, int] = SessionStream(put, lambda: left.append("left"))
    session.hear(1)
    session.offer(2)
    session.offer(3)
    assert left == ["left"]
    events = session.events()
    assert await anext(events) == 1
    with pytest.raises(ValueError, match="out of range"):
        await anext(events)


async def test_what_has_been_made_of_events_comes_out_though_the_session_is_cancelled_by_who_takes_them() -> None:
    ends = Ends()

    def take(event: int) -> int:
        if event == 2:
            ends.session.cancel()
        return event

    reader = await begun(ends.session.outcomes(take))
    for event in (1, 2):
        ends.session.hear(event)
    assert await reader == [1, 2]
    assert ends.num_left == 1


def fail(event: int) -> int:
    if event == 2:
        raise KeyError("a fault of ours")
    return event


async def test_what_taking_an_event_raises_ends_the_session_and_comes_out_behind_the_outcomes_before() -> None:
    ends = Ends()
    outcomes = ends.session.outcomes(fail)
    reader = await begun(outcomes)
    ends.session.hear(1)
    ends.session.hear(2)
    assert ends.num_left == 1
    with pytest.raises(KeyError, match="a fault of ours"):
        await reader


async def test_a_session_that_ended_before_anybody_took_its_events_has_them_taken() -> None:
    ends = Ends()
    for event in (1, 2, 3):
        ends.session.hear(event)
    ends.session.end(WorkerUnavailableError("it is gone"))
    outcomes = ends.session.outcomes(lambda event: -event)
    assert [await anext(outcomes) for _ in range(3)] == [-1, -2, -3]
    with pytest.raises(WorkerUnavailableError):
        await anext(outcomes)
    assert ends.num_left == 0


async def test_a_fault_in_such_an_event_comes_before_how_the_session_ended() -> None:
    ends = Ends()
    for event in (1, 2, 3):
        ends.session.hear(event)
    ends.session.end(WorkerUnavailableError("it is gone"))
    outcomes = ends.session.outcomes(fail)
    assert await anext(outcomes) == 1
    with pytest.raises(KeyError):
        await anext(outcomes)


async def test_outcomes_that_nobody_reads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_stream_module, "UNREAD_EVENTS_MAX", 2)
    ends = Ends()
    outcomes = ends.session.outcomes(lambda event: event or None)
    ends.session.hear(1)
    assert await anext(outcomes) == 1
    for event in (2, 0, 0, 0, 3, 4):
        ends.session.hear(event)
    assert ends.num_left == 1
    assert [await anext(outcomes) for _ in range(2)] == [2, 3]
    with pytest.raises(QueueFullError):
        await anext(outcomes)
