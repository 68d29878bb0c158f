"""The end of a process that has done its work: the interpreter's own, which tidies up for seconds, is left out."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import NoReturn

from outrider.machine.descendants import kill_descendants


def leave_at_exit(status: int) -> None:
    """From now on the process ends with `status` as soon as its main module has, and all that it started with it.

    An interpreter frees every object one by one, torch's under threads that still load: a drafter that had drained took
    12 s more on a busy machine, and was killed. What was registered with `atexit` before is not called.
    """
    atexit.register(leave, status)


def leave(status: int) -> NoReturn:
    """Ends the process with `status` at once, and all that it started with it; from any thread."""
    kill_descendants()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # it is full, or nobody reads it
            stream.flush()
    os._exit(status)
