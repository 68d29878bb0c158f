"""The outlet of a stream: which of its sessions' outboxes have something, for the task that writes them out."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from outrider.worker.self_pipe import self_pipe

if TYPE_CHECKING:
    from outrider.worker.outbox import Outbox


class Outlet:
    """Filled on the device thread, drained on the event loop that made it, which one step wakes once."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._self_pipe = self_pipe(self._loop)
        self._filled: deque[Outbox[Any]] = deque()
        self._has_changed = False
        self._news: asyncio.Future[None] | None = None
        """What the task waits for: an asyncio.Event would cost half as much again."""
        self._is_woken = False

    def add(self, outbox: Outbox[Any]) -> None:
        """That outbox has something, of which the task hears by `flush`. Any thread."""
        outbox.is_waiting = True
        self._filled.append(outbox)

    def flush(self) -> None:
        """Has the task write out what was added, if it has not done so. Any thread."""
        if self._filled and not self._is_woken:
            self._is_woken = True
            self._self_pipe.wake(self.wake)

    def wake(self) -> None:
        """Ends a wait for other reasons. On the event loop."""
        self._has_changed = True
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def wait(self) -> None:
        """Waits until an outbox has something, or for `wake`."""
        while not self._has_changed:
            self._news = self._loop.create_future()
            await self._news
        self._has_changed = False
        self._is_woken = False  # before anything is taken: what is added from here on wakes again

    def __bool__(self) -> bool:
        """Whether `next` has an outbox."""
        return bool(self._filled)

    def next(self) -> Outbox[Any] | None:
        """An outbox that has something, those first that have waited longest; None if there is none."""
        if not self._filled:
            return None
        outbox = self._filled.popleft()
        outbox.is_waiting = False  # before anything is taken from it: what is put there from here on is told again
        return outbox
