"""The self-pipe of an event loop, through which other threads wake it and let go of the interpreter meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary

_BYTES_READ_MAX = 4096
"""Wake-ups that are taken for one, far more than there are streams."""


class SelfPipe:
    """Where a loop shares a core with a thread that it goes before, it runs as soon as it is woken.

    `call_soon_threadsafe` wakes it and keeps the interpreter: it would run in vain, and again when the interpreter is
    free. A write to a pipe lets go of it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Of that loop, which has but one; see `self_pipe`."""
        self._calls: deque[Callable[[], None]] = deque()
        self._read_end, self._write_end = os.pipe()
        for end in (self._read_end, self._write_end):
            os.set_blocking(end, False)
        loop.add_reader(self._read_end, self._call)

    def __del__(self) -> None:
        """Nobody can write to it any more."""
        os.close(self._read_end)
        os.close(self._write_end)

    def wake(self, call: Callable[[], None]) -> None:
        """Has the loop call that, which must not raise, at once; never, if it is closed. Any thread."""
        self._calls.append(call)
        with contextlib.suppress(BlockingIOError):  # then it has been woken often enough
            os.write(self._write_end, b"\0")

    def _call(self) -> None:
        os.read(self._read_end, _BYTES_READ_MAX)
        while self._calls:
            self._calls.popleft()()


_self_pipes: WeakKeyDictionary[asyncio.AbstractEventLoop, SelfPipe] = WeakKeyDictionary()


def self_pipe(loop: asyncio.AbstractEventLoop) -> SelfPipe:
    """The loop's, as long as there is the loop. On the event loop."""
    found = _self_pipes.get(loop)
    if found is None:
        found = _self_pipes[loop] = SelfPipe(loop)
    return found
