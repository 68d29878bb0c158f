"""An asyncio event loop in a thread of its own, for whoever has none."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

STOP_SECONDS = 2.0
"""Longest that the end of the process waits for what is left to be closed."""

ResultT = TypeVar("ResultT")


class LoopThread:
    """Runs until `stop`, or the end of the process."""

    def __init__(self, name: str) -> None:
        """Starts at once. `name` is the thread's."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def hand(self, work: Coroutine[Any, Any, ResultT]) -> concurrent.futures.Future[ResultT]:
        """Hands `work` over to the loop and returns at once what becomes of it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop_with(self, last: Coroutine[Any, Any, None]) -> None:
        """Runs `last`, for STOP_SECONDS at most, and ends the thread. `last` is cancelled if it takes longer."""
        done = self.hand(last)
        concurrent.futures.wait([done], STOP_SECONDS)
        done.cancel()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STOP_SECONDS)
