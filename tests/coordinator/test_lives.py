"""Requests that end because their time is up, or the coordinator's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from coordinator.interleave import Interruption, interleaved
from coordinator.lives import Lives
from outrider.core.protocol.errors import RequestTooLongError, WorkerUnavailableError


async def one_then_none() -> AsyncGenerator[int]:
    yield 1
    await asyncio.Event().wait()


async def test_an_interruption_wakes_who_waits_and_its_first_error_counts() -> None:
    interruption = Interruption()
    async with aclosing(interleaved([one_then_none()], interruption)) as values:
        assert await anext(values) == (0, 1)
        waiting = asyncio.ensure_future(anext(values))
        await asyncio.wait({waiting}, timeout=0.01)
        interruption.set(RequestTooLongError("the first"))
        interruption.set(RequestTooLongError("the second"))
        with pytest.raises(RequestTooLongError, match="the first"):
            await waiting


async def test_an_interruption_is_heard_by_who_asks_later() -> None:
    interruption = Interruption()
    async with aclosing(interleaved([one_then_none()], interruption)) as values:
        assert await anext(values) == (0, 1)
        interruption.set(RequestTooLongError("it is over"))
        with pytest.raises(RequestTooLongError):
            await anext(values)


async def test_a_request_lives_so_long() -> None:
    with Lives(0.01).life() as interruption:
        async with aclosing(interleaved([one_then_none()], interruption)) as values:
            assert await anext(values) == (0, 1)
            with pytest.raises(RequestTooLongError, match=r"lasted for 0\.01 s"):
                await anext(values)


async def test_a_coordinator_that_stops_ends_all_in_words_that_say_how_to_go_on() -> None:
    lives = Lives(3600.0)
    with lives.life() as first, lives.life() as second:
        with lives.life() as over:
            pass
        lives.end_all()
        assert over.error is None
        for interruption in (first, second):
            assert isinstance(interruption.error, WorkerUnavailableError)
            assert "with the token ids that have come and the seed" in str(interruption.error)
