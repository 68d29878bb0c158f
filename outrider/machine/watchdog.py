"""Watchdog: ends a process whose event loop does not turn any more. Its thread needs no interpreter."""

from __future__ import annotations

import asyncio
import faulthandler
from typing import Final

HANG_SECONDS = 60.0
"""An event loop that stands still for so long hangs. Peers have left the process long before; what they wait for is
another one in its place. A process that was stopped from outside for so long ends when it is continued."""

_BEATS: Final = 10
"""How often the loop says within that time that it turns."""

_STANDARD_ERROR: Final = 2


def watch(loop: asyncio.AbstractEventLoop) -> None:
    """From now on the process ends with status 1 if `loop` stands still for HANG_SECONDS, or if the process lives on
    for so long when the loop has ended. It says on standard error where each of its threads was."""
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=_STANDARD_ERROR)
    loop.call_later(HANG_SECONDS / _BEATS, watch, loop)
