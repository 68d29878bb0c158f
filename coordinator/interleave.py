"""Several streams of values as one: whatever comes next, from whichever of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from outrider.core.protocol.errors import OutriderError
from outrider.rpc.status import own_task_is_cancelled

UNREAD_VALUES_MAX = 1
"""Values that wait for a client that does not read; beyond it no stream is read."""

V = TypeVar("V")


class Interruption:
    """Ends an iteration of `interleaved` from outside."""

    def __init__(self) -> None:
        self.error: OutriderError | None = None
        self.on_set: Callable[[], None] = lambda: None

    def set(self, error: OutriderError) -> None:
        """The iteration raises `error` as soon as it is asked for more. Only the first one counts."""
        if self.error is None:
            self.error = error
            self.on_set()


def interleaved(
    streams: Sequence[AsyncGenerator[V]], interruption: Interruption | None = None
) -> AsyncGenerator[tuple[int, V | None]]:
    """Yields each value with its stream's number as it comes, and None in place of a value when a stream has ended.

    Raises what the first of them to fail raises, or what the `interruption` is set to, and then reads none of the
    others on; they are closed at the end.
    """
    interruption = interruption or Interruption()
    return _alone(streams[0], interruption) if len(streams) == 1 else _mixed(streams, interruption)


async def _alone(stream: AsyncGenerator[V], interruption: Interruption) -> AsyncGenerator[tuple[int, V | None]]:
    """Of one stream, which needs no task of its own: whoever asks for a value waits for the stream itself."""
    waiting: asyncio.Task[object] | None = None

    def wake() -> None:
        if waiting is not None:
            waiting.cancel()

    interruption.on_set = wake
    value: V | None
    async with aclosing(stream):
        while True:
            if interruption.error is not None:
                raise interruption.error
            waiting = asyncio.current_task()
            try:
                value = await anext(stream, None)
            except asyncio.CancelledError:
                if interruption.error is None or waiting is None or waiting.uncancel():
                    raise
                raise interruption.error from None
            finally:
                waiting = None
            yield 0, value
            if value is None:
                return


async def _mixed(
    streams: Sequence[AsyncGenerator[V]], interruption: Interruption
) -> AsyncGenerator[tuple[int, V | None]]:
    """Of several, each read by a task of its own."""
    values: asyncio.Queue[tuple[int, V | BaseException | None]] = asyncio.Queue(UNREAD_VALUES_MAX)

    async def feed(number: int, stream: AsyncGenerator[V]) -> None:
        try:
            async with aclosing(stream):
                async for value in stream:
                    await values.put((number, value))
            await values.put((number, None))
        except (Exception, asyncio.CancelledError) as error:
            if own_task_is_cancelled():
                raise
            await values.put((number, error))

    # Not a TaskGroup: when one of its tasks fails it cancels the task around it, which may be writing to the client.
    feeds = [asyncio.create_task(feed(number, stream)) for number, stream in enumerate(streams)]
    num_running = len(feeds)
    # Whoever waits is woken. A value that lies there wakes them, too.
    interruption.on_set = lambda: values.put_nowait((0, None)) if values.empty() else None
    try:
        while num_running:
            number, value = await values.get()
            value = interruption.error or value
            if isinstance(value, BaseException):
                try:
                    raise value
                finally:
                    del value  # or the error would hold this frame and the frame the error
            if value is None:
                num_running -= 1
            yield number, value
    finally:
        for feed_task in feeds:
            feed_task.cancel()
        await asyncio.gather(*feeds, return_exceptions=True)
