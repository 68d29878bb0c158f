"""A worker's load, for whoever watches it: news at once, many changes as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from outrider.core.protocol.messages import WorkerLoad

REPORT_SECONDS = 0.1
"""Shortest time between two reports. A step takes milliseconds, and whoever places sessions wants no more than this."""


class LoadBoard:
    """Hears on any thread that something has changed, tells its watchers on the event loop that made it."""

    def __init__(self, read: Callable[[], WorkerLoad]) -> None:
        """`read` is called on the event loop, and must not wait for anything."""
        self._read = read
        self._loop = asyncio.get_running_loop()
        self._latest: WorkerLoad | None = None
        self._changed = asyncio.Event()
        self._next_report = 0.0
        self._touched = False
        self._closed = False

    def touch(self) -> None:
        """Something may have changed. Any thread; cheap enough for every step."""
        if self._touched:
            return
        self._touched = True
        try:
            self._loop.call_soon_threadsafe(self._schedule)
        except RuntimeError:
            return  # the loop is closed: nobody watches any more

    async def watch(self) -> AsyncGenerator[WorkerLoad]:
        """The load at once, then again when it is another one, until the board is closed."""
        while not self._closed:
            changed = self._changed
            yield self._read()
            await changed.wait()

    def close(self) -> None:
        """Ends every watch. On the event loop."""
        self._closed = True
        self._tell()

    def _schedule(self) -> None:
        self._loop.call_at(max(self._next_report, self._loop.time()), self._report)

    def _report(self) -> None:
        self._next_report = self._loop.time() + REPORT_SECONDS
        self._touched = False
        load = self._read()
        if load == self._latest:
            return
        self._latest = load
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
