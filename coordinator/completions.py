"""The completions of one request: generations at the same time, whose rounds come out one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from coordinator.emission import EmittedTokens
from coordinator.generation import Generation
from outrider.rpc.status import own_task_is_cancelled

UNREAD_ROUNDS_MAX = 1
"""Rounds that wait for a client that does not read; beyond it no completion reads from its verifier."""


async def run_together(generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, EmittedTokens | None]]:
    """Yields each round with its completion's number as it comes, and None in place of a round when one has ended.

    The second and all later ones start when the first has read the prompt, so that they find it read. Raises what the
    first of them to fail raises, and then runs none of the others on.
    """
    rounds: asyncio.Queue[tuple[int, EmittedTokens | BaseException | None]] = asyncio.Queue(UNREAD_ROUNDS_MAX)
    prompt_is_read = asyncio.Event()

    async def feed(number: int, generation: Generation) -> None:
        try:
            if number > 0:
                await prompt_is_read.wait()
            async with aclosing(generation.run()) as emitting:
                async for emitted in emitting:
                    prompt_is_read.set()
                    await rounds.put((number, emitted))
            prompt_is_read.set()
            await rounds.put((number, None))
        except (Exception, asyncio.CancelledError) as error:
            if own_task_is_cancelled():
                raise
            await rounds.put((number, error))

    # Not a TaskGroup: when one of its tasks fails it cancels the task around it, which may be writing to the client.
    feeds = [asyncio.create_task(feed(number, generation)) for number, generation in enumerate(generations)]
    num_running = len(feeds)
    try:
        while num_running:
            number, emitted = await rounds.get()
            if isinstance(emitted, BaseException):
                try:
                    raise emitted
                finally:
                    del emitted  # or the error would hold this frame and the frame the error
            if emitted is None:
                num_running -= 1
            yield number, emitted
    finally:
        for feed_task in feeds:
            feed_task.cancel()
        await asyncio.gather(*feeds, return_exceptions=True)
