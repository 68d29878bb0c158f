"""SIGTERM and SIGINT before a service listens for them: it ends at once, with a word and status 0.

What it has begun by then is nothing that anyone waits for. As process 1 of a container it would not even end: the
kernel gives that process no signal for which it has no handler. A server that starts replaces these.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

_STANDARD_ERROR = 2


def end_at_once_until_serving(service: str) -> None:
    """Call it before slow imports. `service` is the name by which the process says that it ends."""

    def end(number: int, _: FrameType | None) -> None:
        os.write(_STANDARD_ERROR, f"{service}: stopped by {signal.Signals(number).name} while starting\n".encode())
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
