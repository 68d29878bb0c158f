"""Completions that run together: none runs ahead of a client that does not read, and a failure ends all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import cast

import pytest

from coordinator.completions import run_together
from coordinator.generation import Generation
from coordinator.interleave import UNREAD_VALUES_MAX
from outrider.core.protocol.errors import StepFailedError


class Counted:
    """A generation whose rounds are counted as they are made and as they are taken."""

    num_made = 0
    num_taken = 0
    num_ahead_max = 0

    async def run(self) -> AsyncIterator[int]:
        for number in range(50):
            Counted.num_made += 1
            Counted.num_ahead_max = max(Counted.num_ahead_max, Counted.num_made - Counted.num_taken)
            yield number


async def test_rounds_that_nobody_reads_do_not_pile_up() -> None:
    generations = cast("list[Generation]", [Counted() for _ in range(4)])
    ended: list[int] = []
    async with aclosing(run_together(generations)) as rounds:
        async for completion, emitted in rounds:
            Counted.num_taken += emitted is not None
            if emitted is None:
                ended.append(completion)
    assert sorted(ended) == [0, 1, 2, 3]
    assert Counted.num_taken == Counted.num_made == 200
    assert Counted.num_ahead_max <= UNREAD_VALUES_MAX + len(generations) + 1  # and the one on its way to the client


class Told:
    """A generation that yields one round and then waits for ever, fails, or ends; it notes how it was left."""

    def __init__(self, error: Exception | None = None, *, waits: bool = False) -> None:
        self.has_begun = False
        self.was_left = False
        self._error = error
        self._waits = waits

    async def run(self) -> AsyncIterator[int]:
        self.has_begun = True
        try:
            yield 1
            if self._waits:
                await asyncio.Event().wait()
            if self._error is not None:
                raise self._error
        except (asyncio.CancelledError, GeneratorExit):
            self.was_left = True
            raise


async def test_the_others_start_when_the_first_has_its_first_round() -> None:
    told = [Told(waits=True), Told(waits=True)]
    async with aclosing(run_together(cast("list[Generation]", told))) as rounds:
        assert await anext(rounds) == (0, 1)
        assert await anext(rounds) == (1, 1)
    assert [each.was_left for each in told] == [True, True]


async def test_what_the_first_to_fail_raises_ends_all() -> None:
    told = [Told(waits=True), Told(StepFailedError("no"))]
    async with aclosing(run_together(cast("list[Generation]", told))) as rounds:
        assert [await anext(rounds), await anext(rounds)] == [(0, 1), (1, 1)]
        with pytest.raises(StepFailedError):
            await anext(rounds)
    assert told[0].was_left


async def test_leaving_before_the_first_round_leaves_nothing_running() -> None:
    before = asyncio.all_tasks()
    rounds = run_together(cast("list[Generation]", [Told(waits=True)]))
    reading = asyncio.ensure_future(anext(rounds))
    await asyncio.wait({reading})
    await rounds.aclose()
    assert asyncio.all_tasks() == before
