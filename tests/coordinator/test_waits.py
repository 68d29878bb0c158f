"""Waits that are bounded one by one, on a clock that goes by hand."""

from __future__ import annotations

import asyncio
import math

import pytest

from coordinator.waits import Waits


class Clock:
    """The loop's time."""

    def __init__(self) -> None:
        self.now = 0.0

    async def advance(self, seconds: float) -> None:
        """When everything has come to a wait, so many seconds go by, and what follows comes about."""
        for now in (self.now, self.now + seconds):
            self.now = now
            for _ in range(5):
                await asyncio.sleep(0)


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock.now)
    return clock


class Waiting:
    """A task that waits for one thing after another."""

    def __init__(self, seconds_max: float = 30.0) -> None:
        self.things: list[asyncio.Future[int]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
        self.pause = asyncio.Event()
        """Between the two waits."""
        self.task = asyncio.ensure_future(self._run(seconds_max))

    async def _run(self, seconds_max: float) -> list[int]:
        with Waits(seconds_max) as waits:
            first = await waits.wait(self.things[0])
            await self.pause.wait()
            return [first, await waits.wait(self.things[1])]


async def test_each_wait_may_take_so_long_and_time_between_them_does_not_count(clock: Clock) -> None:
    waiting = Waiting()
    await clock.advance(29.0)
    waiting.things[0].set_result(1)
    await clock.advance(100.0)
    waiting.pause.set()
    await clock.advance(29.0)
    waiting.things[1].set_result(2)
    await clock.advance(0.0)
    assert waiting.task.result() == [1, 2]


async def test_a_wait_that_is_too_long_is_cancelled_and_its_task_is_not(clock: Clock) -> None:
    waiting = Waiting()
    await clock.advance(29.0)
    waiting.things[0].set_result(1)
    waiting.pause.set()
    await clock.advance(29.0)
    assert not waiting.task.done()
    await clock.advance(1.0)
    with pytest.raises(TimeoutError):
        waiting.task.result()
    assert waiting.things[1].cancelled()
    assert not waiting.task.cancelling()


@pytest.mark.parametrize("seconds_max", [30.0, math.inf])
async def test_who_is_cancelled_while_it_waits_is_cancelled(clock: Clock, seconds_max: float) -> None:
    waiting = Waiting(seconds_max)
    await clock.advance(29.0)
    waiting.task.cancel()
    await clock.advance(0.0)
    assert waiting.task.cancelled()
