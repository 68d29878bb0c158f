"""Waits that are bounded one by one, at the price of one timer for all of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")


class Waits:
    """What one task waits for, again and again, at most so long each time. Use it as a context manager in that task.

    `asyncio.timeout` around each wait would set a timer and take it back each time. This one's timer is left as it is:
    when it goes off it looks when the present wait began, and is set again for what is left of that.
    """

    def __init__(self, seconds_max: float) -> None:
        self._seconds_max = seconds_max
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._since: float | None = None
        """When the present wait began, by the loop's clock."""
        self._is_over = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        if self._seconds_max < math.inf:
            self._timer = self._loop.call_later(self._seconds_max, self._look)
        return self

    def __exit__(
        self, exception_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """What `awaitable` comes to. Raises TimeoutError if that takes too long; it is cancelled then."""
        self._since = self._loop.time()
        try:
            return await awaitable
        except asyncio.CancelledError as cancelled:
            if self._is_over and self._task is not None and not self._task.uncancel():
                raise TimeoutError from cancelled
            raise
        finally:
            self._since = None

    def _look(self) -> None:
        now = self._loop.time()
        end = (now if self._since is None else self._since) + self._seconds_max
        if now < end:
            self._timer = self._loop.call_at(end, self._look)
        elif self._task is not None:
            self._is_over = self._task.cancel()
